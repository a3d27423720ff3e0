"""`cacse-trainer pipeline`: stages run, skipped, resumed and done anew; the report; references and refusals."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from cacse_trainer.cli import pipeline
from cacse_trainer.cli.common import run
from cacse_trainer.encoding.model_card import CardFacts, render_card
from cacse_trainer.errors import RunError, UserError
from cacse_trainer.files import only_one
from cacse_trainer.pipeline import runner
from cacse_trainer.pipeline.report import stage_scores
from cacse_trainer.pipeline.runner import command_line, plan, read_record, run_stages
from cacse_trainer.pipeline.stages import Stage, parse_change, read_stages
from cacse_trainer.runs.folder import RUN
from cacse_trainer.settings.resources import find_recipe, recipe_names


@pytest.fixture
def recipe(tmp_path, tiny_towers, text_file, dev_file):
    """A pipeline of tiny towers: two SimCSE runs, the joint training, a student, an export."""
    model = tiny_towers("bert")[0]
    fields = {
        "output_dir": str(tmp_path / "out"),
        "common": {
            "train_file": str(text_file),
            "dev_file": [f"stsb={dev_file}"],
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "eval_steps": 2,
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
        },
        "stages": {
            "tower_a": {"model": model, "mlp_only_train": True, "seed": 1},
            "tower_b": {"model": model, "mlp_only_train": True, "seed": 2},
            "joint": {
                "tower_a": "stage:tower_a/export/encoder",
                "tower_b": "stage:tower_b/export/encoder",
                "cascade_start_layer": 2,
                "constraint_layers": 1,
            },
            "distill": {"student": model, "teachers": [{"path": "stage:joint/export", "weight": 1.0}]},
            "export": {"checkpoint": "stage:distill"},
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
    return path


@pytest.fixture
def fake_commands(monkeypatch):
    """Instead of starting processes: what each stage would leave; returns the stages run, with their resume flag."""
    ran = []

    def fake(stage, root, *, resume):
        ran.append((stage.name, resume))
        stage.folder.mkdir(parents=True, exist_ok=True)
        if stage.command == "export":
            (stage.folder / "student").mkdir(exist_ok=True)
            (stage.folder / "student" / "README.md").write_text(render_card(CardFacts("", "")))
        else:
            report = {"model": "X", "metric": None, "exported": {}}
            (stage.folder / "training_report.json").write_text(json.dumps(report))
            (stage.folder / RUN).write_text("[]")

        return ["true"]

    monkeypatch.setattr(runner, "command_line", fake)
    monkeypatch.setattr(runner, "SECONDS_BETWEEN_LOOKS", 0.01)
    return ran


def todo(recipe, **changes) -> dict[str, str]:
    root, stages = read_stages(recipe, None, changes)
    return {stage.name: what for stage, _, what in plan(stages, read_record(root))}


def test_skip_resume_and_redo(recipe, fake_commands, text_file):
    root, stages = read_stages(recipe, None, {})
    run_stages(root, stages)
    assert [name for name, _ in fake_commands] == ["tower_a", "tower_b", "joint", "distill", "export"]
    assert set(todo(recipe).values()) == {"skip"}
    run_stages(root, stages)
    assert len(fake_commands) == 5
    # a changed setting redoes its stage and what follows from it, not the other tower
    changed = todo(recipe, **{"tower_b.seed": 3})
    assert changed == {"tower_a": "skip", "tower_b": "redo", "joint": "redo", "distill": "redo", "export": "redo"}
    # an unfinished stage goes on
    (root / "joint" / "training_report.json").unlink()
    assert todo(recipe)["joint"] == "resume"
    run_stages(root, stages)
    assert fake_commands[-1] == ("joint", True)
    # changed text redoes all
    text_file.write_text(text_file.read_text() + "one more line\n")
    assert set(todo(recipe).values()) == {"redo"}


def test_the_plan_as_json(recipe, capsys):
    assert run(pipeline.main, ["--config", str(recipe), "--plan", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["plan"].values()) == {"run"}


def test_a_foreign_folder_is_left_alone(recipe, fake_commands, tmp_path):
    root, stages = read_stages(recipe, None, {})
    (root / "tower_a").mkdir(parents=True)
    (root / "tower_a" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no stage of this pipeline made it"):
        run_stages(root, stages)
    assert (root / "tower_a" / "thesis.txt").is_file() and not fake_commands


@pytest.mark.parametrize(
    "name",
    ["tower_b/notes.txt", "tower_b/vocab.txt", "export/student/notes.txt", "export/.mine", "export/mine/notes.txt"],
)
def test_a_stage_is_done_anew_only_where_all_is_its_own(recipe, fake_commands, text_file, name):
    root, stages = read_stages(recipe, None, {})
    run_stages(root, stages)
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("mine")
    text_file.write_text(text_file.read_text() + "one more line\n")
    root, stages = read_stages(recipe, None, {})
    with pytest.raises(UserError, match=f"did not write {name.partition('/')[2]}"):
        run_stages(root, stages)
    assert len(fake_commands) == 5 and (root / name).read_text() == "mine"
    (root / name).unlink()
    run_stages(root, stages)
    assert len(fake_commands) == 10


@pytest.mark.parametrize("text", ["{", "[]", '{"tower_a": 3}'])
def test_a_damaged_record_is_one_line(recipe, fake_commands, text):
    root, stages = read_stages(recipe, None, {})
    root.mkdir(parents=True)
    (root / "pipeline.json").write_text(text)
    with pytest.raises(UserError, match=r"pipeline.json: .*; delete it"):
        run_stages(root, stages)


def test_a_damaged_report_of_a_stage_is_one_line(recipe, fake_commands):
    root, stages = read_stages(recipe, None, {})
    run_stages(root, stages)
    (root / "joint" / "training_report.json").write_text("{")
    with pytest.raises(UserError, match=r"training_report.json: .*; run the stage joint anew"):
        stage_scores(stages[2])


def test_two_at_once_do_not_share_a_folder(recipe, fake_commands):
    root, stages = read_stages(recipe, None, {})
    root.mkdir(parents=True)
    with only_one(root / "pipeline.json"), pytest.raises(UserError, match="another process"):
        run_stages(root, stages)
    assert not fake_commands


def test_command_lines(recipe, tmp_path):
    root, stages = read_stages(recipe, str(tmp_path / "elsewhere"), dict([parse_change("distill.learning_rate=1e-4")]))
    named = {stage.name: " ".join(command_line(stage, root, resume=False)) for stage in stages}
    assert f"--tower_a {root}/tower_a/export/encoder" in named["joint"]
    assert f"--teachers path={root}/joint/export,weight=1 " in named["distill"]
    assert "--learning_rate 1e-4" in named["distill"] and "--use_cpu true" in named["distill"]
    assert named["export"].endswith(
        f"-m cacse_trainer.cli.export --checkpoint {root}/distill --output_dir {root}/export"
    )
    several = Stage("x", "train", {"model": "m"}, root / "x", processes=2)
    assert "torch.distributed.run --standalone --nproc_per_node 2 -m cacse_trainer.cli.train" in " ".join(
        command_line(several, root, resume=False)
    )
    scored = Stage("x", "evaluate", {"model": ["m", "n"], "suite": "sts", "overwrite": True, "bf16": False}, root / "x")
    assert scored.flags(root) == [
        "--model",
        "m",
        "--model",
        "n",
        "--suite",
        "sts",
        "--overwrite",
        "--output_dir",
        f"{root}/x",
    ]


def test_what_a_stage_says_is_shown_logged_and_told(tmp_path, monkeypatch, capsys):
    """Its own line of an error becomes the pipeline's; a stage after it is not started."""
    said = "import sys; print('half', end='', flush=True); print(' a line'); print('error: no such file'); sys.exit({})"
    words = lambda stage, root, *, resume: [sys.executable, "-c", said.format(stage.settings["code"])]  # noqa: E731
    monkeypatch.setattr(runner, "command_line", words)
    for code, kind, message in (
        (2, UserError, "stage a: no such file"),
        (3, RunError, "stage a ended with 3: no such"),
    ):
        stages = [Stage(name, "train", {"code": code}, tmp_path / name) for name in ("a", "b")]
        with pytest.raises(kind, match=message):
            run_stages(tmp_path, stages)
        assert capsys.readouterr().err == "half a line\nerror: no such file\n"
        assert (tmp_path / "a.log").read_text().endswith("half a line\nerror: no such file\n")
        assert list(read_record(tmp_path)) == ["a"] and not (tmp_path / "b.log").exists()


