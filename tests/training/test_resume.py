"""Exact resume: cells of the matrix, streams in passes, and settings that changed since the checkpoint."""

import json
import logging
import runpy
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from cacse_trainer import SentenceEmbeddingModel, load_sentences
from cacse_trainer.cli.common import run
from cacse_trainer.cli.train import main as train
from cacse_trainer.data.passes import Passes
from cacse_trainer.errors import UserError
from cacse_trainer.settings import precision
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.training import automatic
from cacse_trainer.training.changes import check_changes
from cacse_trainer.training.checkpoints import SETTINGS
from tests.conftest import ROOT, StopAt, write_sentences

matrix = runpy.run_path(str(ROOT / "scripts" / "resume_matrix.py"))
CELLS = matrix["pairwise"](matrix["cells"]())
FIRST = {cell.family: cell for cell in reversed(CELLS) if cell.workers == 0}
"""One of each family, without processes of its own."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """The matrix's models and texts."""
    folder = tmp_path_factory.mktemp("matrix")
    matrix["write_inputs"](folder)
    return folder


@pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, marks=[] if cell in FIRST.values() else pytest.mark.slow, id=str(cell)) for cell in CELLS],
)
def test_a_resumed_run_is_the_run_that_was_never_stopped(cell, inputs, tmp_path):
    """Bit by bit, from a checkpoint of the first pass over the text and from one of a later pass."""
    assert matrix["difference"](cell, inputs, tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize("data", ["txt", "stream"])
def test_workers_that_stay_go_on_too(data, inputs, tmp_path):
    cell = matrix["Cell"]("simcse", data, 2, 1, "float32")
    assert matrix["difference"](cell, inputs, tmp_path, dataloader_persistent_workers=True) is None


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_an_order_by_length_goes_on_too(strategy, inputs, tmp_path):
    assert matrix["difference"](FIRST["instruct"], inputs, tmp_path, train_sampling_strategy=strategy) is None


@pytest.mark.parametrize(
    "family", ["simcse", *(pytest.param(name, marks=pytest.mark.slow) for name in ("distill", "instruct"))]
)
def test_what_auto_chose_is_kept_on_another_machine(family, inputs, tmp_path, monkeypatch, caplog):
    """The run began where bfloat16 is fast and the fast paths are not, and measures nothing where it goes on."""
    machine(monkeypatch, 2.0, 0.5)
    monkeypatch.setitem(matrix["FAMILIES"]["distill"], "teacher_bf16", "auto")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    caplog.set_level(logging.INFO, logger="cacse_trainer")
    with matrix["without_reports"]():
        matrix["train_cell"](FIRST[family], inputs, whole, resume=False, bf16="auto")
        shutil.copytree(whole / "checkpoint-5", cut / "checkpoint-5")
        assert "bf16 auto: bfloat16 (products in bfloat16 were 2.00 times as fast)" in caplog.text
        monkeypatch.setattr(precision, "measured_gain", lambda: pytest.fail("measured"))
        monkeypatch.setattr(automatic, "fast_paths_gain", lambda *_, **__: pytest.fail("measured"))
        monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
        matrix["train_cell"](FIRST[family], inputs, cut, resume=True, bf16="auto")
    assert caplog.text.count("goes on in bfloat16, as the run began; this processor is slow in it") == 1
    assert matrix["outcome"](cut) == matrix["outcome"](whole)
    record = json.loads((cut / "checkpoint-6" / SETTINGS).read_text())
    assert record["bf16"] is True and record["bf16_gain"] == 2.0
    assert record.get("teacher_in_bf16", family != "distill") is True
    if family != "instruct":
        assert record["fast_paths"] is False and record["fast_paths_gain"] == 0.5
        assert caplog.text.count("fast_paths auto: left (a narrow layer's step was 0.50 times as fast)") == 2


def machine(monkeypatch, bf16_gain: float, fast_paths_gain: float) -> None:
    """One that measures so."""
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(precision, "measured_gain", lambda: bf16_gain)
    monkeypatch.setattr(automatic, "fast_paths_gain", lambda bf16, padded: fast_paths_gain)


@pytest.mark.parametrize(("began", "goes_on"), [((2.0, 2.0), (0.5, 0.5)), ((0.5, 0.5), (2.0, 2.0))])
def test_a_trainer_of_ones_own_keeps_it_too(began, goes_on, make_trainer, tmp_path, tiny_towers, monkeypatch):
    """Also when it was made for the other machine's choice, before it was told of a checkpoint."""

    def made(output: str, **more):
        folder = tiny_towers("bert")[0]
        model = SentenceEmbeddingModel.from_encoder(folder, pooling="mean", dropout=0.1)
        return make_trainer(output, model=model, kind=CacseTrainingArguments, bf16="auto", **more)

    machine(monkeypatch, *began)
    whole = made("whole", save_total_limit=None, load_best_model_at_end=False)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "cut" / "checkpoint-4")
    machine(monkeypatch, *goes_on)
    resumed = made("cut", save_total_limit=None, load_best_model_at_end=False)
    assert resumed.args.bf16 is resumed.args.use_fast_paths is resumed.model.compute.fast_paths is (goes_on[0] > 1)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.args.bf16 is resumed.args.use_fast_paths is resumed.model.compute.fast_paths is (began[0] > 1)
    assert resumed.args.gains == dict(zip(("bf16", "fast_paths"), began, strict=True))
    assert resumed.accelerator.mixed_precision == ("bf16" if began[0] > 1 else "no")
    theirs = whole.model.state_dict()
    assert all(torch.equal(own, theirs[name]) for name, own in resumed.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["simcse_mlm", "diffcse"])
