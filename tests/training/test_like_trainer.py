"""What holds for transformers' `Trainer` holds for ours: the same events, losses, arguments and metrics."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from cacse_trainer import CacseTrainer, SentenceEmbeddingModel, load_pairs
from cacse_trainer.data import ContrastiveCollator, RetrievalSet
from cacse_trainer.errors import UserError
from cacse_trainer.settings.arguments import CacseTrainingArguments
from tests.conftest import write_pairs

UNWATCHED = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
FREE = {"save_strategy": "no", "load_best_model_at_end": False, "metric_for_best_model": None}


@pytest.fixture
def single(tiny_towers):
    """``single(**settings)`` → a small encoder with dropout, the same at each call."""

    def make(**settings) -> SentenceEmbeddingModel:
        torch.manual_seed(3)
        folder = tiny_towers("bert", layers=1)[0]
        return SentenceEmbeddingModel.from_encoder(folder, **{"dropout": 0.1, "pooling": "mean", **settings})

    return make


@pytest.fixture
def fake_scores(monkeypatch):
    """``fake_scores(values)``: what the dev set's score will be, one after the other."""

    def use(*values):
        given = iter(values)
        monkeypatch.setattr(
            "cacse_trainer.evaluation.dev_sets.score_pairs",
            lambda *_a, **_k: {"spearman": next(given), "average_cosine": 0.5},
        )

    return use


class Events(TrainerCallback):
    """Writes down what happened, and at which step."""

    def __init__(self):
        self.seen = []

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        return lambda args, state, control, **kwargs: self.seen.append((name, state.global_step))


def steps(trainer, key) -> list[int]:
    return [entry["step"] for entry in trainer.state.log_history if key in entry]


COURSES = {
    "accumulated": {"max_steps": 3, "gradient_accumulation_steps": 2, "logging_steps": 2, "logging_first_step": True},
    "by epochs": {"max_steps": -1, "num_train_epochs": 1.5, "logging_strategy": "epoch"},
    "steps beyond an epoch": {"max_steps": 9, "num_train_epochs": 1, "logging_steps": 4},
    "noise": {"max_steps": 2, "neftune_noise_alpha": 5.0, "torch_empty_cache_steps": 1, "max_grad_norm": 0.1},
    "tokens": {"max_steps": 2, "include_num_input_tokens_seen": "non_padding", "skip_memory_metrics": False},
    "another optimizer": {"max_steps": 2, "optim": "adafactor", "lr_scheduler_type": "cosine", "warmup_steps": 1},
}


