"""`pairs --question_writer`, whole and by shards: the same rows, a broken shard, refusals."""

import pytest

from cacse_trainer import load_sentences
from cacse_trainer.cli import pairs
from cacse_trainer.cli.common import run
from cacse_trainer.data import sources
from tests.conftest import write_sentences


@pytest.fixture
def asked(monkeypatch):
    """The passages that a writer was asked about; every fifth answer is none."""
    seen: list[str] = []

    def asking(writer, model, prompt, device):
        def queries(texts):
            if seen and writer == "breaks":
                raise KeyboardInterrupt
            seen.extend(texts)
            return ["" if len(text) % 5 == 0 else f"who, {text}?" for text in texts]

        return queries, {"writer": "same", "writer_model": model, "prompt": "p"}

    monkeypatch.setattr(pairs, "asking", asking)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 200)
    return seen


@pytest.fixture
def text(tmp_path):
    path = write_sentences(tmp_path / "text.txt", 40)
    path.write_text(path.read_text() + "\n  \nthe dog\n")  # blank lines are no passages
    return path


def _command(text, folder, *more, writer="w"):
    flags = ["--input", str(text), "--output_dir", str(folder), "--question_writer", writer, "--device", "cpu"]
    return run(pairs.main, [*flags, "--disable_tqdm", *more])


def test_shards_write_what_one_process_writes(asked, text, tmp_path, capsys):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert _command(text, whole) == 0
    lines = [line for line in text.read_text().splitlines() if line.strip()]
    assert asked == lines
    rows = load_sentences(whole / "pairs.csv")
    assert rows["anchor"][:] == [f"who, {line}?" for line in rows["positive"][:]]
    assert rows["positive"][:] == [line for line in lines if len(line) % 5]
    asked.clear()
    assert _command(text, shared, "--shard", "1/2", writer="breaks") == 130
    assert run(pairs.main, ["--output_dir", str(shared), "--finish"]) == 2
    assert "blocks are missing or damaged (000001.csv, " in capsys.readouterr().err
    for shard in ("2/2", "1/2"):
        assert _command(text, shared, "--shard", shard) == 0
    assert sorted(asked) == sorted(lines)  # none twice, that of the broken shard neither
    assert run(pairs.main, ["--output_dir", str(shared), "--finish"]) == 0
    assert (shared / "pairs.csv").read_bytes() == (whole / "pairs.csv").read_bytes()
    assert [path.name for path in shared.iterdir()] == ["pairs.csv"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--input", "a.txt"], "--there, --back is missing; give --there and --back, or --question_writer"),
        (["--input", "a.txt", "--there", "m", "--back", "n", "--question_model", "x"], "belongs to --question_writer"),
        (["--input", "a.txt", "--question_writer", "w", "--num_beams", "2"], "--num_beams: belongs to translation"),
        (["--input", "a.txt", "--question_writer", "w", "--text_column", "b"], "--text_column: belongs to --shard"),
        (["--input", "a.txt", "--shard", "1/2", "--overwrite"], "--overwrite: does nothing with --shard"),
        (["--finish", "--input", "a.txt"], "--input: does nothing with --finish"),
        (["--finish"], "holds no shards; start pairs --shard 1/n to n/n"),
        ([], "required: --input"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, capsys, flags, words):
    assert run(pairs.main, ["--output_dir", str(tmp_path), *flags]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