def test_masks_are_the_same_with_workers(family, inputs, tmp_path):
    outcomes = []
    for workers in (0, 2):
        with matrix["without_reports"]():
            cell = matrix["Cell"](family, "txt", workers, 2, "float32")
            matrix["train_cell"](cell, inputs, tmp_path / str(workers), resume=False)
        outcomes.append(matrix["outcome"](tmp_path / str(workers)))
    assert outcomes[0] == outcomes[1]


def rows_of(passes, count: int) -> list[str]:
    rows = iter(passes)
    return [next(rows)["text"] for _ in range(count)]


def test_passes_are_whole_batches_each_shuffled_anew(tmp_path):
    """22 rows in batches of 4: two are dropped from each pass, others each time."""
    text = write_sentences(tmp_path / "text.txt", 22)
    stream = load_sentences(text, streaming=True).shuffle(7, buffer_size=30)
    rows = rows_of(Passes(stream, 4), 60)
    lines = text.read_text().splitlines()
    passes = [rows[start : start + 20] for start in (0, 20, 40)]
    assert all(len(set(part)) == 20 and set(part) < set(lines) for part in passes)
    assert passes[0] != passes[1] != passes[2] and rows_of(Passes(stream, 4), 60) == rows
    assert [row["text"] for row in stream][:20] == passes[0]  # as it stands, the stream is in its first pass


def test_each_worker_counts_its_own_passes():
    """Of two workers one has the shorter part of the stream, and is in its third pass when the other begins another."""

    def numbered(parts):
        yield from ({"text": f"{part}-{number}"} for part in parts for number in range(4 if part else 8))

    stream = datasets.IterableDataset.from_generator(numbered, gen_kwargs={"parts": [0, 1]}).shuffle(7, buffer_size=8)
    loaded = []
    for _ in range(2):
        batches = iter(DataLoader(Passes(stream, 4), batch_size=4, num_workers=2, collate_fn=list))
        loaded.append([[row["text"] for row in next(batches)] for _ in range(12)])
    assert loaded[0] == loaded[1]
    assert all(len({text[0] for text in batch}) == 1 for batch in loaded[0])
    assert len({tuple(batch) for batch in loaded[0]}) > 6


def test_a_stream_shorter_than_a_batch_does_not_loop(make_trainer, tmp_path):
    stream = load_sentences(write_sentences(tmp_path / "short.txt", 6), streaming=True)
    with pytest.raises(UserError, match="6 rows, fewer than one batch of 8"):
        make_trainer(text=stream, pairs={}, eval_strategy="no", load_best_model_at_end=False).train()
    with pytest.raises(UserError, match="a stream has no epochs"):
        make_trainer(text=stream, save_strategy="epoch", load_best_model_at_end=False)


