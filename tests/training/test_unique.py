"""Batches without a common sentence: every batch is one, whatever the text; each process sees its part of it."""

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from cacse_trainer.errors import UserError
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.training.resumable import EpochOrder
from cacse_trainer.training.unique import unique_batches, unique_order


def batches_of(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def assert_unique(order: list[int], texts: np.ndarray, size: int) -> None:
    for batch in batches_of(order, size):
        assert len(batch) == size
        rows = [set(texts[row].tolist()) for row in batch]
        assert len(set().union(*rows)) == sum(map(len, rows))


@pytest.mark.parametrize("sentences", [1000, 120, 40, 24])
def test_every_batch_is_without_a_common_sentence(sentences):
    """200 rows of two sentences in batches of 8, from hardly any repetition to more than batches can be made of."""
    random = np.random.default_rng(sentences)
    texts = random.integers(sentences, size=(200, 2))
    order = random.permutation(200).tolist()
    found = list(unique_batches(order, texts, 8))
    assert len(found) == 200 and found == list(unique_batches(order, texts, 8))
    assert_unique(found, texts, 8)
    if sentences >= 120:
        assert len(set(found)) >= 198  # one pass over the rows, but for what is left over at its end


def test_rows_without_repetition_keep_their_order():
    order = [3, 1, 4, 0, 5, 2, 6]
    assert list(unique_batches(order, np.arange(14).reshape(7, 2), 3)) == order[:6]


def test_one_sentence_in_half_of_the_rows():
    """One such row a batch; the others fill it up, and are seen more than once."""
    texts = np.array([[7] if i % 2 else [100 + i] for i in range(40)])
    found = list(unique_batches(range(40), texts, 4))
    assert_unique(found, texts, 4)
    assert all(sum(row % 2 for row in batch) == 1 for batch in batches_of(found, 4))
    counts = np.bincount([row for row in found if row % 2 == 0], minlength=40)[::2]
    assert counts.min() == 1 and counts.max() == 2


def test_no_such_batch_is_told():
    with pytest.raises(UserError, match="no batch of 4 rows without a common sentence can be made, 2 is the most"):
        list(unique_batches(range(8), np.array([[1], [2]] * 4), 4))


def test_two_processes_share_each_batch_and_epochs_differ():
    random = np.random.default_rng(0)
    words = [f"s{i}" for i in range(60)]
    columns = {name: [words[i] for i in random.integers(60, size=50)] for name in ("anchor", "positive", "negative_1")}
    dataset = Dataset.from_dict({**columns, "number": list(range(50))})
    order = unique_order(EpochOrder(RandomSampler(dataset), 7), dataset, size=8)
    assert len(order) == 48
    epochs = []
    for epoch in (0, 1, 0):
        order.set_epoch(epoch)
        shards = [list(BatchSamplerShard(BatchSampler(order, 4, True), 2, rank)) for rank in range(2)]
        steps = [one + other for one, other in zip(*shards, strict=True)]
        assert len(steps) == 6
        for rows in steps:
            texts = [{dataset[row][name] for name in columns} for row in rows]
            assert len(set().union(*texts)) == sum(map(len, texts))
        epochs.append(steps)
    assert epochs[0] == epochs[2] != epochs[1]
    with pytest.raises(UserError, match="leave train_sampling_strategy at random"):
        unique_order(SequentialSampler(dataset), dataset, 8)


def test_scores_are_no_sentences():
    dataset = Dataset.from_dict({"anchor": ["a", "b", "c", "d"], "scores": [[1.0, 2.0]] * 4})
    assert unique_order(EpochOrder(RandomSampler(dataset), 7), dataset, size=2).texts.shape == (4, 1)


def test_the_trainer_counts_no_duplicates(make_trainer):
    text = Dataset.from_dict({"text": [f"a man {'big ' * (i % 5)}" for i in range(40)]})
    for unique, count in ((False, 4), (True, 0)):
        arguments = {"per_device_train_batch_size": 4, "eval_strategy": "no", "load_best_model_at_end": False}
        trainer = make_trainer(
            str(unique), text=text, pairs={}, kind=CacseTrainingArguments, unique_batches=unique, **arguments
        )
        assert len(trainer.get_train_dataloader()) == 10
        trainer.train()
        found = [entry["duplicate_rows"] for entry in trainer.state.log_history if "duplicate_rows" in entry]
        assert (max(found) > 0) == (count > 0) and len(found) == 6


def test_a_stream_is_refused(make_trainer):
    stream = Dataset.from_dict({"text": ["a", "b"]}).to_iterable_dataset()
    with pytest.raises(UserError, match="unique_batches needs to know all rows beforehand"):
        make_trainer(
            text=stream,
            pairs={},
            kind=CacseTrainingArguments,
            unique_batches=True,
            eval_strategy="no",
            load_best_model_at_end=False,
        )
