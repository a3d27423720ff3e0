"""Dev sets of two kinds, graded pairs and retrieval, that answer the same questions of an encoder.

What chooses a checkpoint, tells the baseline and judges the result asks a `DevSet` and knows neither kind.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from datasets import Dataset

from cacse_trainer.data.retrieval import RetrievalSet
from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.evaluation.compare import Difference, difference_of, difference_of_means
from cacse_trainer.evaluation.health import average_cosine
from cacse_trainer.evaluation.retrieval import METRICS, NDCG, QueryMetrics, score_vectors
from cacse_trainer.evaluation.sts import correlations, pair_cosines, score_pairs


@dataclass(frozen=True, eq=False)
class Answers:
    """What an encoder says of a dev set.

    Args:
        values: a number for each pair (its cosine) or query (its nDCG@10 from 0 to 1), from which a bootstrap draws.
        scores: ×100, by metric.
    """

    values: np.ndarray
    scores: dict[str, float]


class DevSet(ABC):
    """A set on which an encoder is scored."""

    metric: ClassVar[str]
    """The score by which it chooses and judges."""
    metrics: ClassVar[tuple[str, ...]]
    """The scores by which a user may choose."""

    @abstractmethod
    def scores(self, embedder: Embedder) -> dict[str, float]:
        """All that is logged of an encoder; `metrics` ×100."""

    @abstractmethod
    def read(self, embedder: Embedder) -> Answers:
        """What an encoder answers, to be kept and compared."""

    @abstractmethod
    def difference(self, name: str, first: Answers, second: Answers) -> Difference:
        """Two encoders' scores by `metric` ×100, and the 95 % paired-bootstrap interval of second - first."""


@dataclass(frozen=True, eq=False)
class GradedPairs(DevSet):
    """Sentence pairs with a score.

    Args:
        pairs: columns sentence1, sentence2, score.
    """

    pairs: Dataset

    metric: ClassVar[str] = "spearman"
    metrics: ClassVar[tuple[str, ...]] = ("spearman", "pearson")

    def scores(self, embedder: Embedder) -> dict[str, float]:
        """See `score_pairs`."""
        return score_pairs(embedder, self.pairs)

    def read(self, embedder: Embedder) -> Answers:
        """The cosine of each pair, and the correlations."""
        cosines = pair_cosines(embedder, self.pairs)
        return Answers(cosines, {name: 100 * value for name, value in correlations(cosines, self._gold).items()})

    def difference(self, name: str, first: Answers, second: Answers) -> Difference:
        """The pairs are drawn, the same ones for both."""
        return difference_of(name, first.values, second.values, self._gold)

    @property
    def _gold(self) -> np.ndarray:
        return np.asarray(self.pairs["score"], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Retrieval(DevSet):
    """Queries that search a set of documents.

    Queries are encoded behind the embedder's ``query_prompt``, documents behind its ``document_prompt``.
    """

    retrieval_set: RetrievalSet

    metric: ClassVar[str] = NDCG
    metrics: ClassVar[tuple[str, ...]] = METRICS

    def scores(self, embedder: Embedder) -> dict[str, float]:
        """The means over the queries ×100, and the ``average_cosine`` of the documents."""
        queries, documents = self.vectors(embedder)
        found = score_vectors(queries, documents, self.retrieval_set.relevant)
        return {**means(found), "average_cosine": average_cosine(documents)}

    def read(self, embedder: Embedder) -> Answers:
        """nDCG@10 of each query, and the means of all metrics."""
        return answers_of(score_vectors(*self.vectors(embedder), self.retrieval_set.relevant))

    def difference(self, name: str, first: Answers, second: Answers) -> Difference:
        """The queries are drawn, the same ones for both."""
        return difference_of_means(name, first.values, second.values)

    def vectors(self, embedder: Embedder) -> tuple[np.ndarray, np.ndarray]:
        """(queries, dim) and (documents, dim)."""
        return (
            embedder.vectors(self.retrieval_set.queries, prompt=embedder.query_prompt),
            embedder.vectors(self.retrieval_set.documents, prompt=embedder.document_prompt),
        )


def means(found: QueryMetrics) -> dict[str, float]:
    """The mean of each metric over the queries, ×100."""
    return {name: 100 * float(values.mean()) for name, values in found.items()}


def answers_of(found: QueryMetrics) -> Answers:
    """What a search (of vectors, or BM25's) has found, as an encoder's answers to a `Retrieval`."""
    return Answers(found[NDCG], means(found))


def as_dev_set(value: Dataset | RetrievalSet | DevSet) -> DevSet:
    """Graded pairs and retrieval sets as what they are scored by; a dev set as it is."""
    if isinstance(value, DevSet):
        return value
    return Retrieval(value) if isinstance(value, RetrievalSet) else GradedPairs(value)


def as_dev_sets(given: object) -> dict[str, DevSet]:
    """One set, named ``""``, or a dict of them by name; sets that are None are left out."""
    named = given if isinstance(given, Mapping) else {"": given}
    return {name: as_dev_set(value) for name, value in named.items() if value is not None}


def scores_by_set(embedder: Embedder, dev_sets: Mapping[str, DevSet]) -> dict[str, float]:
    """The score by which each set judges, ×100."""
    return {name: one.read(embedder).scores[one.metric] for name, one in dev_sets.items()}
