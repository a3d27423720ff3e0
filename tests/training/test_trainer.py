"""`CacseTrainer` from Python with plain TrainingArguments: baseline, best model, parts, guards, resume."""

import logging
import math
import os

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from cacse_trainer import CacseBertModel, load_pairs, load_sentences
from cacse_trainer.errors import RunError, UserError
from cacse_trainer.training.checkpoints import rotate_checkpoints
from cacse_trainer.training.guards import OVERFLOWS_IN_A_ROW, NonFiniteGradientError, NonFiniteLossError
from tests.conftest import StopAt, write_pairs, write_sentences
from tests.tolerances import noise


def scores(trainer, metric="eval_stsb_spearman") -> dict[int, float]:
    return {entry["step"]: entry[metric] for entry in trainer.state.log_history if metric in entry}


def test_baseline_first_last_step_evaluated_best_loaded(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=5)
    trainer.train()
    measured = scores(trainer)
    assert sorted(measured) == [0, 2, 4, 5]
    best = max((step for step in measured if step), key=measured.get)
    assert trainer.state.best_metric == measured[best]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / f"checkpoint-{best}")
    assert trainer.evaluate()["eval_stsb_spearman"] == pytest.approx(measured[best], abs=1e-9)
    assert [name for name in os.listdir(tmp_path / "run") if "partial" in name] == []


def test_loss_parts_are_logged_and_add_up(make_trainer):
    trainer = make_trainer()
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 6
    for entry in logged:
        parts = entry["loss_tower_a"] + entry["loss_tower_b"] + entry["loss_cascade"]
        assert entry["loss"] == pytest.approx(parts, rel=noise(1.0, terms=8))


def test_learning_rate_zero_changes_nothing(make_trainer):
    trainer = make_trainer(learning_rate=0.0)
    trainer.train()
    assert len(set(scores(trainer).values())) == 1


def test_incomplete_batch_is_dropped(make_trainer, tmp_path):
    text = load_sentences(write_sentences(tmp_path / "odd.txt", count=30))
    trainer = make_trainer(text=text)
    assert [batch["input_ids"].shape[0] for batch in trainer.get_train_dataloader()] == [8, 8, 8]


@pytest.mark.parametrize("first", [float("nan"), -50.0])
def test_nan_and_negative_scores(make_trainer, monkeypatch, first):
    """The first score after the baseline is NaN or negative; the best model is still the best of the others."""
    given = iter([10.0, first, 20.0, 15.0])

    def fake_scores(*_args, **_kwargs):
        return {"spearman": next(given), "average_cosine": 0.5}

    monkeypatch.setattr("cacse_trainer.evaluation.dev_sets.score_pairs", fake_scores)
    trainer = make_trainer()
    trainer.train()
    assert trainer.state.best_global_step == 4 and trainer.state.best_metric == 20.0


def test_several_dev_sets(make_trainer, tmp_path):
    pairs = {
        "stsb": load_pairs(write_pairs(tmp_path / "a.tsv")),
        "mine": load_pairs(write_pairs(tmp_path / "b.tsv", 12)),
    }
    metrics = make_trainer(pairs=pairs).evaluate()
    assert {"eval_stsb_spearman", "eval_mine_spearman", "eval_mine_uniformity"} <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())


def test_non_finite_loss_stops_with_step_and_part(make_trainer, tmp_path):
    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                model.tower_b.encoder.layer[3].output.dense.weight.data.fill_(float("nan"))

    trainer = make_trainer(callbacks=[Poison()])
    with pytest.raises(NonFiniteLossError, match=r"step 4.*tower_b nan"):
        trainer.train()
    assert (tmp_path / "run" / "checkpoint-2" / "model.safetensors").is_file()


def test_collapse_is_told(make_trainer, caplog):
    trainer = make_trainer()
    for tower in (trainer.model.tower_a, trainer.model.tower_b):
        tower.encoder.layer[3].output.LayerNorm.weight.data.zero_()
        tower.encoder.layer[3].output.LayerNorm.bias.data.fill_(1.0)
    with caplog.at_level(logging.WARNING, logger="cacse_trainer"):
        metrics = trainer.evaluate()
    assert math.isnan(metrics["eval_stsb_spearman"])
    assert "collapse" in caplog.text and "undefined" in caplog.text


