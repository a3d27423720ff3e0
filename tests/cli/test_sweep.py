"""`cacse-trainer sweep`: the runs of a grid, their table and card; going on, adding seeds, failures, refusals."""

import json
import sys

import pytest
import yaml

from cacse_trainer.cli import sweep
from cacse_trainer.cli.common import run
from cacse_trainer.errors import UserError
from cacse_trainer.pipeline import runner
from cacse_trainer.pipeline.sweep import parse_grid, sweep_runs
from cacse_trainer.pipeline.sweep_report import SECTION
from tests.report.test_report import check_page

# Stands for a training process: leaves what one leaves, with a score that follows from seed and learning rate.
STAND_IN = """
import json, os, pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder, seed, rate = pathlib.Path(flags["--output_dir"]), int(flags["--seed"]), float(flags["--learning_rate"])
print("gpu", os.environ.get("CUDA_VISIBLE_DEVICES"))
if os.environ.get("STAND_IN_FAILS") == flags["--seed"]:
    print("error: it broke")
    sys.exit(int(os.environ["STAND_IN_CODE"]))
card = folder / "export" / "encoder" / "README.md"
card.parent.mkdir(parents=True)
card.write_text("---\\nlibrary_name: sentence-transformers\\ntags:\\n- cacse-trainer\\n---\\n# a card\\n")
best = 80 + seed + 1000 * rate
curve = [{"step": step, "loss": 1.0, "eval_stsb_spearman": best - 5 + step} for step in range(6)]
report = {"metric": "stsb_spearman", "best": best, "baseline": 70.0, "settings": {"greater_is_better": True}}
report |= {"log_history": curve, "steps": 5}
report["exported"] = {"encoder": {"stsb": best - 0.5}}
(folder / "training_report.json").write_text(json.dumps(report))
"""


@pytest.fixture
def stand_in(monkeypatch):
    """Instead of the training command."""
    words = lambda stage, root, *, resume: [sys.executable, "-c", STAND_IN, *stage.flags(root)]  # noqa: E731
    monkeypatch.setattr(runner, "command_line", words)


@pytest.fixture
def command(tmp_path, text_file):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"train_file": str(text_file), "learning_rate": 1e-5}))
    return ["--config", str(recipe), "--output_dir", str(tmp_path / "out"), "--grid", "learning_rate=0.001,0.002"]


def test_mean_and_deviation_reach_table_and_card(command, stand_in, tmp_path, capsys):
    """Scores are 80 + seed + 1000·rate: for the rate 0.001 the seeds 1, 2, 3 give 82, 83, 84."""
    assert run(sweep.main, [*command, "--seeds", "1", "2", "3", "--parallel", "2", "--gpus", "5", "7"]) == 0
    printed = capsys.readouterr().out
    assert "| 0.001 | 3 | 83.00 ± 1.00 | 70.00 ± 0.00 | 82.50 ± 1.00 |" in printed
    assert "| 0.002 | 3 | 84.00 ± 1.00 |" in printed and "best run is `learning_rate-0.002_seed-3`" in printed
    out = tmp_path / "out"
    report = json.loads((out / "sweep_report.json").read_text())
    point = report["points"][1]
    assert point["point"] == {"learning_rate": 0.002} and point["scores"]["best on dev"] == {
        "n": 3,
        "mean": 84.0,
        "std": 1.0,
        "low": pytest.approx(84 - 4.302653 / 3**0.5),
        "high": pytest.approx(84 + 4.302653 / 3**0.5),
        "least": 83.0,
        "largest": 85.0,
    }
    text = (out / "sweep_report.html").read_text()
    tags = check_page(text)
    assert "[81.52, 86.48]" in text and "learning_rate 0.002" in text and tags.count("svg") == 2
    assert text.count("fill-opacity: 0.18") == 4  # the seeds of two points, scores and loss
    assert 'href="learning_rate-0.002_seed-3/report.html"' in text
    cards = {path.parts[-4]: path.read_text() for path in out.glob("*/export/encoder/README.md")}
    assert [name for name, card in cards.items() if SECTION in card] == ["learning_rate-0.002_seed-3"]
    assert "83.00 ± 1.00" in cards["learning_rate-0.002_seed-3"]
    gpus = {(out / f"{name}.log").read_text().strip() for name in cards}
    assert gpus == {"gpu 5", "gpu 7"}


def test_finished_runs_are_skipped_and_new_ones_added(command, stand_in, tmp_path, capsys, caplog):
    caplog.set_level("INFO", "cacse_trainer")
    assert run(sweep.main, [*command, "--seeds", "1", "2"]) == 0
    caplog.clear()
    assert run(sweep.main, [*command, "--seeds", "1", "2", "3"]) == 0
    assert caplog.text.count("finished before, skipped") == 4 and caplog.text.count(": done in") == 2
    cards = {path.parts[-4] for path in (tmp_path / "out").glob("*/export/*/README.md") if SECTION in path.read_text()}
    assert cards == {"learning_rate-0.002_seed-3"}  # no longer that of seed 2
    assert run(sweep.main, [*command, "--seeds", "1", "--set", "max_steps=7"]) == 2
    assert "made with other settings" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "out" / "learning_rate-0.001_seed-1" / "training_report.json").is_file()
    assert run(sweep.main, [*command, "--seeds", "1", "--set", "max_steps=7", "--overwrite"]) == 0
    assert run(sweep.main, [*command, "--seeds", "1", "9", "--plan", "--set", "max_steps=7"]) == 0
    planned = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split()[0] for line in planned] == ["skip", "run", "skip", "run"]


