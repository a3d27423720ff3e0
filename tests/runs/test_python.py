"""What a command does, called from Python: the same result and the same files."""

import json
from pathlib import Path

import pytest

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli.main import main
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.run import choose_tasks, evaluate_encoder
from cacse_trainer.runs.distill import distill
from cacse_trainer.runs.export import export_checkpoint, recorded_dev_sets
from cacse_trainer.runs.run import RunResult
from cacse_trainer.runs.train import train
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.settings.distillation import DistillationArguments
from cacse_trainer.settings.recipes import Parsed


@pytest.fixture
def common(text_file, dev_file):
    """``common(folder)`` → settings of a small run, as dataclasses and as the same flags."""

    def settings(folder: Path) -> tuple[DataArguments, CacseTrainingArguments, list[str]]:
        fields = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
        fields.update(per_device_train_batch_size=8, report_to="none", use_cpu=True, disable_tqdm=True)
        fields.update(
            learning_rate=5e-5, warmup_steps=0.1, logging_steps=1
        )  # what the command would choose by a look at the text
        data = {"train_file": str(text_file), "dev_file": [f"stsb={dev_file}"], "max_seq_length": 32}
        flags = [
            f"--{name}={value}" for name, value in {**fields, "train_file": text_file, "max_seq_length": 32}.items()
        ]
        flags += ["--dev_file", *data["dev_file"], "--output_dir", str(folder)]
        return DataArguments(**data), CacseTrainingArguments(str(folder), **fields), flags

    return settings


def same_files(first: Path, second: Path) -> bool:
    """Whether both folders hold files of the same names, the weights of the same bytes, for whom all else is."""
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (first, second)]
    weights = [name for name in names[0] if name.endswith("model.safetensors")]
    same = all((first / name).read_bytes() == (second / name).read_bytes() for name in weights)
    modes = {path.stat().st_mode for path in first.rglob("*") if path.is_file()}
    return names[0] == names[1] and bool(weights) and same and len(modes) == 1


def told(capsys, arguments: list[str]) -> dict:
    """What a command says with ``--json``."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def check_run(result: RunResult, said: dict, command_folder: Path) -> None:
    assert result.steps == said["steps"] == 2 and result.exported == said["exported"]
    assert all(result.summary[name] == said[name] for name in ("metric", "baseline", "best", "best_step"))
    assert result.pushed is None and result.report.is_file() and same_files(result.folder, command_folder)


def test_trained_distilled_and_exported(common, tiny_towers, tmp_path, capsys):
    a, b, _ = tiny_towers("bert")
    data, args, _ = common(tmp_path / "run")
    result = train(ModelArguments(model=a, pooling="mean"), data, args)
    assert capsys.readouterr().out == ""
    said = told(capsys, ["train", "--model", a, "--pooling", "mean", *common(tmp_path / "run_command")[2]])
    check_run(result, said, tmp_path / "run_command")
    assert json.loads((result.folder / "training_report.json").read_text())["command"] is None

    teacher = str(result.folder / "export" / "encoder")
    data, args, _ = common(tmp_path / "student")
    result = distill(DistillationArguments(teacher=teacher, student=b), data, args)
    assert capsys.readouterr().out == ""
    flags = common(tmp_path / "student_command")[2]
    said = told(capsys, ["distill", "--teacher", teacher, "--student", b, *flags])
    check_run(result, said, tmp_path / "student_command")

    scores = export_checkpoint(result.folder, tmp_path / "out", recorded_dev_sets(result.folder))
    assert scores == result.exported
    said = told(capsys, ["export", "--checkpoint", str(result.folder), "--output_dir", str(tmp_path / "out_command")])
    assert said == {"folders": {str(tmp_path / "out_command" / "student"): scores["student"]}}


def test_only_checked(common, tiny_towers, tmp_path, capsys):
    data, args, _ = common(tmp_path / "run")
    args.check = True
    result = train(ModelArguments(model=tiny_towers("bert")[0]), data, args)
    assert result == RunResult(tmp_path / "run") and result.steps is None
    assert not list(result.folder.iterdir()) and capsys.readouterr().out == ""


def test_what_was_given_and_would_do_nothing_is_refused(common, tiny_towers, tmp_path):
    data, args, _ = common(tmp_path / "run")
    with pytest.raises(UserError, match="tower_dropout has no effect with SimCSE"):
        groups = (ModelArguments(model=tiny_towers("bert")[0], tower_dropout=[0.1]), data, args)
        train(*groups, Parsed(groups, flags=["tower_dropout"]))


def test_evaluated(tiny_towers, senteval_sample, tmp_path, capsys):
    model = tiny_towers("bert")[0]
    chosen = choose_tasks(tasks=["STS12", "MR"], data_dir=senteval_sample)
    encoder = SentenceEncoder(model, "mean", device="cpu")
    store = evaluate_encoder(encoder, chosen, tmp_path / "python", progress=False)
    assert capsys.readouterr().out == "" and store.failure is None
    flags = ["--pooling", "mean", "--device", "cpu", "--data_dir", str(senteval_sample), "--tasks", "STS12", "MR"]
    said = told(capsys, ["evaluate", "--model", model, *flags, "--output_dir", str(tmp_path / "command")])
    found = store.contents()["tasks"]
    for name, entry in found.items():
        assert {**entry, "seconds": 0} == {**said["tasks"][name], "seconds": 0}
    assert {path.name for path in store.folder.iterdir()} == {path.name for path in (tmp_path / "command").iterdir()}
    with pytest.raises(UserError, match="nothing to evaluate"):
        choose_tasks()
