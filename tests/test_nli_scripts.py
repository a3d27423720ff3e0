"""The data scripts of SimCSE: triplets from NLI files, and downloads (from a local mirror) that are counted."""

import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
SNLI = """{"gold_label": "entailment", "sentence1": "A  man, walks.", "sentence2": "he moves"}
{"gold_label": "contradiction", "sentence1": "A man, walks.", "sentence2": "he sleeps"}
{"gold_label": "entailment", "sentence1": "A man, walks.", "sentence2": "a man is out"}
{"gold_label": "entailment", "sentence1": "A man, walks.", "sentence2": "he moves"}
{"gold_label": "neutral", "sentence1": "A man, walks.", "sentence2": "he is old"}
{"gold_label": "-", "sentence1": "A man, walks.", "sentence2": "he says \\"no\\""}

{"gold_label": "entailment", "sentence1": "never contradicted", "sentence2": "x"}
"""


def triplets(*arguments: Path | str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPTS / "make_nli_triplets.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_triplets(tmp_path):
    """Entailed hypotheses in order, the one contradiction for each; the repeated triplet once, quoted where needed."""
    (tmp_path / "snli.jsonl").write_text(SNLI)
    output = tmp_path / "nli.csv"
    assert triplets(tmp_path / "snli.jsonl", "--output", output).stdout == f"{output}: 2 triplets\n"
    assert output.read_text() == (
        'sent0,sent1,hard_neg\n"A man, walks.",he moves,he sleeps\n"A man, walks.",a man is out,he sleeps\n'
    )


def test_triplets_of_two_files_join_by_premise(tmp_path):
    lines = SNLI.splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_text(lines[0])
    (tmp_path / "b.jsonl").write_text(lines[1])
    triplets(tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--output", tmp_path / "nli.csv")
    assert (tmp_path / "nli.csv").read_text().splitlines()[1:] == ['"A man, walks.",he moves,he sleeps']


def test_triplets_of_packed_allnli(tmp_path):
    """sentence-transformers' file: tab-separated, its quotes are text, its dev and test rows are left out."""
    rows = [
        ("split", "dataset", "filename", "sentence1", "sentence2", "label"),
        ("train", "SNLI", "x", 'A "man" walks.', "he moves", "entailment"),
        ("train", "SNLI", "x", 'A "man" walks.', '"he sleeps', "contradiction"),
        ("dev", "SNLI", "x", 'A "man" walks.', "he is out", "entailment"),
    ]
    with gzip.open(tmp_path / "AllNLI.tsv.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join("\t".join(row) for row in rows) + "\n")
    triplets(tmp_path / "AllNLI.tsv.gz", "--output", tmp_path / "nli.csv")
    assert (tmp_path / "nli.csv").read_text().splitlines()[1:] == ['"A ""man"" walks.",he moves,"""he sleeps"']


def test_triplets_of_wrong_files(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"gold_label": "entailment"}\n')
    found = triplets(tmp_path / "bad.jsonl", "--output", tmp_path / "nli.csv")
    assert found.returncode == 1 and "bad.jsonl, line 1: no SNLI record" in found.stderr
    assert "no such file" in triplets(tmp_path / "missing.jsonl", "--output", tmp_path / "nli.csv").stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize(
    ("script", "name", "header", "line", "count"),
    [
        ("download_wiki.sh", "wiki1m_for_simcse.txt", "", "a sentence\n", 1_000_000),
        ("download_nli.sh", "nli_for_simcse.csv", "sent0,sent1,hard_neg\n", "a,b,c\n", 275_601),
    ],
)
def test_downloads_are_counted(tmp_path, script, name, header, line, count):
    def download(rows: int, folder: str) -> subprocess.CompletedProcess:
        (tmp_path / name).write_text(header + line * rows)
        command = ["bash", str(SCRIPTS / script), "--mirror", f"file://{tmp_path}", str(tmp_path / folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    whole = download(count, "whole")
    assert whole.returncode == 0 and f"{count} " in whole.stdout
    short = download(count - 1, "short")
    assert short.returncode == 1 and "remove it and run this again" in short.stderr
