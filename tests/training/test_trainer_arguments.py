"""What plain `Trainer` is given at construction and asked afterwards: the same here, or one line says why not."""

import inspect

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from cacse_trainer import CacseTrainer, DistillationTrainer, SentenceEmbeddingModel, load_pairs, load_sentences
from cacse_trainer.data import ContrastiveCollator, RetrievalSet
from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.errors import UserError
from cacse_trainer.models.own import takes
from tests.conftest import write_pairs, write_sentences


@pytest.fixture
def both(tiny_towers, tiny_tokenizer, tmp_path):
    """``both(settings, given)`` → plain Trainer and ours, of one model, one text and the same arguments."""
    folder = tiny_towers("bert", layers=1)[0]
    text = load_sentences(write_sentences(tmp_path / "sentences.txt"))

    def make(settings=None, /, **given):
        trainers = []
        for kind in (Trainer, CacseTrainer):
            torch.manual_seed(3)
            model = SentenceEmbeddingModel.from_encoder(folder, dropout=0.0, pooling="mean")
            fields = {"max_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1}
            fields |= {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
            fields |= {"remove_unused_columns": False, "dataloader_drop_last": True, **(settings or {})}
            args = TrainingArguments(str(tmp_path / kind.__name__), **fields)
            own = {name: value(model) if name == "optimizers" else value for name, value in given.items()}
            own = {"model": model, "data_collator": ContrastiveCollator(tiny_tokenizer), **own}
            own = {name: value for name, value in own.items() if value is not None}
            trainers.append(kind(args=args, train_dataset=text, processing_class=tiny_tokenizer, **own))
        return trainers

    return make


@pytest.fixture
def pairs(tmp_path) -> Dataset:
    return load_pairs(write_pairs(tmp_path / "pairs.tsv"))


def test_every_argument_is_taken():
    theirs, ours = (inspect.signature(kind.__init__).parameters for kind in (Trainer, CacseTrainer))
    assert not theirs.keys() - ours.keys()
    assert list(ours)[:7] == list(theirs)[:7]
    assert all(takes(DistillationTrainer.__init__, name) for name in theirs)
    with pytest.raises(TypeError, match="from 1 to 7 positional"):  # model_init there, which is no length here
        CacseTrainer(None, None, None, None, None, None, 64)


class Listen(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)


def distance(outputs, labels, num_items_in_batch=None):
    """The views are drawn together: no loss of the model's."""
    first, second = outputs["embeddings"].unbind(1)
    return (first - second.roll(1, 0)).pow(2).mean()


SCHEDULE = torch.optim.lr_scheduler.LambdaLR
GIVEN = {
    "callbacks": lambda folder: {"callbacks": [Listen]},
    "compute_loss_func": lambda folder: {"compute_loss_func": distance},
    "optimizer": lambda folder: {"optimizers": lambda model: (torch.optim.SGD(model.parameters(), lr=0.1), None)},
    "optimizer and schedule": lambda folder: {
        "optimizers": lambda model: (
            one := torch.optim.SGD(model.parameters(), lr=0.1),
            SCHEDULE(one, lambda step: 1 / (1 + step)),
        )
    },
    "optimizer_cls_and_kwargs": lambda folder: {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.05})},
    "model_init": lambda folder: {
        "model": None,
        "model_init": lambda: SentenceEmbeddingModel.from_encoder(folder, dropout=0.0, pooling="cls_before_pooler"),
    },
    "data_collator": lambda folder: {
        "data_collator": lambda rows: {"input_ids": torch.arange(5, 9).repeat(len(rows), 2, 1)}
    },
}


@pytest.mark.parametrize("name", GIVEN)
def test_trained_as_by_plain_trainer(both, tiny_towers, name):
    theirs, ours = both({"gradient_accumulation_steps": 2}, **GIVEN[name](tiny_towers("bert", layers=1)[0]))
    for trainer in (theirs, ours):
        trainer.train()
    keys = ("loss", "grad_norm", "learning_rate")
    plain, mine = ([[e[k] for k in keys] for e in one.state.log_history if "loss" in e] for one in (theirs, ours))
    assert len(mine) == 3 and mine == [pytest.approx(line, rel=1e-5) for line in plain]
    assert type(theirs.optimizer.optimizer) is type(ours.optimizer.optimizer)
    listening = [one for one in ours.callback_handler.callbacks if isinstance(one, Listen)]
    assert all(one.steps == [1, 2, 3] for one in listening) and len(listening) == (name == "callbacks")


