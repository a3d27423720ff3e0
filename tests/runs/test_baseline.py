"""A run is measured against its start as the start's own folder states it, on held-out pairs where there are any."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli.main import main
from cacse_trainer.data import load_pairs
from cacse_trainer.encoding.sentence_transformers import write_modules
from cacse_trainer.evaluation.compare import difference_of
from cacse_trainer.evaluation.dev_sets import Answers, GradedPairs
from cacse_trainer.evaluation.sts import score_pairs
from cacse_trainer.runs.baseline import judge, outcome
from cacse_trainer.training.baseline import Reading
from tests.conftest import write_pairs


@pytest.fixture
def stating(tiny_towers, tmp_path):
    """``stating(pooling)`` → a tiny encoder's folder that states it, with a length limit of 8."""

    def make(pooling: str, tower: int = 0) -> str:
        folder = tmp_path / f"start_{pooling}_{tower}"
        shutil.copytree(tiny_towers("bert")[tower], folder)
        write_modules(folder, pooling=pooling, hidden_size=32, max_seq_length=8)
        return str(folder)

    return make


@pytest.fixture
def run(text_file, dev_file, tmp_path, caplog):
    """``run(*flags)`` → the report of two steps, the log and the run's folder."""

    def train(*flags: str) -> tuple[dict, str, Path]:
        caplog.clear()
        folder = tmp_path / "run"
        given = ["--train_file", str(text_file), "--dev_file", f"mine={dev_file}", "--output_dir", str(folder)]
        given += ["--max_steps", "2", "--eval_steps", "2", "--per_device_train_batch_size", "8", "--bf16", "false"]
        assert main(["train", *given, "--use_cpu", "true", "--overwrite_output_dir", *flags]) == 0
        return json.loads((folder / "training_report.json").read_text()), caplog.text, folder

    return train


def score_of(folder: str, pairs: Path) -> float:
    return score_pairs(SentenceEncoder(folder, device="cpu").embedder, load_pairs(str(pairs)))["spearman"]


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_what_the_start_states_is_trained_and_is_the_baseline(stating, run, dev_file, pooling):
    start = stating(pooling)
    report, said, folder = run("--model", start)
    assert report["settings"]["pooling"] == pooling and "this run reads it by" not in said
    assert report["baseline"] == pytest.approx(score_of(start, dev_file), abs=1e-9)
    assert report["start"]["pooling"] == pooling
    assert SentenceEncoder(str(folder / "export" / "encoder")).pooling == pooling
    assert f"{report['baseline']:.2f}" in (folder / "export" / "encoder" / "README.md").read_text()


def test_a_stated_first_token_stays_raw_at_inference(stating, run, dev_file):
    start = stating("cls")
    report, _, folder = run("--model", start)
    assert report["settings"]["pooling"] == "cls" and report["settings"]["mlp_only_train"]
    assert report["baseline"] == pytest.approx(score_of(start, dev_file), abs=1e-9)
    assert not (folder / "export" / "encoder" / "2_Dense").exists()


def test_another_pooling_is_said_and_measured_against_what_is_stated(stating, run, dev_file):
    start = stating("mean")
    report, said, _ = run("--model", start, "--pooling", "cls", "--mlp_only_train", "true")
    assert "states mean pooling, and this run reads it by cls" in said
    assert report["baseline"] == report["verdict"]["start"] == pytest.approx(score_of(start, dev_file), abs=1e-9)
    assert report["untrained"] == report["curve"][0]["value"] != report["baseline"]
    assert report["verdict"]["set"] == "mine" and not report["verdict"]["held_out"]


def test_a_plain_checkpoint_is_measured_before_its_first_step(tiny_towers, run):
    report, _, _ = run("--model", tiny_towers("bert")[0])
    assert report["settings"]["pooling"] == "cls" and report["baseline"] == report["untrained"]
    assert report["verdict"]["start"] == pytest.approx(report["untrained"], abs=1e-9)


def test_towers_are_read_as_both_state_and_the_better_one_is_the_baseline(stating, run, dev_file):
    towers = [stating("mean", 0), stating("mean", 1)]
    report, _, folder = run("--tower_a", towers[0], "--tower_b", towers[1], "--cascade_start_layer", "2")
    assert report["settings"]["pooling"] == "mean"
    assert report["baseline"] == pytest.approx(max(score_of(tower, dev_file) for tower in towers), abs=1e-9)
    assert {SentenceEncoder(str(folder / "export" / name)).pooling for name in ("tower_a", "tower_b", "ensemble")} == {
        "mean"
    }


def test_held_out_pairs_tell_the_verdict_and_choose_nothing(stating, run, tmp_path, dev_file):
    held_out = write_pairs(tmp_path / "held-out.tsv", 12)
    start = stating("mean")
    report, _, _ = run("--model", start, "--test_file", str(held_out))
    assert report["verdict"]["set"] == "held_out" and report["verdict"]["held_out"]
    assert report["metric"] == "mine_spearman" and "eval_held_out_spearman" not in json.dumps(report["log_history"])
    assert report["verdict"]["trained"] == pytest.approx(report["exported"]["encoder"]["held_out"], abs=1e-3)
    assert main(["train", "--model", start, "--dev_file", str(dev_file), "--test_file", str(dev_file)]) == 2


@pytest.mark.parametrize(("shift", "expected"), [(0.0, "helped"), (2.0, "did not help")])
def test_the_verdict_goes_by_the_interval(shift, expected):
    random = np.random.default_rng(0)
    gold = random.uniform(0, 5, 200)
    noisy, good = gold + random.normal(0, 3, 200), gold + random.normal(0, 0.5 + 3 * shift, 200)
    sets = {"pairs": GradedPairs(Dataset.from_dict({"score": gold}))}
    start, trained = (Reading("", "mean", {"pairs": Answers(cosines, {})}, {}) for cosines in (noisy, good))
    found = judge(start, trained, sets, [])
    assert found["outcome"] == expected and found["low"] <= found["trained"] - found["start"] <= found["high"]


def test_a_gain_within_chance_is_unclear():
    gold = np.arange(20.0)
    first, second = gold.copy(), gold.copy()
    first[[3, 9]] = first[[9, 3]]
    second[[4, 8]] = second[[8, 4]]
    found = difference_of("pairs", first, second, gold)
    assert found.difference > 0 and outcome(found) == "unclear"
    assert outcome(difference_of("pairs", second, first, gold)) == "did not help"


def test_a_recipes_head_goes_where_the_start_states_a_pooling_without_one(stating, run, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("mlp_only_train: true\n")
    report, _, _ = run("--config", str(recipe), "--model", stating("mean"))
    assert report["settings"]["pooling"] == "mean" and report["settings"]["mlp_only_train"] is None
    flags = ("--model", stating("max"), "--mlp_only_train", "true", "--train_file", "x.txt")
    assert main(["train", *flags]) == 2