def test_description(make_trainer, caplog):
    trainer = make_trainer(gradient_accumulation_steps=2)
    with caplog.at_level(logging.INFO, logger="cacse_trainer"):
        summary = trainer.log_description()
    assert summary["effective_negatives"] == 2 * 8 - 2
    assert summary["dropout"] == {"tower_a": [0.1], "tower_b": [0.1], "cascade": [0.1, 0.2]}
    assert summary["trainable_parameters"] == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert 0 < summary["tokens_a_batch"] < summary["padded_tokens_a_batch"]
    assert "adds no negatives" in caplog.text


def test_sharding_that_accelerate_left_off_is_told(make_trainer, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # of accelerate launch
    make_trainer().log_description()
    assert "FSDP was asked for, and accelerate leaves it off on a CPU" in caplog.text


def test_decay_all_parameters(make_trainer):
    trainer = make_trainer()
    names = trainer.get_decay_parameter_names(trainer.model)
    assert not any(name.endswith("bias") for name in names)
    trainer.args.decay_all_parameters = True
    assert set(trainer.get_decay_parameter_names(trainer.model)) == dict(trainer.model.named_parameters()).keys()


def test_too_little_data(make_trainer):
    with pytest.raises(UserError, match=r"3 rows, fewer than one batch of 8.*at most 3"):
        make_trainer(text=Dataset.from_dict({"text": ["a man", "a dog", "a cat"]}))


def test_resumed_run_equals_an_uninterrupted_one(make_trainer, tmp_path):
    whole = make_trainer("whole", max_steps=8, save_total_limit=None)
    whole.train()
    make_trainer("cut", max_steps=8, callbacks=[StopAt(4)], save_total_limit=None).train()
    resumed = make_trainer("cut", max_steps=8, save_total_limit=None)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    losses = {entry["step"]: entry["loss"] for entry in whole.state.log_history if "loss" in entry}
    assert {entry["step"]: entry["loss"] for entry in resumed.state.log_history if "loss" in entry} == losses
    assert scores(resumed) == scores(whole)  # the baseline of step 0 among them
    assert resumed.state.best_metric == whole.state.best_metric
    for (name, ours), theirs in zip(resumed.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_rotation_keeps_best_and_newest(tmp_path):
    for step in (2, 4, 6, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    rotate_checkpoints(str(tmp_path), 1, str(tmp_path / "checkpoint-4"))
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-4", "checkpoint-8"]


def test_half_written_checkpoint_is_invisible(make_trainer, tmp_path, monkeypatch):
    """The disk fills up while the second checkpoint is written: the first one stays, the half one has no name."""
    trainer = make_trainer()
    save = trainer._save_rng_state

    def fail(folder):
        if trainer.state.global_step == 4:
            raise OSError(28, "No space left on device")
        save(folder)

    monkeypatch.setattr(trainer, "_save_rng_state", fail)
    with pytest.raises(RunError, match=r"checkpoint of step 4 .*No space left.*checkpoint-2 is whole"):
        trainer.train()
    assert sorted(name for name in os.listdir(tmp_path / "run") if name.startswith("checkpoint-")) == ["checkpoint-2"]


def fake_scores(monkeypatch, values):
    given = iter(values)
    monkeypatch.setattr(
        "cacse_trainer.evaluation.dev_sets.score_pairs",
        lambda *_a, **_k: {"spearman": next(given), "average_cosine": 0.5},
    )


def test_a_best_between_two_saves_is_saved(make_trainer, monkeypatch, tmp_path):
    """Evaluated every 2 steps, saved every 4, best at step 2: that checkpoint is written and loaded."""
    fake_scores(monkeypatch, [10.0, 90.0, 20.0, 15.0, 12.0])
    trainer = make_trainer(max_steps=8, save_steps=4)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-2")
    saved = CacseBertModel.from_pretrained(tmp_path / "run" / "checkpoint-2").state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in trainer.model.state_dict().items())


def test_resume_in_a_moved_folder_keeps_the_best(make_trainer, monkeypatch, tmp_path):
    fake_scores(monkeypatch, [10.0, 90.0, 20.0])
    make_trainer("before", max_steps=8, callbacks=[StopAt(4)], save_total_limit=2).train()
    (tmp_path / "before").rename(tmp_path / "after")
    fake_scores(monkeypatch, [15.0, 12.0])
    resumed = make_trainer("after", max_steps=8, save_total_limit=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "after" / "checkpoint-4"))
    assert resumed.state.best_model_checkpoint == str(tmp_path / "after" / "checkpoint-2")
    best = CacseBertModel.from_pretrained(tmp_path / "after" / "checkpoint-2").state_dict()
    assert all(torch.equal(tensor, best[name]) for name, tensor in resumed.model.state_dict().items())


def test_a_single_dev_set_and_one_by_name(make_trainer, tmp_path):
    pairs = load_pairs(write_pairs(tmp_path / "a.tsv"))
    single = make_trainer(pairs=pairs, metric_for_best_model="spearman")
    single.train()
    assert sorted(scores(single, "eval_spearman")) == [0, 2, 4, 6]
    several = make_trainer("other", pairs={"stsb": pairs, "mine": pairs})
    mine = {name for name in several.evaluate() if name.startswith("eval_mine_")}
    assert set(several.evaluate("mine")) == {*mine, "epoch"}


def test_two_columns_and_a_stream(make_trainer, tmp_path):
    rows = {"anchor": ["a man red", "the dog", "big cat", "small house"] * 4, "positive": ["the man red"] * 16}
    make_trainer("pairs", text=Dataset.from_dict(rows), max_steps=2).train()
    stream = load_sentences(write_sentences(tmp_path / "s.txt"), streaming=True)
    trainer = make_trainer("stream", text=stream, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_the_first_dev_set_chooses_when_no_metric_is_named(make_trainer):
    trainer = make_trainer(metric_for_best_model=None)
    trainer.train()
    measured = {step: score for step, score in scores(trainer).items() if step}
    assert trainer.state.best_metric == max(measured.values())
    pairs = trainer.eval_dataset["stsb"]
    assert make_trainer("single", metric_for_best_model=None, pairs=pairs).args.metric_for_best_model == "spearman"


def test_nothing_to_train(make_trainer, tiny_towers):
    a, b, constraint = tiny_towers("bert")
    frozen = CacseBertModel.from_towers(
        a,
        b,
        constraint,
        cascade_start_layer=4,
        constraint_layers=1,
        freeze_embeddings=True,
        cascade_loss_weight=0.0,
    )
    with pytest.raises(UserError, match="every parameter of the model is frozen"):
        make_trainer(model=frozen)


def test_a_batch_of_one_row_is_refused(make_trainer):
    with pytest.raises(UserError, match="no negatives"):
        make_trainer(per_device_train_batch_size=1)


def test_description_is_said_without_logging_set_up(make_trainer, capsys):
    logging.getLogger("cacse_trainer").setLevel(logging.NOTSET)
    make_trainer().log_description()
    assert "effective negatives" in capsys.readouterr().err


class PoisonGradient(TrainerCallback):
    """Makes a gradient infinite in the backward pass of one step; the loss stays what it is."""

    def __init__(self, step: int):
        self.step, self.hook = step, None

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            weight = model.tower_a.encoder.layer[3].output.dense.weight
            self.hook = weight.register_hook(lambda gradient: gradient * float("inf"))
        elif self.hook is not None:
            self.hook.remove()


def test_a_non_finite_loss_names_its_rows(make_trainer):
    """A single sentence whose vector is not finite: its row and text are said."""
    rows = [f"a man {word}" for word in ("red", "blue", "big", "small", "not", "and", "with", "guitar")]
    trainer = make_trainer(text=Dataset.from_dict({"text": rows}), max_steps=1)
    inputs = next(iter(trainer.get_train_dataloader()))
    bad = rows.index("a man guitar")
    trainer.train_dataset = trainer.train_dataset.map(lambda row: row)
    where = [trainer.processing_class.decode(ids[0], skip_special_tokens=True) for ids in inputs["input_ids"]]
    place = where.index("a man guitar")
    own, _ = trainer.take_batch(inputs)
    vectors = torch.ones(8, 2, 4)
    vectors[place] = float("nan")
    with pytest.raises(NonFiniteLossError, match=rf"1 of the batch's 8 rows .*row {bad + 1} 'a man guitar'"):
        trainer.record_loss(torch.tensor(float("nan")), {"tower_a": torch.tensor(1.0)}, {"embeddings": vectors})
    assert "text_ids" not in own


def test_a_non_finite_gradient_stops_with_step_and_parameter(make_trainer, tmp_path):
    trainer = make_trainer(callbacks=[PoisonGradient(4)])
    with pytest.raises(NonFiniteGradientError, match=r"tower_a.*not finite at step 4.*batch of 8 rows: row \d+ '"):
        trainer.train()
    assert (tmp_path / "run" / "checkpoint-2" / "model.safetensors").is_file()
    state = CacseBertModel.from_pretrained(tmp_path / "run" / "checkpoint-2").state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_fp16_may_overflow_a_few_times_in_a_row(make_trainer):
    """With a loss scale an overflow is a skipped step; too many in a row are an end."""
    trainer = make_trainer()
    trainer.accelerator.scaler = object()
    model = trainer.model
    model(**{k: v for k, v in next(iter(trainer.get_train_dataloader())).items() if k != "text_ids"}).loss.backward()
    weight = model.tower_a.encoder.layer[3].output.dense.weight
    clean = weight.grad.clone()
    for _ in range(OVERFLOWS_IN_A_ROW - 1):
        weight.grad = clean * float("inf")
        trainer._get_grad_norm(model, float("inf"))
    trainer._get_grad_norm(model, 1.0)  # one good step: the count starts anew
    for _ in range(OVERFLOWS_IN_A_ROW - 1):
        trainer._get_grad_norm(model, float("inf"))
    with pytest.raises(NonFiniteGradientError, match=f"fp16 overflowed at {OVERFLOWS_IN_A_ROW} steps in a row"):
        trainer._get_grad_norm(model, float("inf"))


def test_duplicates_are_counted_told_and_masked(make_trainer, caplog):
    """Every batch of 8 holds the same two sentences four times each; one line of the log, one warning."""
    text = Dataset.from_dict({"text": ["a man", "the dog"] * 8})
    with caplog.at_level(logging.WARNING, logger="cacse_trainer"):
        plain = make_trainer(text=text, max_steps=2, learning_rate=0.0)
        plain.train()
    lines = [entry for entry in plain.state.log_history if "loss" in entry]
    assert [entry["duplicate_rows"] for entry in lines] == [8.0, 8.0]
    assert caplog.text.count("--mask_duplicates true") == 1
    masked = make_trainer("masked", text=text, max_steps=2, learning_rate=0.0)
    masked.mask_duplicates = True
    caplog.clear()
    masked.train()
    losses = [entry["loss"] for entry in masked.state.log_history if "loss" in entry]
    assert all(ours < theirs["loss"] for ours, theirs in zip(losses, lines, strict=True))
    assert "mask_duplicates" not in caplog.text
    none = make_trainer("none", text=Dataset.from_dict({"text": [f"a man {i}" for i in range(8)]}), max_steps=1)
    none.train()
    assert [entry["duplicate_rows"] for entry in none.state.log_history if "loss" in entry] == [0.0]


def test_a_run_resumed_at_its_end_does_no_step_more(make_trainer, tmp_path):
    first = make_trainer(max_steps=4, save_total_limit=None)
    first.train()
    again = make_trainer(max_steps=4, save_total_limit=None)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert again.state.global_step == 4
    same = zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in same)