@pytest.mark.parametrize(("code", "exit_code"), [(1, 1), (2, 2)])
def test_failures(command, stand_in, tmp_path, monkeypatch, capsys, code, exit_code):
    """A run that breaks leaves the others to go on; wrong input stops the sweep. The next call does what is left."""
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    monkeypatch.setenv("STAND_IN_CODE", str(code))
    assert run(sweep.main, [*command, "--seeds", "1", "2"]) == exit_code
    printed = capsys.readouterr()
    assert ("it broke" if code == 2 else "2 of 4 runs failed") in printed.err.splitlines()[-1]
    assert ("2 of 4 runs are finished" in printed.out) == (code == 1)
    monkeypatch.delenv("STAND_IN_FAILS")
    if code == 2:  # nothing was trained: the mended settings are simply used
        command = [*command, "--set", "max_steps=3"]
    assert run(sweep.main, [*command, "--seeds", "1", "2"]) == 0
    assert "4 of 4 runs are finished" in capsys.readouterr().out


def test_a_killed_sweep_leaves_no_run_behind(command, tmp_path, monkeypatch):
    """Its runs are ended with it, and the next call goes on with them."""
    words = lambda stage, root, *, resume: [sys.executable, "-c", "import time; time.sleep(600)"]  # noqa: E731
    monkeypatch.setattr(runner, "command_line", words)
    started = []
    original = runner._Process.__init__

    def spy(self, *arguments, **more):
        original(self, *arguments, **more)
        started.append(self.popen)

    def interrupt(seconds):
        if len(started) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(runner._Process, "__init__", spy)
    monkeypatch.setattr(runner.time, "sleep", interrupt)
    assert run(sweep.main, [*command, "--parallel", "2"]) == 130
    assert [process.poll() is not None for process in started] == [True, True]
    record = runner.read_record(tmp_path / "out", runner.SWEEP)
    assert len(record) == 2 and not any(entry["finished"] for entry in record.values())


def test_grids_are_read_as_yaml(tmp_path):
    grid = parse_grid(["learning_rate=1e-5,3e-5", "tower_dropout=[0.1, 0.1],[0.2, 0.2]", "mlp_only_train=true"])
    assert grid == {
        "learning_rate": ["1e-5", "3e-5"],
        "tower_dropout": [[0.1, 0.1], [0.2, 0.2]],
        "mlp_only_train": [True],
    }
    runs = sweep_runs("r", "train", tmp_path, seeds=[1, 2], grid={"model": ["a/b", "c/b"]}, settings={})
    assert len({one.stage.name for one in runs}) == 4  # both end in b
    assert all("/" not in one.stage.name for one in runs)
    for entry in ("learning_rate", "learning_rate=", "=1", "seed=1,2", "a=[1", "../../evil=1"):
        with pytest.raises(UserError, match="--grid"):
            parse_grid([entry])
    with pytest.raises(UserError, match="asked for twice"):
        sweep_runs("r", "train", tmp_path, seeds=[1, 1], grid={}, settings={})


def test_what_no_run_of_the_sweep_made_is_left_alone(command, stand_in, tmp_path, capsys):
    """Also by --overwrite, which is for runs that the sweep has recorded."""
    thesis = tmp_path / "out" / "learning_rate-0.001_seed-42" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    assert run(sweep.main, [*command, "--overwrite"]) == 2
    assert "no run of this sweep made it; move it" in capsys.readouterr().err and thesis.is_file()


@pytest.mark.slow
def test_a_real_sweep(tmp_path, tiny_towers, text_file, dev_file, capsys):
    """Two seeds of a small SimCSE run, two at once."""
    fields = {"model": tiny_towers("bert")[0], "pooling": "cls", "train_file": str(text_file), "max_steps": 2}
    fields.update(dev_file=[f"stsb={dev_file}"], eval_strategy="steps", eval_steps=2, save_steps=2, use_cpu=True)
    fields.update(per_device_train_batch_size=8, metric_for_best_model="stsb_spearman", load_best_model_at_end=True)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**fields, "save_strategy": "steps", "report_to": "none", "bf16": False}))
    flags = ["--config", str(recipe), "--seeds", "1", "2", "--parallel", "2", "--output_dir", str(tmp_path / "out")]
    assert run(sweep.main, flags) == 0
    report = json.loads((tmp_path / "out" / "sweep_report.json").read_text())
    assert report["points"][0]["scores"]["best on dev"]["n"] == 2 and report["best"] in ("seed-1", "seed-2")
    card = (tmp_path / "out" / report["best"] / "export" / "encoder" / "README.md").read_text()
    assert "The best of 2 runs by stsb_spearman" in card
