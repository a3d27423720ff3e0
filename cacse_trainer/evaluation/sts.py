"""Semantic textual similarity on a set of graded pairs: the score by which checkpoints are chosen."""

import warnings
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import stats

from cacse_trainer.encoding.embedder import Vectors
from cacse_trainer.evaluation.health import alignment, average_cosine, dead_dimensions, uniformity, unit

POSITIVE_SHARE = 0.8
"""Pairs that score at least this share of the highest gold score count as positive for the alignment (4 of 5)."""


class SpearmanMetric(evaluate.Metric):
    """Spearman's and Pearson's correlation by scipy, as an `evaluate.Metric` that needs no hub.

    ``compute(predictions=…, references=…)`` → ``{"spearman", "pearson"}`` in [-1, 1]; NaN where one side is constant.
    """

    def _info(self) -> evaluate.MetricInfo:
        numbers = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})
        return evaluate.MetricInfo(
            description="Rank and linear correlation of predicted and gold similarity.",
            citation="Spearman 1904; Pearson 1895",
            inputs_description="predictions, references: one number a pair",
            features=numbers,
        )

    def _build_data_dir(self) -> str:
        """None is made: the parent's stands in the hub's cache, which need not be writable."""
        return ""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return correlations(np.asarray(predictions), np.asarray(references))


def correlations(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """``spearman`` and ``pearson`` of two rows of numbers, in [-1, 1]; NaN where one is constant or not finite."""
    finite = np.isfinite(predictions).all() and np.isfinite(references).all()
    if not finite or len(predictions) < 2 or np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return {"spearman": float("nan"), "pearson": float("nan")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return {
            "spearman": float(stats.spearmanr(predictions, references).statistic),
            "pearson": float(stats.pearsonr(predictions, references).statistic),
        }


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each row pair in float64: (n, H), (n, H) → (n,)."""
    return (unit(first) * unit(second)).sum(axis=1)


def pair_vectors(embedder: Vectors, pairs: datasets.Dataset) -> tuple[list[str], np.ndarray, np.ndarray]:
    """All sentences of graded pairs, and the vectors of the first and of the second ones, (n, H) each."""
    sentences = [*pairs["sentence1"], *pairs["sentence2"]]
    both = embedder.vectors(sentences)
    return sentences, both[: len(pairs)], both[len(pairs) :]


def pair_cosines(embedder: Vectors, pairs: datasets.Dataset) -> np.ndarray:
    """The cosine that a model gives each graded pair, (n,)."""
    return cosines(*pair_vectors(embedder, pairs)[1:])


def score_pairs(embedder: Vectors, pairs: datasets.Dataset) -> dict[str, float]:
    """Scores of a model on graded pairs.

    Args:
        embedder: of the model.
        pairs: columns sentence1, sentence2, score.

    Returns:
        ``spearman`` and ``pearson`` of the cosine with the gold score, ×100, and of the embedding space:
        ``alignment`` (pairs scored at least 80 % of the highest), ``uniformity``, ``average_cosine`` and
        ``dead_dimensions``.
    """
    sentences, first, second = pair_vectors(embedder, pairs)
    gold = np.asarray(pairs["score"], dtype=np.float64)
    # In memory: the default writes a lock and a file into a cache folder that several processes share.
    correlated = SpearmanMetric(keep_in_memory=True).compute(predictions=cosines(first, second), references=gold)
    assert correlated is not None  # for the type checker: compute returns None only on other processes
    distinct = np.concatenate((first, second))[np.unique(np.array(sentences), return_index=True)[1]]
    positive = gold >= POSITIVE_SHARE * gold.max()
    return {
        "spearman": 100 * correlated["spearman"],
        "pearson": 100 * correlated["pearson"],
        "alignment": alignment(first[positive], second[positive]),
        "uniformity": uniformity(distinct),
        "average_cosine": average_cosine(distinct),
        "dead_dimensions": dead_dimensions(distinct),
    }
