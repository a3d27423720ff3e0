"""Dev sets of two kinds, graded pairs and retrieval, that answer the same questions of an encoder.

What chooses a checkpoint, tells the baseline and judges the result asks a `DevSet` and knows neither kind.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from cacse_trainer.data import has_labels, load_pairs
from cacse_trainer.data.retrieval import RetrievalSet, has_pair_columns, is_folder_or_files, load_retrieval
from cacse_trainer.encoding.embedder import Vectors
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.compare import Difference, difference_of, difference_of_means
from cacse_trainer.evaluation.health import average_cosine
from cacse_trainer.evaluation.retrieval import METRICS, NDCG, QueryMetrics, score_vectors
from cacse_trainer.evaluation.sts import correlations, pair_cosines, score_pairs
from cacse_trainer.settings.resources import resolve_resource


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

    @property
    @abstractmethod
    def rows(self) -> int:
        """How many pairs or queries it has."""

    @property
    @abstractmethod
    def labels(self) -> np.ndarray | None:
        """The score of each pair as it is given; None of queries."""

    @property
    @abstractmethod
    def texts(self) -> list[str]:
        """All its sentences."""

    @abstractmethod
    def scores(self, embedder: Vectors) -> dict[str, float]:
        """All that is logged of an encoder; `metrics` ×100."""

    @abstractmethod
    def read(self, embedder: Vectors) -> Answers:
        """What an encoder answers, to be kept and compared."""

    @abstractmethod
    def difference(self, name: str, first: Answers, second: Answers) -> Difference:
        """Two encoders' scores by `metric` ×100, and the 95 % paired-bootstrap interval of second - first."""

    @abstractmethod
    def kept(self, answers: Answers) -> dict[str, np.ndarray]:
        """What an evaluation keeps of the answers, so that two of them can be compared."""

    @abstractmethod
    def facts(self, embedder: Vectors) -> dict[str, Any]:
        """What an evaluation says of the set: ``data``, a hash of all of it, its sizes, and how it is encoded."""


@dataclass(frozen=True, eq=False)
class GradedPairs(DevSet):
    """Sentence pairs with a score.

    Args:
        pairs: columns sentence1, sentence2, score.
    """

    pairs: Dataset

    metric: ClassVar[str] = "spearman"
    metrics: ClassVar[tuple[str, ...]] = ("spearman", "pearson")

    @property
    def rows(self) -> int:
        """Of the pairs."""
        return len(self.pairs)

    @property
    def labels(self) -> np.ndarray:
        """(rows,) float64."""
        return np.asarray(self.pairs["score"], dtype=np.float64)

    @property
    def texts(self) -> list[str]:
        """Of both sides."""
        return [*self.pairs["sentence1"], *self.pairs["sentence2"]]

    def scores(self, embedder: Vectors) -> dict[str, float]:
        """See `score_pairs`."""
        return score_pairs(embedder, self.pairs)

    def read(self, embedder: Vectors) -> Answers:
        """The cosine of each pair, and the correlations."""
        cosines = pair_cosines(embedder, self.pairs)
        return Answers(cosines, {name: 100 * value for name, value in correlations(cosines, self.labels).items()})

    def difference(self, name: str, first: Answers, second: Answers) -> Difference:
        """The pairs are drawn, the same ones for both."""
        return difference_of(name, first.values, second.values, self.labels)

    def kept(self, answers: Answers) -> dict[str, np.ndarray]:
        """As of SentEval's similarity tasks: one subset."""
        return {"cosine": answers.values, "gold": self.labels, "subset": np.full(len(self.pairs), "all")}

    def facts(self, embedder: Vectors) -> dict[str, Any]:
        """The number of pairs; they are scored all together."""
        columns = [self.pairs[name] for name in ("sentence1", "sentence2", "score")]
        return {"data": _hash(*map(list, columns)), "n": len(self.pairs), "aggregation": "all"}