def test_a_loss_of_labelled_pairs(tiny_towers, tiny_tokenizer, pairs, tmp_path):
    """``compute_loss_func`` is given the labels of the batch, as of any model."""
    seen = []

    def squared(outputs, labels, num_items_in_batch=None):
        seen.append(labels)
        return (torch.cosine_similarity(*outputs["embeddings"].unbind(1)) - labels / 5).pow(2).mean()

    args = TrainingArguments(str(tmp_path / "run"), max_steps=2, report_to="none", use_cpu=True, save_strategy="no")
    args.disable_tqdm = True
    model = SentenceEmbeddingModel.from_encoder(tiny_towers("bert", layers=1)[0], pooling="mean")
    given = {"train_dataset": pairs, "processing_class": tiny_tokenizer, "compute_loss_func": squared}
    trainer = CacseTrainer(model, args, **given)
    trainer.train()
    assert [label.shape for label in seen] == [(8,)] * 2 and set(seen[0].tolist()) <= set(pairs["score"])


METRICS = {"rank": lambda p: stats.kendalltau(p.predictions, p.label_ids).statistic, "n": lambda p: len(p.predictions)}


def kendall(given: EvalPrediction) -> dict:
    return {name: metric(given) for name, metric in METRICS.items()}


def test_metrics_of_ones_own_choose_the_model(make_trainer, pairs, monkeypatch):
    """Beside the trainer's own, of each set of pairs, in the log, in what is best and in `predict`."""
    seen = []

    def listen(given):
        seen.append(given)
        return {**kendall(given), "eval_a_named": np.float32(len(seen))}

    sets = {"a": pairs, "b": RetrievalSet(["a man"], ["a man", "the dog"], [{0: 1}]), "c": pairs.select(range(9))}
    trainer = make_trainer(pairs=sets, max_steps=2, eval_steps=1, metric_for_best_model="a_rank")
    trainer.compute_metrics = listen
    encoded, plain = [], Embedder.vectors
    monkeypatch.setattr(Embedder, "vectors", lambda *own, **how: encoded.append(own) or plain(*own, **how))
    trainer.train()
    assert len(encoded) == 3 * 4  # of pairs once, of a retrieval set queries and documents
    scores = [entry for entry in trainer.state.log_history if "eval_a_spearman" in entry]
    assert len(scores) == 3 and len(seen) == 6
    assert scores[0]["eval_a_rank"] == kendall(seen[0])["rank"] and scores[0]["eval_c_n"] == 9
    assert scores[0]["eval_a_named"] == 1.0 and type(scores[0]["eval_a_named"]) is float and "eval_b_n" not in scores[0]
    assert trainer.state.best_metric == max(entry["eval_a_rank"] for entry in scores[1:])
    found = trainer.predict(pairs)
    assert found.metrics["test_rank"] == pytest.approx(kendall(found)["rank"]) and found.metrics["test_n"] == 24


def test_predictions_made_of_the_cosines(make_trainer, pairs):
    def rounded(cosines, labels):
        assert cosines.shape == labels.shape == (len(pairs),)
        return (cosines * 5).round()

    def whole(given, compute_result):
        assert compute_result and set(given.predictions) <= set(range(-5, 6))
        return {"exact": (given.predictions == given.label_ids).mean()}

    trainer = make_trainer(pairs=pairs, metric_for_best_model="spearman", batch_eval_metrics=True)
    trainer.preprocess_logits_for_metrics, trainer.compute_metrics = rounded, whole
    found = trainer.predict(pairs)
    assert trainer.evaluate()["eval_exact"] == found.metrics["test_exact"]
    assert set(found.predictions) <= set(range(-5, 6))
    trainer.compute_metrics = lambda given, compute_result: 0.5
    with pytest.raises(UserError, match="compute_metrics gave a float; it must return a dict"):
        trainer.evaluate()


