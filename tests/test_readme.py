"""The README is a promise: its commands are parsed or run, its Python runs, its file tree is there."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, write_pairs, write_sentences
from tests.documents import blocks, check_command, commands

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", commands(ROOT / "README.md"), ids=" ".join)
def test_commands_are_known(command, tmp_path):
    """Scripts exist, targets exist, subcommands exist, and flags parse."""
    check_command(command, tmp_path)


def test_file_tree():
    tree = next(block for block in blocks(README, "") if "cacse_trainer/\n" in block)
    parent = ROOT
    for line in tree.splitlines():
        names = re.match(r"( *)((?:[\w./-]+ )*[\w./-]+)", line)
        if not names or not line.strip():
            continue
        base = parent if names[1] else ROOT
        for name in names[2].split("   ")[0].split():
            assert (base / name).exists(), f"{base / name} of the README's tree is missing"
        if not names[1]:
            parent = ROOT / names[2].split()[0]


def test_python_example(tmp_path, tiny_towers, monkeypatch):
    """The documentation's trainer, with the names of its models and files replaced by small ones."""
    a, b, constraint = tiny_towers("bert")
    write_sentences(tmp_path / "my_sentences.txt", 64)
    write_pairs(tmp_path / "sts-dev.csv", 12)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "guides" / "python.md").read_text(encoding="utf-8")
    code = next(block for block in blocks(page, "python") if "from_towers(" in block)
    replacements = {
        '"tower-a"': repr(a),
        '"tower-b"': repr(b),
        '"bert-base-uncased"': repr(constraint),
        "cascade_start_layer=7": "cascade_start_layer=2",
        "constraint_layers=4": "constraint_layers=1",
        "per_device_train_batch_size=64": "per_device_train_batch_size=8, max_steps=2, use_cpu=True",
        "_steps=100": "_steps=2",
    }
    for old, new in replacements.items():
        assert old in code, old
        code = code.replace(old, new)
    scope: dict = {}
    exec(code, scope)
    assert scope["trainer"].state.best_model_checkpoint.endswith("checkpoint-2")


def test_python_of_the_readme(minilm):
    """It runs as it stands, and the search finds the cello."""
    scope: dict = {}
    for code in blocks(README, "python"):
        exec(code, scope)
    assert scope["encoder"].search("a woman makes music", top_k=1, threshold=0.0)[0][0] == "She plays the cello."


@pytest.mark.slow
def test_the_run_script(tmp_path):
    """Two steps of the quick start through the script, in the environment that runs the tests."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    command = ["bash", str(ROOT / "run_unsup_example.sh"), "--max_steps", "2"]  # without --config: the quick start
    command += ["--eval_steps", "2", "--save_steps", "2", "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "baseline 7" in done.stdout
    assert {path.name for path in (tmp_path / "run" / "export").iterdir()} == {"tower_a", "tower_b", "ensemble"}


def test_the_run_script_passes_wrong_input_on(tmp_path):
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    command = ["bash", str(ROOT / "run_unsup_example.sh"), "--config", "no_such_recipe"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PATH": path})
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: no recipe 'no_such_recipe'")