@pytest.mark.parametrize("course", COURSES, ids=list(COURSES))
def test_the_same_events_losses_and_rates_as_plain_trainer(make_trainer, single, tmp_path, tiny_tokenizer, course):
    ours = make_trainer(model=single(), callbacks=[one := Events()], **{**UNWATCHED, **COURSES[course]})
    ours.train()
    settings = {"per_device_train_batch_size": 8, "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    settings |= {"learning_rate": 1e-3, "seed": 7, "save_strategy": "no", "remove_unused_columns": False}
    settings |= {"dataloader_drop_last": True, "logging_steps": 1, **COURSES[course]}
    theirs = Trainer(
        single(),
        TrainingArguments(str(tmp_path / "plain"), **settings),
        ContrastiveCollator(tiny_tokenizer),
        ours.train_dataset,
        processing_class=tiny_tokenizer,
        callbacks=[two := Events()],
    )
    theirs.train()
    assert one.seen == two.seen and ours.state.global_step == theirs.state.global_step
    for mine, plain in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        assert mine.keys() - {"loss_contrastive", "duplicate_rows"} == plain.keys()
        for key in plain.keys() & {"loss", "learning_rate", "epoch", "num_input_tokens_seen", "step", "train_loss"}:
            assert mine[key] == pytest.approx(plain[key], rel=1e-5), key


def test_best_of_an_epoch_saved_before_its_evaluation_stays(make_trainer, single, fake_scores, tmp_path):
    """Evaluated by epoch, saved by steps: the best of epoch 1 is known, and kept, though two are newer."""
    fake_scores(10.0, 90.0, 20.0, 15.0)
    settings = {**FREE, "eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 4, "save_total_limit": 2}
    settings |= {"max_steps": -1, "num_train_epochs": 3, "metric_for_best_model": "stsb_spearman"}
    trainer = make_trainer(model=single(), **settings)
    trainer.train()
    assert trainer.state.best_global_step == 8
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-8")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-24", "checkpoint-8"]


@pytest.mark.parametrize(("delay", "scored"), [(0, [0, 2, 4, 5]), (3, [4, 5]), (9, [])])
def test_eval_delay(make_trainer, single, delay, scored):
    trainer = make_trainer(model=single(), max_steps=5, eval_delay=delay, **FREE)
    trainer.train()
    assert steps(trainer, "eval_stsb_spearman") == scored


@pytest.mark.parametrize("kind", [TrainingArguments, CacseTrainingArguments])
@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_a_rate_that_follows_the_score(make_trainer, single, fake_scores, kind, schedule):
    """The higher score is the better one: no rate falls while it rises, and one that stays makes it fall."""
    fake_scores(*[10.0, 20.0, 30.0, 40.0] if schedule == "greedy" else [10.0, 20.0, 30.0, 30.0])
    given = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": {"patience": 0}, "eval_steps": 1, **FREE}
    trainer = make_trainer(model=single(), kind=kind, max_steps=3, **given)
    trainer.train()
    assert trainer.args.metric_for_best_model == "stsb_spearman" and trainer.lr_scheduler.mode == "max"
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    rate = trainer.optimizer.param_groups[0]["lr"]  # after the last score
    if schedule == "greedy":
        assert 1e-3 == rates[0] <= rates[1] <= rates[2] < rate
    else:
        assert rates == [1e-3] * 3 and rate == pytest.approx(1e-4)


def test_saved_when_it_is_best_and_stopped_early(make_trainer, single, fake_scores, tmp_path):
    fake_scores(10.0, 20.0, 30.0, 25.0, 24.0, 23.0)
    trainer = make_trainer(
        model=single(),
        max_steps=9,
        eval_steps=1,
        save_strategy="best",
        save_total_limit=2,
        metric_for_best_model=None,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    trainer.train()
    assert trainer.state.global_step == 4 and trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_evaluate_tells_its_pace_and_epoch(make_trainer, single, tmp_path):
    pairs = {
        "a": load_pairs(write_pairs(tmp_path / "a.tsv")),
        "b": RetrievalSet(["a man"], ["a man", "the dog"], [{0: 1}]),
    }
    seen = []

    class Listen(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            seen.append(metrics)

    trainer = make_trainer(model=single(), pairs=pairs, callbacks=[Listen()], skip_memory_metrics=False, **UNWATCHED)
    metrics = trainer.evaluate()
    for name in ("a", "b"):
        assert {f"eval_{name}_{end}" for end in ("runtime", "samples_per_second", "steps_per_second")} <= metrics.keys()
    assert metrics["epoch"] == 0 and "eval_mem_cpu_alloc_delta" in metrics and seen[0] is metrics
    trainer.save_metrics("eval", metrics)
    trainer.log_metrics("eval", metrics)


def test_predict(make_trainer, single):
    """Of pairs the cosines beside the scores given, of queries their nDCG; nothing is logged, the mode stays."""
    trainer = make_trainer(model=single(), **UNWATCHED)
    trainer.model.train()
    pairs = trainer.eval_dataset["stsb"]
    found = trainer.predict(pairs)
    assert trainer.model.training and trainer.state.log_history == []
    assert found.predictions.shape == (len(pairs),) and list(found.label_ids) == pairs["score"]
    vectors = trainer.model.eval() and trainer.embedder.vectors([pairs[0]["sentence1"], pairs[0]["sentence2"]])
    cosine = torch.cosine_similarity(*torch.tensor(vectors), dim=0).item()
    assert found.predictions[0] == pytest.approx(cosine, abs=1e-5)
    assert found.metrics["test_spearman"] == pytest.approx(trainer.evaluate()["eval_stsb_spearman"])
    assert "test_runtime" in found.metrics
    queries = RetrievalSet(["a man", "the dog"], ["a man", "the dog"], [{0: 1}, {1: 1}])
    found = trainer.predict(queries, metric_key_prefix="mine")
    assert list(found.predictions) == [1, 1] and found.label_ids is None and found.metrics["mine_ndcg@10"] == 100
    with pytest.raises(UserError, match=r"not rows of text; for vectors: trainer\.embedder"):
        trainer.predict(Dataset.from_dict({"text": ["a man"]}))


@pytest.mark.parametrize("kind", [TrainingArguments, CacseTrainingArguments])
def test_a_collator_without_attention_mask(make_trainer, single, tiny_tokenizer, kind):
    """All are tokens then: the losses are those of a mask of ones."""

    class Collator(ContrastiveCollator):
        def __init__(self, ones):
            super().__init__(tiny_tokenizer)
            self.ones = ones

        def __call__(self, rows):
            batch = super().__call__(rows)
            del batch["attention_mask"]
            return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])} if self.ones else batch

    losses = []
    for ones in (False, True):
        trainer = make_trainer(model=single(dropout=0.0), kind=kind, max_steps=2, **UNWATCHED)
        trainer.data_collator = Collator(ones)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and math.isfinite(losses[0][0])


