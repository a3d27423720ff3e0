"""The share of a training that is kept: as little of it as the dev part takes for as good as the best."""

import numpy as np
import pytest

from cacse_trainer.adaptation.outcome import smallest_of_the_best
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