def test_records_of_earlier_versions_are_read(recipe, fake_commands):
    """A stage's hash never changes: what an earlier version finished is not done again."""
    stage = Stage("a", "train", {"model": "m", "seed": 3, "dev_file": ["x=stage:t/d"]}, Path("out/a"), ["t"])
    assert stage.fingerprint({"t": "00"}) == "b679329785ceaeea566b938d"
    root, stages = read_stages(recipe, None, {})
    record = run_stages(root, stages)
    for entry in record.values():
        assert set(entry) == {"fingerprint", "command", "seconds", "finished"} and entry["finished"]
    assert set(todo(recipe).values()) == {"skip"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stages": {"../../evil": {"command": "train"}}}, "stage '../../evil': its name is that of a folder"),
        ({"stages": {"/tmp/evil": {"command": "train"}}}, "its name is that of a folder"),
        ({"stages": {"..": {"command": "train"}}}, "its name is that of a folder"),
        ({"stages": {".hidden": {"command": "train"}}}, "its name is that of a folder"),
        ({"stages": {"pipeline.json": {"command": "train"}}}, "its name is that of a folder"),
        ({"stages": {"c:": {"command": "train"}}}, "its name is that of a folder"),
        ({"stages": {"tower_a": {"model": "stage:joint"}}}, "refers to stage:joint, which is no earlier stage"),
        ({"stages": {"warm_up": {}}}, "stage warm_up needs command: one of distill"),
        ({"stages": {"tower_a": 3}}, "must be a mapping"),
        ({"stagse": {}}, "unknown key 'stagse'"),
        ({"output_dir": "x"}, "no stages"),
    ],
)
def test_wrong_recipes(tmp_path, change, words):
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(change))
    with pytest.raises(UserError, match=words):
        read_stages(tmp_path / "wrong.yaml", None, {})


