"""What users of the original projects type: it works, or one line says what to type instead."""

import json
import subprocess

import pytest

from cacse_trainer.cli import import_reference, sweep, train
from cacse_trainer.cli.common import run
from tests.conftest import ROOT


@pytest.fixture
def small(masked_lm, text_file, dev_file, tmp_path):
    return [
        *("--model", masked_lm, "--train_file", str(text_file), "--dev_file", f"stsb={dev_file}", "--max_steps", "2"),
        *("--eval_steps", "2", "--per_device_train_batch_size", "8", "--bf16", "false", "--use_cpu", "true"),
        *("--disable_tqdm", "true", "--output_dir", str(tmp_path / "run")),
    ]


def test_group_by_length_reads_raw_text(small, tmp_path):
    assert run(train.main, [*small, "--train_sampling_strategy", "group_by_length"]) == 0
    report = json.loads((tmp_path / "run" / "training_report.json").read_text())
    assert report["steps"] == 2 and report["settings"]["train_sampling_strategy"] == "group_by_length"


def test_groups_are_of_similar_length(make_trainer):
    from cacse_trainer.settings.arguments import CacseTrainingArguments

    trainer = make_trainer(kind=CacseTrainingArguments, train_sampling_strategy="group_by_length")
    order = list(trainer._get_train_sampler())
    lengths = [len(trainer.train_dataset[i]["sentence"]) for i in order]
    assert sorted(order) == list(range(64)) and lengths != sorted(lengths, reverse=True)
    spread = max(max(lengths[i : i + 8]) - min(lengths[i : i + 8]) for i in range(0, 64, 8))
    assert spread < (max(lengths) - min(lengths)) / 2


def test_sweep_takes_its_text_and_says_so_where_there_is_none(tmp_path, capsys):
    flags = ["--config", "simcse/minilm", "--seeds", "1", "2", "--output_dir", str(tmp_path / "sweep"), "--plan"]
    assert run(sweep.main, flags) == 2
    assert "recipe simcse/minilm names none; give --train_file FILE" in capsys.readouterr().err
    assert run(sweep.main, [*flags, "--train_file", "mine.txt"]) == 0
    assert capsys.readouterr().out.count("--train_file mine.txt") == 2


def test_a_training_of_this_package_is_not_imported_as_a_release(small, masked_lm, tmp_path, capsys):
    flags = ["--generator", masked_lm, "--export", "false", "--evaluation", "none", "--dev_file"]
    assert run(train.main, [*small[:4], *small[6:], *flags[:-1]]) == 0
    capsys.readouterr()
    where = ["--checkpoint", str(tmp_path / "run"), "--output_dir", str(tmp_path / "imported")]
    assert run(import_reference.main, [*where, "--head", "drop"]) == 2
    assert "is a training's own checkpoint (diffcse)" in capsys.readouterr().err
    assert run(import_reference.main, [*where, "--tower_a", masked_lm]) == 2
    told = capsys.readouterr()
    assert len(told.out) + len(told.err) < 3000


@pytest.mark.parametrize(
    "script",
    [
        *("scripts/download_nli.sh", "scripts/download_wiki.sh", "SentEval/data/downstream/download_dataset.sh"),
        "SentEval/data/probing/download_probing.sh",
    ],
)
def test_scripts_start_by_sh_too(script):
    """As the originals' pages have it: ``sh download_dataset.sh``."""
    place = (ROOT / script).parent
    done = subprocess.run(["sh", (ROOT / script).name, "--help"], cwd=place, capture_output=True, text=True, timeout=60)
    assert "Illegal option" not in done.stderr and "download" in done.stdout + done.stderr
