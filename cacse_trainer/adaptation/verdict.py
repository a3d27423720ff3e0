"""Start against result on queries that nothing was chosen by: scores, intervals, the queries that moved most, speed."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cacse_trainer.data.retrieval import RetrievalSet
from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.dev_sets import Answers, Retrieval, answers_of
from cacse_trainer.evaluation.retrieval import bm25_results, score_vectors

logger = logging.getLogger(__name__)

HELPED, UNCLEAR, WORSE = "helped", "unclear", "did not help"
SHOWN = 10
"""Queries that are shown of those that gained, and of those that lost most."""
TIMED_TEXTS = 300
WARM_UP = 16


@dataclass
class Contender:
    """One row of the verdict's table.

    Args:
        name: of the encoder, or of the form that it has.
        scores: on the test part, ×100, by metric.
        sentences_a_second: passages encoded here; None where that says nothing.
        size_mb: of its file; None likewise.
    """

    name: str
    scores: dict[str, float]
    sentences_a_second: float | None = None
    size_mb: float | None = None


@dataclass
class Verdict:
    """What the test part says.

    Args:
        outcome: ``helped`` where the interval lies above 0, ``did not help`` where the difference does not,
            else ``unclear``.
        metric: by which it is told.
        start, adapted: the scores ×100.
        low, high: ends of the 95 % interval of the difference.
        gained, lost: the queries whose score moved most: query, before, after (×100).
    """

    outcome: str
    metric: str
    start: float
    adapted: float
    low: float | None
    high: float | None
    gained: list[tuple[str, float, float]]
    lost: list[tuple[str, float, float]]

    @property
    def sentence(self) -> str:
        """The verdict for a person."""
        interval = "" if self.low is None else f", 95 % interval [{self.low:+.2f}, {self.high:+.2f}]"
        change = f"{self.metric} {self.start:.2f} → {self.adapted:.2f} ({self.adapted - self.start:+.2f}{interval})"
        if self.outcome == HELPED:
            return f"The adapted encoder is better on held-out queries: {change}."
        clearly = "clearly " if self.outcome == UNCLEAR else ""
        return f"The adapted encoder is not {clearly}better on held-out queries: {change}. Keep the start."

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return {**asdict(self), "sentence": self.sentence}


def judge(test: RetrievalSet, start: Answers, adapted: Answers) -> Verdict:
    """The verdict from both encoders' answers to the test part."""
    found = Retrieval(test).difference("test", start, adapted)
    moved = 100 * (adapted.values - start.values)
    order = np.argsort(moved, kind="stable")

    def told(numbers: Sequence[int]) -> list[tuple[str, float, float]]:
        return [(test.queries[i], 100 * float(start.values[i]), 100 * float(adapted.values[i])) for i in numbers]

    outcome = UNCLEAR if found.difference > 0 else WORSE
    if found.low is not None and found.low > 0:
        outcome = HELPED
    return Verdict(
        outcome,
        Retrieval.metric,
        found.first,
        found.second,
        found.low,
        found.high,
        gained=told([int(i) for i in order[::-1][:SHOWN] if moved[i] > 0]),
        lost=told([int(i) for i in order[:SHOWN] if moved[i] < 0]),
    )


def bm25(test: RetrievalSet) -> Contender | None:
    """What a search by words finds; None where bm25s is not installed."""
    try:
        return Contender("BM25 (words alone)", answers_of(bm25_results(test)).scores)
    except UserError as error:
        logger.warning("no BM25 beside the encoders: %s", error)
        return None


def truncations(encoder: SentenceEncoder, test: RetrievalSet, sizes: Sequence[int]) -> list[Contender]:
    """The encoder's vectors cut to their first coordinates."""
    queries, documents = Retrieval(test).vectors(encoder.embedder)
    return [
        Contender(
            f"its first {size} coordinates",
            answers_of(score_vectors(queries[:, :size], documents[:, :size], test.relevant)).scores,
        )
        for size in sizes
        if size < queries.shape[1]
    ]


def pace_of(encode: Callable[[list[str]], Any], test: RetrievalSet) -> float:
    """Passages of the test part that are encoded in a second."""
    texts = test.documents[:TIMED_TEXTS]
    encode(texts[:WARM_UP])
    begun = time.perf_counter()
    encode(texts)
    return len(texts) / (time.perf_counter() - begun)