ASKED = {
    "num_examples": lambda one: one.num_examples(one.get_train_dataloader()),
    "get_train_dataloader": lambda one: {
        name: part.shape[:2] for name, part in next(iter(one.get_train_dataloader())).items()
    },
    "evaluation_loop": lambda one: one.evaluation_loop(one.get_train_dataloader(), "x").num_samples,
    "prediction_step": lambda one: one.prediction_step(one.model, _batch(one), True),
    "get_test_dataloader": lambda one: len(one.get_test_dataloader(one.train_dataset)),
    "get_eval_dataloader": lambda one: len(one.get_eval_dataloader(one.train_dataset)),
    "create_optimizer": lambda one: len(one.create_optimizer().param_groups),
    "create_optimizer_and_scheduler": lambda one: one.create_optimizer_and_scheduler(5),
    "create_scheduler": lambda one: type(one.create_scheduler(5, one.create_optimizer())),
    "get_learning_rates": lambda one: one.create_optimizer() and one.get_learning_rates(),
    "get_optimizer_group": lambda one: one.create_optimizer() and len(one.get_optimizer_group()),
    "get_num_trainable_parameters": lambda one: one.get_num_trainable_parameters(),
    "get_total_train_batch_size": lambda one: one.get_total_train_batch_size(one.args),
    "get_decay_parameter_names": lambda one: one.get_decay_parameter_names(one.model),
    "floating_point_ops": lambda one: one.floating_point_ops(_batch(one)),
    "compute_loss": lambda one: round(one.compute_loss(one.model, _batch(one)).item(), 4),
    "pop_callback": lambda one: type(one.pop_callback(PrinterCallback)),
    "remove_callback": lambda one: one.remove_callback(PrinterCallback),
    "add_callback": lambda one: one.add_callback(ProgressCallback),
    "is_world_process_zero": lambda one: (one.is_local_process_zero(), one.is_world_process_zero()),
    "save_state": lambda one: one.save_state(),
    "save_metrics": lambda one: one.save_metrics("x", {"x_a": 1.0}),
    "log": lambda one: one.log({"x": 1.0}) or one.state.log_history,
}


def _batch(trainer) -> dict:
    return trainer.data_collator(list(trainer.train_dataset.select(range(8))))


def test_asked_as_plain_trainer(both):
    theirs, ours = both()
    for name, ask in ASKED.items():
        assert ask(ours) == ask(theirs), name


def test_what_has_no_meaning_is_refused_at_construction(make_trainer, pairs, tiny_towers, tiny_tokenizer, tmp_path):
    with pytest.raises(UserError, match="label_smoothing_factor smooths the labels of a classifier"):
        make_trainer(label_smoothing_factor=0.1)
    args = TrainingArguments(str(tmp_path / "run"), include_for_metrics=["loss"], use_cpu=True, report_to="none")
    model = SentenceEmbeddingModel.from_encoder(tiny_towers("bert", layers=1)[0])
    given = {"processing_class": tiny_tokenizer, "train_dataset": Dataset.from_dict({"text": ["a man"] * 8})}
    with pytest.raises(UserError, match="include_for_metrics loss: dev sets are scored by their cosines"):
        CacseTrainer(model, args, **given, compute_metrics=kendall)
    with pytest.raises(UserError, match="compute_loss_func: the loss of a distillation is of the teacher's vectors"):
        DistillationTrainer(model, model, args, **given, compute_loss_func=distance)
    for wrong, told in (
        (given["train_dataset"], r"graded pairs \(sentence1, sentence2, score\) or a RetrievalSet, not rows of text"),
        ({"a": list(pairs)}, r"not a list; of rows in memory: Dataset\.from_list\(rows\)"),
        (pairs.to_iterable_dataset(), "not a IterableDataset"),
    ):
        with pytest.raises(UserError, match=told):
            CacseTrainer(model, args, **given, eval_dataset=wrong)
