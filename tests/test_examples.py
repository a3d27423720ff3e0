"""The examples run offline, small, and do what they say."""

import json
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def run(name: str, *flags: str, cwd) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_search_your_documents(tmp_path, minilm):
    """The right paragraph of three comes first, and the saved index gives the same the second time."""
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "pump.md").write_text("# Pump\n\nThe pump must be vented before its first start.\n\nToo short.\n")
    (notes / "menu.txt").write_text(
        "On Fridays the kitchen serves fresh fish with rice.\n\nThe garden is watered at six.\n"
    )
    for _ in range(2):
        flags = ("notes", "--query", "what is for lunch", "--index", "kept", "--top_k", "2")
        said = run("search_your_documents.py", *flags, cwd=tmp_path).splitlines()
        assert said[0] == "what is for lunch" and "menu.txt: On Fridays" in said[1] and len(said) == 3
    assert (tmp_path / "kept").is_dir()


def test_chinese_text(tmp_path):
    """The vectors of a random model lie close together, and training spreads them; the search finds the sentence."""
    said = run("chinese_text.py", "--max_steps", "20", cwd=tmp_path)
    report = json.loads((tmp_path / "runs" / "chinese" / "training_report.json").read_text())
    spread = [entry["eval_zh_average_cosine"] for entry in report["log_history"] if "eval_zh_average_cosine" in entry]
    assert spread[0] > 0.8 and spread[-1] < spread[0] - 0.2
    hits = [line for line in said.splitlines() if line.endswith("。")]
    assert len(hits) == 3 and "孩子在公园里唱歌" in hits[0]


@pytest.mark.slow
def test_domain_adaptation(tmp_path, minilm):
    said = run("domain_adaptation.py", "--max_steps", "6", cwd=tmp_path)
    assert "on held-out queries" in said and "use: " in said
    assert (tmp_path / "runs" / "domain" / "report.html").is_file()


@pytest.mark.slow
def test_distil_and_quantise(tmp_path, minilm):
    pytest.importorskip("onnxruntime")
    said = run("distil_and_quantise.py", "--max_steps", "20", cwd=tmp_path)
    scores = {name.strip(): float(value) for name, value in re.findall(r"^  (\S.*?) +(\d+\.\d\d)$", said, re.MULTILINE)}
    assert scores["student"] > scores["3 layers, before training"]
    assert abs(scores["student, int8"] - scores["student"]) < 5
