"""No pickle is run, no token is written, archives stay in their folder, temporary files are private."""

import ast
import os
import re
from pathlib import Path

import pytest

from cacse_trainer.cli import distill, export, instruct, pipeline, sweep, train
from cacse_trainer.cli.common import run
from cacse_trainer.pipeline import runner
from tests.conftest import ROOT
from tests.faults.runs import prepare

SOURCES = [
    path
    for folder in ("cacse_trainer", "SentEval", "scripts", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


FORBIDDEN = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "shelve.open"),
    *("eval", "exec", "os.system"),
}


def calls(path: Path):
    """(dotted name, its call) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_and_nothing_extracted_blindly(path):
    for name, call in calls(path):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if name == "torch.load":
            assert ast.unparse(given["weights_only"]) == "True", f"{path}:{call.lineno}"
        elif name in ("np.load", "numpy.load"):
            assert ast.unparse(given.get("allow_pickle", ast.Constant(False))) == "False", f"{path}:{call.lineno}"
        elif name in FORBIDDEN:
            pytest.fail(f"{path}:{call.lineno}: {name}")
        elif name.endswith((".extractall", ".extract")):
            assert "filter" in given, f"{path}:{call.lineno}: an archive extracted without filter='data'"
        elif "trust_remote_code" in given:
            value = given["trust_remote_code"]
            assert not (isinstance(value, ast.Constant) and value.value is True) or "trust_remote_code" in re.sub(
                r"trust_remote_code=True", "", path.read_text()
            ), f"{path}:{call.lineno}: remote code without being asked"


TOKEN = "hf_" + "secret" * 5


@pytest.fixture
def no_leak(tmp_path, capsys, caplog, monkeypatch):
    """Runs a command that is given the token; afterwards no file and nothing that was said holds it."""
    monkeypatch.setenv("HF_TOKEN", "")

    def check(main, *arguments: str, code: int = 0) -> None:
        assert run(main, arguments) == code
        holding = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
        said = capsys.readouterr()
        assert holding == [] and TOKEN not in said.out + said.err + caplog.text

    return check


def test_training_distilling_and_exporting_write_no_token(tmp_path, no_leak):
    """Not into the report, the pickled arguments, the checkpoints, the cards, nor the log; by every spelling."""
    shared = [*prepare(tmp_path / "parts"), "--max_steps", "2"]
    out = tmp_path / "run"
    no_leak(train.main, *shared, "--output_dir", str(out), "--hub-token", TOKEN, f"--hub_token={TOKEN}")
    assert (out / "training_args.bin").is_file() and (out / "report.html").is_file()
    no_leak(export.main, "--checkpoint", str(out), "--output_dir", str(tmp_path / "exported"), f"--hub-token={TOKEN}")
    rest = shared[shared.index("--train_file") :]
    student = ["--student", str(tmp_path / "parts" / "a"), "--teacher", str(tmp_path / "parts" / "b")]
    no_leak(distill.main, *student, *rest, "--output_dir", str(tmp_path / "student"), "--hub_token", TOKEN)
    no_leak(train.main, *shared, "--output_dir", str(tmp_path / "other"), f"--hub_tokn={TOKEN}", code=2)


def test_a_recipe_with_a_token_is_the_only_file_that_holds_it(tmp_path, no_leak):
    recipe = tmp_path.parent / f"{tmp_path.name}.yaml"
    recipe.write_text(f"hub_token: {TOKEN}\n")
    no_leak(
        train.main, "--config", str(recipe), *prepare(tmp_path), "--max_steps", "1", "--output_dir", f"{tmp_path}/r"
    )


@pytest.mark.parametrize("value", [f"[{TOKEN}]", f"{{a: {TOKEN}}}"])
def test_a_token_of_the_wrong_shape_is_not_told(value, tmp_path, no_leak):
    recipe = tmp_path.parent / f"{tmp_path.name}.yaml"
    recipe.write_text(f"hub_token: {value}\n")
    no_leak(train.main, "--config", str(recipe), "--output_dir", f"{tmp_path}/r", code=2)
    no_leak(pipeline.main, "--config", "pipeline/small", "--plan", "--set", f"joint.hub_token=[{TOKEN}", code=2)


def test_a_token_of_the_environment_is_written_nowhere(tmp_path, no_leak, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    no_leak(train.main, *prepare(tmp_path), "--max_steps", "1", "--output_dir", f"{tmp_path}/r")


@pytest.mark.parametrize("flag", [f"common.hub_token={TOKEN}", f"tower_a.hub-token={TOKEN}"])
def test_pipelines_hand_a_token_on_by_the_environment(flag, tmp_path, no_leak, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output_dir: {tmp_path}/out\nstages: {{tower_a: {{config: simcse/minilm}}}}\n")
    given = ["--config", str(recipe), "--set", flag, "tower_a.seed=1"]
    no_leak(pipeline.main, *given, "--plan")

    def leave_a_report(stage, root, *, resume):
        assert os.environ["HF_TOKEN"] == TOKEN and not any(TOKEN in word for word in stage.flags(root))
        stage.folder.mkdir(parents=True)
        (stage.folder / "training_report.json").write_text("{}")
        return ["true"]

    monkeypatch.setattr(runner, "command_line", leave_a_report)
    no_leak(pipeline.main, *given)
    assert "--set tower_a.seed=1" in (tmp_path / "out" / "pipeline_report.md").read_text()


def test_sweeps_hand_a_token_on_by_the_environment(tmp_path, no_leak):
    given = ["--config", "simcse/minilm", "--train_file", "sample:sentences.txt", "--plan"]
    given += ["--output_dir", str(tmp_path / "out")]
    no_leak(sweep.main, *given, "--set", f"hub_token={TOKEN}", f"--grid=hub-token={TOKEN}", code=2)
    no_leak(sweep.main, *given, "--set", f"hub-token={TOKEN}", "seed=1")
    assert os.environ["HF_TOKEN"] == TOKEN


def test_instruct_hands_a_token_on_by_the_environment(tmp_path, no_leak, monkeypatch):
    ran = []
    monkeypatch.setattr(instruct, "run_stage", lambda name, root, settings: ran.append(settings.training))
    words = ["--output_dir", str(tmp_path / "out"), "--model", "m", "--pairs", f"a={ROOT}/examples/sample/dev.tsv"]
    no_leak(instruct.main, *words, "--plan", "--hub-token", TOKEN)
    no_leak(instruct.main, *words, "--run_stage", "train", f"--hub-token={TOKEN}")
    assert ran[0].hub_token is None and os.environ["HF_TOKEN"] == TOKEN  # or Trainer would pickle it
    monkeypatch.setattr(instruct, "check_ahead", lambda *settings: None)
    monkeypatch.setattr(instruct, "run_stages", lambda root, stages, chosen: ran.extend(stages))
    no_leak(instruct.main, *words, "--hub_token", TOKEN)
    assert ran[1].flags(tmp_path) == [*words, "--run_stage", "data"]