def settings(**changes) -> dict:
    """As `settings_of` gives them."""
    own = {"learning_rate": 0.1, "seed": 1, "per_device_train_batch_size": 8, "config": {"dropout": 0.1, "size": 4}}
    return {**own, "processes": 1, **changes}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"learning_rate": 0.2, "seed": 2}, "learning_rate was 0.1, is 0.2; seed was 1, is 2"),
        ({"config": {"dropout": 0.2, "size": 4, "new": 1}}, "dropout was 0.1, is 0.2"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size was 8, is 4"),
        ({"new_setting": 3}, None),
        ({"processes": 2}, None),
        ({"processes": 2, "per_device_train_batch_size": 4}, None),
        ({"processes": 2, "per_device_train_batch_size": 16}, "per_device_train_batch_size was 8, is 16"),
    ],
)
def test_changes_are_named(changes, told, tmp_path, caplog):
    """Another number of processes is only said, also with the same batch spread over them."""
    (tmp_path / SETTINGS).write_text(json.dumps(settings()))
    if told is None:
        check_changes(tmp_path, settings(**changes), allowed=False)
    else:
        with pytest.raises(UserError, match="--resume_with_changes") as error:
            check_changes(tmp_path, settings(**changes), allowed=False)
        assert told in str(error.value)
        check_changes(tmp_path, settings(**changes), allowed=True)
        assert told in caplog.text
    assert ("2 processes, the checkpoint was trained on 1" in caplog.text) == ("processes" in changes)


def test_a_checkpoint_without_the_record_is_compared_by_its_config(tmp_path):
    check_changes(tmp_path, settings(), allowed=False)
    (tmp_path / "config.json").write_text(json.dumps({"dropout": 0.3, "dtype": "float32", "parts": {"a": {"b": 1}}}))
    with pytest.raises(UserError, match=r"dropout was 0\.3, is 0\.1; parts\.a\.b was 1, is 2;"):
        check_changes(tmp_path, settings(config={"dropout": 0.1, "parts.a.b": 2}), allowed=False)


def test_a_command_refuses_changed_settings_and_text(inputs, tmp_path, capsys):
    text = tmp_path / "text.txt"
    shutil.copy(inputs / "text22.txt", text)
    command = [
        *("--model", str(inputs / "a"), "--train_file", str(text), "--evaluation", "none", "--use_cpu", "true"),
        *("--per_device_train_batch_size", "4", "--max_steps", "2", "--save_steps", "1", "--max_seq_length", "12"),
        *("--report_to", "none", "--export", "false", "--output_dir", str(tmp_path / "run"), "--disable_tqdm", "true"),
    ]
    assert run(train, [*command, "--resume_with_changes"]) == 2
    assert "give --resume_from_checkpoint last, too" in capsys.readouterr().err
    with matrix["without_reports"]():
        assert run(train, command) == 0
    text.rename(tmp_path / "moved.txt")
    moved = [*command, "--train_file", str(tmp_path / "moved.txt"), "--resume_from_checkpoint", "last"]
    with matrix["without_reports"]():
        assert run(train, [*moved, "--logging_steps", "7", "--dataloader_num_workers", "1"]) == 0
    (tmp_path / "moved.txt").write_text("other words\n" * 10 + text_of(inputs))
    assert run(train, [*moved, "--learning_rate", "1e-3", "--max_seq_length", "10", "--dropout", "0.3"]) == 2
    told = capsys.readouterr().err
    assert all(
        f"{name} was" in told for name in ("learning_rate", "max_seq_length", "dropout", "text", "training_rows")
    )
    assert "logging_steps" not in told and "train_file" not in told
    with matrix["without_reports"]():
        assert run(train, [*moved, "--learning_rate", "1e-3", "--max_steps", "3", "--resume_with_changes"]) == 0
    assert (tmp_path / "run" / "checkpoint-3").is_dir()


def text_of(inputs: Path) -> str:
    return (inputs / "text18.txt").read_text()


def test_other_steps_of_logging_scoring_and_saving_take_effect(make_trainer, tmp_path, caplog):
    """They change no weight; `Trainer` alone would keep those of the checkpoint."""
    make_trainer("run", callbacks=[StopAt(2)], save_total_limit=None).train()
    changed = {"eval_steps": 1, "save_steps": 3, "logging_steps": 2, "save_total_limit": None}
    resumed = make_trainer("run", load_best_model_at_end=False, **changed)
    with pytest.raises(UserError, match="load_best_model_at_end was True, is False"):
        resumed.train(resume_from_checkpoint=True)
    resumed = make_trainer("run", kind=CacseTrainingArguments, load_best_model_at_end=False, **changed)
    resumed.args.resume_with_changes = True
    with caplog.at_level(logging.WARNING, logger="cacse_trainer"):
        resumed.train(resume_from_checkpoint=True)
    assert "load_best_model_at_end" in caplog.text
    later = [entry for entry in resumed.state.log_history if entry["step"] > 2]
    assert [entry["step"] for entry in later if "eval_stsb_spearman" in entry] == [3, 4, 5, 6]
    assert [entry["step"] for entry in later if "loss" in entry] == [4, 6]
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {f"checkpoint-{n}" for n in (2, 3, 6)}
