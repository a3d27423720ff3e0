"""The share of a training that is kept: as little of it as the dev part takes for as good as the best."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cacse_trainer import SentenceEncoder
from cacse_trainer.adaptation.outcome import Reading, choosing, smallest_of_the_best
from cacse_trainer.data.retrieval import from_pairs
from cacse_trainer.evaluation.dev_sets import Answers, Retrieval

DEV = Retrieval(from_pairs([("a query", "its answer"), ("another", "another answer")]))


def answers(mean: float, seed: int) -> Answers:
    """200 queries around a mean, each with noise of its own."""
    values = np.random.default_rng(seed).normal(mean, 0.1, 200)
    return Answers(values, {DEV.metric: 100 * float(values.mean())})


@pytest.mark.parametrize(
    ("means", "chosen"),
    [
        ({0.5: 0.6, 0.75: 0.7, 1.0: 0.8}, 1.0),  # each clearly better than the one before
        ({0.5: 0.6, 0.75: 0.799, 1.0: 0.8}, 0.75),
        ({0.5: 0.8, 0.75: 0.8, 1.0: 0.8}, 0.5),
        ({0.5: 0.9, 0.75: 0.8, 1.0: 0.7}, 0.5),
        ({1.0: 0.8}, 1.0),
    ],
)
def test_the_smallest_share_that_is_not_clearly_worse(means, chosen):
    found = {share: answers(mean, seed) for seed, (share, mean) in enumerate(means.items())}
    assert smallest_of_the_best(DEV, dict(reversed(found.items()))) == chosen


def test_what_chooses_is_read_in_the_precision_of_the_run_and_what_judges_in_float32(tiny_towers):
    encoder = SentenceEncoder(tiny_towers("bert")[0], "cls")
    sentences = ["a small house stands", "the river"]
    before = encoder.embedder.vectors(sentences)
    assert choosing(encoder, SimpleNamespace(bf16=False)).dtype is None
    quick = choosing(encoder, SimpleNamespace(bf16=True))
    assert quick.dtype is torch.bfloat16
    found = quick.vectors(sentences)
    assert not np.array_equal(found, before)
    assert np.linalg.norm(found - before) < 2**-5 * np.linalg.norm(before)  # rounded to 2**-8 in each of some layers
    assert np.array_equal(encoder.embedder.vectors(sentences), before)


def test_the_cost_of_a_text_is_told_by_its_letters():
    reading = Reading(embedder=None, answers=None, seconds=3.0, letters=600)
    assert reading.cost(["a" * 50, "b" * 150]) == 1.0
    assert reading.cost([]) == 0