def test_wrong_flags(recipe, capsys):
    for flags, words in ((["--set", "joint=3"], "STAGE.FIELD=VALUE"), (["--only", "jont"], "did you mean joint?")):
        assert run(pipeline.main, ["--config", str(recipe), *flags]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("pipeline/")])
def test_shipped_recipes(name, tmp_path, capsys):
    """Every stage's settings pass its command's own parser."""
    from cacse_trainer.cli.evaluate import parser
    from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
    from cacse_trainer.settings.distillation import DistillationArguments
    from cacse_trainer.settings.recipes import RecipeParser, parse_run

    root, stages = read_stages(find_recipe(name), str(tmp_path / "out"), {})
    commands = [stage.command for stage in stages if stage.command != "evaluate"]
    assert commands[-1] == "export" and commands.index("train") < commands.index("distill")
    for stage in stages:
        flags = stage.flags(root)
        if stage.command in ("train", "distill"):
            kind = ModelArguments if stage.command == "train" else DistillationArguments
            parsed = parse_run(RecipeParser([kind, DataArguments, CacseTrainingArguments], prog="x"), flags)
            assert parsed.groups[2].save_steps == parsed.groups[2].eval_steps
        elif stage.command == "evaluate":
            assert parser().parse_args(flags).suite == ["sts"]
    assert f"--config {name}" in find_recipe(name).read_text()


@pytest.mark.slow
def test_the_whole_chain_for_real(recipe, tmp_path, capsys, senteval_sample):
    """Every stage in its own process; interrupted in the middle, it goes on; the report has every score."""
    fields = yaml.safe_load(recipe.read_text())
    fields["stages"]["evaluate"] = {
        "model": "stage:distill/export/student",
        "tasks": ["STSBenchmark", "STS12"],
        "data_dir": str(senteval_sample),
    }
    recipe.write_text(yaml.safe_dump(fields, sort_keys=False))
    assert run(pipeline.main, ["--config", str(recipe), "--only", "tower_a", "tower_b"]) == 0
    root = tmp_path / "out"
    (root / "tower_b" / "training_report.json").unlink()
    shutil.rmtree(root / "tower_b" / "export")
    assert run(pipeline.main, ["--config", str(recipe)]) == 0
    said = capsys.readouterr().out
    assert f"{root}/report.html" in said
    assert set(todo(recipe).values()) == {"skip"}
    text = (root / "pipeline_report.md").read_text()
    for words in (
        "| tower_a | encoder, exported | stsb |",
        "| joint | sum of the towers, before",
        "| distill | teacher | stsb |",
    ):
        assert words in text
    joint = json.loads((root / "joint" / "training_report.json").read_text())
    assert f"| joint | sum of the towers, exported | stsb | {joint['exported']['ensemble']['stsb']:.2f} |" in text
    scores = json.loads((root / "evaluate" / "results.json").read_text())["tasks"]
    assert f"| evaluate | student | STS12 | {scores['STS12']['spearman']:.2f} |" in text
    page = (root / "report.html").read_text()
    assert page.count("<h2>Stage ") == 4 and page.count("Spearman ×100</figcaption>") == 4 and "<table>" in page
    assert (root / "joint" / "report.html").is_file()
    assert (root / "export" / "student" / "model.safetensors").is_file()
    wrong = ["--config", str(recipe), "--set", "tower_a.learning_rate=fast"]
    assert run(pipeline.main, wrong) == 2
    assert "stage tower_a" in capsys.readouterr().err