def test_an_evaluation_in_half_precision_is_refused(make_trainer, single):
    with pytest.raises(UserError, match="bf16_full_eval and fp16_full_eval would leave the model"):
        make_trainer(model=single(), bf16_full_eval=True)


def test_search_over_two_trials(make_trainer, single, tmp_path, tiny_tokenizer):
    """Each trial has a model, a rate, a batch and a folder of its own; the best by the dev score is told."""
    optuna = pytest.importorskip("optuna")
    trained, sizes = [], []

    class Listen(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            trained.append((args.learning_rate, args.per_device_train_batch_size, model.config.contrastive_temperature))
            sizes.append((state.is_hyper_param_search, model.compute.mini_batch_size))

    def model_init(trial):
        return single(contrastive_temperature=0.05 if trial is None else trial.suggest_float("tau", 0.01, 0.1))

    def space(trial):
        batch = trial.suggest_categorical("per_device_train_batch_size", [4, 16])
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2), "per_device_train_batch_size": batch}

    plain = make_trainer(model=single(), kind=CacseTrainingArguments, max_steps=2, eval_steps=1, mini_batch_size=8)
    text, pairs, args = plain.train_dataset, plain.eval_dataset, plain.args
    given: dict = {"train_dataset": text, "eval_dataset": pairs, "processing_class": tiny_tokenizer}
    trainer = CacseTrainer(args=args, model_init=model_init, callbacks=[Listen()], **given)
    sampler = optuna.samplers.RandomSampler(seed=0)
    best = trainer.hyperparameter_search(space, n_trials=2, backend="optuna", sampler=sampler)
    assert len(set(trained)) == 2 and sizes == [(True, 8)] * 2
    folders = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert folders == ["run-0", "run-1"]
    for name in folders:  # save_total_limit=1: the best one of that trial
        assert len(list((tmp_path / "run" / name).glob("checkpoint-*"))) == 1
    assert {"learning_rate", "per_device_train_batch_size", "tau"} == set(best.hyperparameters)
    index = trained.index(
        tuple(best.hyperparameters[name] for name in ("learning_rate", "per_device_train_batch_size", "tau"))
    )
    assert best.run_id == str(index) and -100 <= best.objective <= 100
    with pytest.raises(RuntimeError, match="model_init"):
        plain.hyperparameter_search(space, n_trials=1, backend="optuna")


def test_a_checkpoint_of_the_model_alone_is_told_of(make_trainer, single, tmp_path, caplog):
    settings = {"max_steps": 2, "save_steps": 1, "eval_strategy": "no", "load_best_model_at_end": False}
    make_trainer(model=single(), save_only_model=True, save_total_limit=None, **settings).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    assert not list(checkpoint.glob("optimizer*"))
    make_trainer(model=single(), ignore_data_skip=True, **settings).train(resume_from_checkpoint=str(checkpoint))
    assert f"{checkpoint} holds the model alone (save_only_model)" in caplog.text