@dataclass(frozen=True, eq=False)
class Retrieval(DevSet):
    """Queries that search a set of documents.

    Queries are encoded behind the embedder's ``query_prompt``, documents behind its ``document_prompt``.
    """

    retrieval_set: RetrievalSet

    metric: ClassVar[str] = NDCG
    metrics: ClassVar[tuple[str, ...]] = METRICS
    labels = None

    @property
    def rows(self) -> int:
        """Of the queries."""
        return len(self.retrieval_set.queries)

    @property
    def texts(self) -> list[str]:
        """The documents."""
        return list(self.retrieval_set.documents)

    def scores(self, embedder: Vectors) -> dict[str, float]:
        """The means over the queries ×100, and the ``average_cosine`` of the documents."""
        queries, documents = self.vectors(embedder)
        found = score_vectors(queries, documents, self.retrieval_set.relevant)
        return {**means(found), "average_cosine": average_cosine(documents)}

    def read(self, embedder: Vectors) -> Answers:
        """nDCG@10 of each query, and the means of all metrics."""
        return answers_of(score_vectors(*self.vectors(embedder), self.retrieval_set.relevant))

    def difference(self, name: str, first: Answers, second: Answers) -> Difference:
        """The queries are drawn, the same ones for both."""
        return difference_of_means(name, first.values, second.values)

    def kept(self, answers: Answers) -> dict[str, np.ndarray]:
        """nDCG@10 of each query."""
        return {"ndcg": answers.values}

    def facts(self, embedder: Vectors) -> dict[str, Any]:
        """The number of queries and of documents, and the prompts before them."""
        own = self.retrieval_set
        relevant = [sorted(graded.items()) for graded in own.relevant]
        data = _hash(own.queries, own.documents, relevant)
        prompts = [embedder.query_prompt, embedder.document_prompt]
        return {"data": data, "n": len(own.queries), "documents": len(own.documents), "prompts": prompts}

    def vectors(self, embedder: Vectors) -> tuple[np.ndarray, np.ndarray]:
        """(queries, dim) and (documents, dim)."""
        return (
            embedder.vectors(self.retrieval_set.queries, prompt=embedder.query_prompt),
            embedder.vectors(self.retrieval_set.documents, prompt=embedder.document_prompt),
        )


def _hash(*columns: list[Any]) -> str:
    digest = hashlib.sha256()
    for column in columns:
        for value in column:
            digest.update(f"{value!r}\n".encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def means(found: QueryMetrics) -> dict[str, float]:
    """The mean of each metric over the queries, ×100."""
    return {name: 100 * float(values.mean()) for name, values in found.items()}


def answers_of(found: QueryMetrics) -> Answers:
    """What a search (of vectors, or BM25's) has found, as an encoder's answers to a `Retrieval`."""
    return Answers(found[NDCG], means(found))


def as_dev_set(value: Dataset | RetrievalSet | DevSet) -> DevSet:
    """Graded pairs and retrieval sets as what they are scored by; a dev set as it is.

    Raises:
        UserError: it is none of these.
    """
    if isinstance(value, DevSet):
        return value
    if isinstance(value, RetrievalSet):
        return Retrieval(value)
    if not isinstance(value, Dataset):
        raise UserError(
            f"a dev set is a datasets.Dataset of graded pairs (sentence1, sentence2, score) or a RetrievalSet, not a "
            f"{type(value).__name__}; of rows in memory: Dataset.from_list(rows)"
        )
    if not {"sentence1", "sentence2", "score"} <= set(value.column_names):
        raise UserError(
            f"a dev set is graded pairs (sentence1, sentence2, score) or a RetrievalSet, not rows of "
            f"{', '.join(value.column_names)}; for vectors: trainer.embedder.vectors(sentences)"
        )
    return GradedPairs(value)


def as_dev_sets(given: object) -> dict[str, DevSet]:
    """One set, named ``""``, or a dict of them by name; sets that are None are left out."""
    named = given if isinstance(given, Mapping) else {"": given}
    return {name: as_dev_set(value) for name, value in named.items() if value is not None}


def scores_by_set(embedder: Vectors, dev_sets: Mapping[str, DevSet]) -> dict[str, float]:
    """The score by which each set judges, ×100."""
    return {name: one.read(embedder).scores[one.metric] for name, one in dev_sets.items()}


def load_named(entries: Sequence[str], option: str, taken: Collection[str] = ()) -> dict[str, DevSet]:
    """Dev sets by name, of either kind as their columns say; a path without a name is named after its file.

    Args:
        entries: paths, or ``name=path``; of graded pairs (see `load_pairs`) or of a retrieval set (`load_retrieval`).
        option: that gave them, for errors.
        taken: names that others have.

    Raises:
        UserError: a name that is none, or taken; a file that is wrong.
    """
    sets: dict[str, DevSet] = {}
    for entry in entries:
        name, separator, path = entry.partition("=")
        if not separator:
            path, name = entry, re.sub(r"\W", "_", Path(entry.partition(":")[2] or entry).stem)
        if not name.isidentifier():
            raise UserError(f"{option} {entry!r}: give name=path, the name of letters and digits, such as mine={path}")
        if name in sets or name in taken:
            raise UserError(f"{option}: the name {name} is given twice; give name=path with another name")
        sets[name] = load_dev_set(resolve_resource(path))
    return sets


def load_dev_set(path_or_name: str) -> DevSet:
    """A dev set of the kind that its columns, or its folder, say.

    Raises:
        UserError: see `load_pairs` and `load_retrieval`.
    """
    searched = is_folder_or_files(path_or_name) or (
        not has_labels(path_or_name, split="validation") and has_pair_columns(path_or_name)
    )
    return Retrieval(load_retrieval(path_or_name)) if searched else GradedPairs(load_pairs(path_or_name))
