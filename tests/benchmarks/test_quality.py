"""The race of methods: what each needs comes before it, and a stopped race goes on without doing anything twice."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
sys.path.insert(0, str(CHECKOUT / "benchmarks"))

import quality  # noqa: E402


def test_what_a_method_needs_comes_before_it_and_once(tmp_path):
    settings = argparse.Namespace(steps=12, batch=8, methods=["rank_four", "four", "uc", "cacse_after"])
    arm = quality.Arm("mine", "start", "mean", "sample:sentences.txt", "dev.tsv")
    stages, entrants = quality.race(arm, settings, 1, tmp_path / "seed-1")
    names = [stage.name for stage in stages]
    assert names == ["tncse", "two_towers", "rank_four", "diffcse", "simcse", "simcse_b", "cacse_after"]
    for stage in stages:
        assert all(names.index(other) < names.index(stage.name) for other in stage.needs)
        assert stage.settings["max_steps"] == 12
        assert stage.settings["pooling"] == "mean"
    assert entrants[0].models == ["rank_four/export/student"]
    assert [entrant.name for entrant in entrants] == ["rank_four", "four", "uc", "cacse_after", "cacse_after, tower A"]
    assert stages[5].settings["seed"] == 101
    settings.methods = quality.METHODS
    assert {entrant.name for entrant in quality.race(arm, settings, 1, tmp_path / "seed-1")[1]} >= {*quality.METHODS}
    settings.methods = ["half_student"]
    stages, _ = quality.race(arm, settings, 1, tmp_path / "seed-1")
    assert [(stage.name, stage.settings["max_steps"]) for stage in stages] == [("simcse_half", 6), ("half_student", 6)]


def test_the_interval_is_that_of_the_mean_over_seeds(tmp_path):
    """Two seeds whose differences cancel: the mean is 0, where either alone lies far from it."""
    import numpy as np

    gold = np.linspace(0, 5, 40)
    noise = np.random.default_rng(0).normal(size=40)
    folders = {}
    for name, cosine in {"good": gold, "bad": noise}.items():
        folders[name] = tmp_path / name
        (folders[name] / "pairs").mkdir(parents=True)
        contents = {"model": name, "pooling": "mean", "tasks": {}}
        for task in ("dev", "test"):
            np.savez(folders[name] / "pairs" / f"{task}.npz", cosine=cosine, gold=gold, subset=np.full(40, "all"))
            value = 100 * np.corrcoef(gold.argsort().argsort(), cosine.argsort().argsort())[0, 1]
            contents["tasks"][task] = {"spearman": value, "aggregation": "all", "n": 40}
        (folders[name] / "results.json").write_text(json.dumps(contents))
    good, bad = folders["good"], folders["bad"]
    gain, low, high = quality.against([good], [bad])
    assert 0 < low < gain < high
    assert quality.against([good, bad], [bad, good]) == pytest.approx([0, 0, 0], abs=1e-9)


@pytest.mark.slow
def test_a_race_is_run_and_goes_on(tmp_path, masked_lm, text_file, dev_file):
    words = ["--start", masked_lm, "--text", str(text_file), "--steps", "1", "--methods", "simcse", "rank_two"]
    words += ["--dev", str(dev_file), "--test", str(dev_file)]
    words += ["--folder", str(tmp_path / "race"), "--output", str(tmp_path / "r.json")]
    command = [sys.executable, str(CHECKOUT / "benchmarks" / "quality.py"), *words]
    first, again = (
        subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        for _ in range(2)
    )
    assert again.returncode == first.returncode == 0, first.stderr + again.stderr
    rows = [line["row"] for line in json.loads((tmp_path / "r.json").read_text())["rows"]]
    assert rows == [quality.START, quality.TRAINED_POOLING, quality.PEER, "simcse", "rank_two"]
    lines = [[line for line in run.stdout.splitlines() if line.startswith("{")] for run in (first, again)]
    assert lines[0] == lines[1]
    assert "trained 1 steps" in first.stdout + first.stderr
    assert "trained 1 steps" not in again.stdout + again.stderr
