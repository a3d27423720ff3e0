"""Semantic similarity without training: cosine of two embeddings against human scores.

STS12 to STS16 are tables of subsets; STSBenchmark and SICKRelatedness have train, dev and test parts. The cosine is
taken pair by pair in the embeddings' own precision, as for the published figures; float64 moves STS12 by 0.003 at
most.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr

from senteval import data
from senteval.encoding import Batcher, Tokens, encode
from senteval.task import Result, Task
from senteval.utils import cosine, dotdict

SUBSETS = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "headlines", "OnWN"),  # without SMT, whose licence keeps it out of the public files
    "STS14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
STS_BENCHMARK_FILES = {"train": "sts-train.csv", "dev": "sts-dev.csv", "test": "sts-test.csv"}
SICK_FILES = {"train": "SICK_train.txt", "dev": "SICK_trial.txt", "test": "SICK_test_annotated.txt"}


def correlations(scores: np.ndarray, gold: np.ndarray) -> Result:
    """Pearson and Spearman as scipy's result objects; undefined (NaN) for fewer than two pairs.

    Example:
        >>> result = correlations(np.array([0.1, 0.2, 0.9]), np.array([1.0, 2.0, 3.0]))
        >>> float(result["spearman"].correlation) == float(result["spearman"][0]) == 1.0
        True
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant column: the NaN says it
        if len(scores) < 2:  # pearsonr refuses a single pair; a constant column gives the same undefined result
            scores, gold = np.zeros(2), np.zeros(2)
        return {"pearson": pearsonr(scores, gold), "spearman": spearmanr(scores, gold)}


def summary(results: dict[str, Result], scores: np.ndarray, gold: np.ndarray) -> Result:
    """The three aggregations over subsets.

    ``all`` is one correlation over all scored pairs together, ``mean`` averages the subsets' correlations, ``wmean``
    weighs them by their number of pairs.
    """
    together = correlations(scores, gold)
    weights = [result["nsamples"] for result in results.values()]
    table: Result = {}
    for measure in ("pearson", "spearman"):
        each = np.array([result[measure][0] for result in results.values()])
        table[measure] = {
            "all": together[measure][0],
            "mean": np.average(each),
            "wmean": np.average(each, weights=weights),
        }
    return table


class SimilarityTask(Task):
    """Correlation of ``params.similarity`` (cosine by default) with human scores, by subset and together.

    Attributes:
        data: subset → (first sentences, second sentences, scores).
        pair_scores: subset → (similarities, scores) of the last run, in the order of ``data``.
    """

    def __init__(self, name: str, subsets: dict[str, data.Pairs], seed: int = 1111) -> None:
        super().__init__(name, seed)
        self.data = subsets
        self.pair_scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def samples(self) -> list[Tokens]:
        return [tokens for first, second, _ in self.data.values() for tokens in first + second]

    def run(self, params: dotdict, batcher: Batcher) -> Result:
        similarity: Any = params.similarity or cosine
        results: Result = {}
        for subset, (first, second, gold) in self.data.items():
            u = encode(params, batcher, first, self.name)  # (pairs, dim)
            v = encode(params, batcher, second, self.name)  # (pairs, dim)
            scores = np.array([similarity(a, b) for a, b in zip(u, v, strict=True)], dtype=np.float64)
            self.pair_scores[subset] = (scores, np.array(gold))
            results[subset] = {**correlations(*self.pair_scores[subset]), "nsamples": len(scores)}
        together = [np.concatenate(column) for column in zip(*self.pair_scores.values(), strict=True)]
        results["all"] = summary(results, together[0], together[1])
        return results


def load_sts_year(name: str, folder: Path, seed: int) -> SimilarityTask:
    """STS12 … STS16 from the folder of its ``STS.input.*`` and ``STS.gs.*`` files."""
    return SimilarityTask(name, {subset: data.sts_subset(folder, subset) for subset in SUBSETS[name]}, seed)


def load_sts_benchmark(name: str, folder: Path, seed: int) -> SimilarityTask:
    """STS Benchmark from its three csv files."""
    return SimilarityTask(name, {p: data.sts_benchmark(folder / f) for p, f in STS_BENCHMARK_FILES.items()}, seed)


def load_sick_relatedness(name: str, folder: Path, seed: int) -> SimilarityTask:
    """SICK relatedness from its three files."""
    return SimilarityTask(name, {part: data.sick(folder / f)[:3] for part, f in SICK_FILES.items()}, seed)
