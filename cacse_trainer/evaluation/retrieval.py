"""How well a set of documents is searched: nDCG, MRR and recall, exact, in blocks of queries.

The documents are ranked by their scores. Of equal scores the relevant document stands last, so that an encoder that
tells nothing apart (one vector for all) scores low. With the grade ``g`` of the document at each rank

    DCG@k = Σ_{rank ≤ k} g / log2(rank + 1),   nDCG@k = DCG@k / DCG@k of the best order there is,

as trec_eval and BEIR have it (Järvelin and Kekäläinen 2002). MRR@k is 1 / rank of the first relevant document, 0 beyond
k; recall@k the share of the relevant ones among the first k.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cacse_trainer.data.retrieval import RetrievalSet
from cacse_trainer.encoding.vectors.precision import normalized
from cacse_trainer.errors import extra_needed

DEPTH = 10
"""Of nDCG and MRR."""
NDCG, MRR, RECALL_1, RECALL_100 = "ndcg@10", "mrr@10", "recall@1", "recall@100"
METRICS = (NDCG, MRR, RECALL_1, RECALL_100)
SCORES_AT_ONCE = 1 << 24
"""Numbers of the table of queries and documents that is held at once."""
TIE = 5e-7
"""Cosines that are nearer to each other than float32 tells them apart are equal."""
WORDS = r"(?u)[\u3040-\u30ff\u3400-\u9fff]|\b[^\W\u3040-\u30ff\u3400-\u9fff]{2,}"
"""What BM25 counts: words of two letters or more, and the signs of scripts that have no spaces."""

QueryMetrics = dict[str, np.ndarray]
"""A number from 0 to 1 a query, by metric; see `METRICS`."""


def ranks_of_relevant(scores: np.ndarray, relevant: Mapping[int, float], tie: float = 0.0) -> np.ndarray:
    """The rank, from 1, of each relevant document, in the order of ``relevant``; ties count against it.

    Args:
        scores: (documents,), finite.
        relevant: index of document → grade; of equal scores the lower grade stands first.
        tie: scores that differ by no more are equal.

    >>> ranks_of_relevant(np.array([0.9, 0.5, 0.5]), {0: 1.0, 1: 1.0}).tolist()
    [1, 3]
    """
    indices = np.fromiter(relevant, dtype=np.int64, count=len(relevant))
    grades = np.fromiter(relevant.values(), dtype=np.float64, count=len(relevant))
    own = scores[indices]
    others = np.delete(scores, indices)
    above = np.array([np.count_nonzero(others >= score - tie) for score in own])
    rounded = np.round(own / tie) if tie else own
    order = np.lexsort((grades, -rounded))
    ranks = np.empty(len(indices), dtype=np.int64)
    ranks[order] = np.maximum.accumulate(above[order]) + np.arange(1, len(order) + 1)
    return ranks


def retrieval_metrics(ranks: Iterable[np.ndarray], relevant: Sequence[Mapping[int, float]]) -> QueryMetrics:
    """The metrics of each query.

    Args:
        ranks: of each query's relevant documents, see `ranks_of_relevant`.
        relevant: of each query, index of document → grade.
    """
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for own, graded in zip(ranks, relevant, strict=True):
        grades = np.fromiter(graded.values(), dtype=np.float64, count=len(graded))
        best = np.sort(grades)[::-1][:DEPTH]
        shown, first = own <= DEPTH, int(own.min())
        gain = float((grades[shown] / np.log2(own[shown] + 1)).sum())
        found[NDCG].append(gain / float((best / np.log2(np.arange(2, len(best) + 2))).sum()))
        found[MRR].append(1 / first if first <= DEPTH else 0.0)
        found[RECALL_1].append(float((own <= 1).mean()))
        found[RECALL_100].append(float((own <= 100).mean()))
    return {name: np.array(values) for name, values in found.items()}


def rank_vectors(
    queries: np.ndarray, documents: np.ndarray, relevant: Sequence[Mapping[int, float]]
) -> Iterator[np.ndarray]:
    """The ranks of each query's relevant documents by cosine; (queries, dim), (documents, dim), a block at a time."""
    queries, documents = normalized(queries), normalized(documents)
    rows = max(1, SCORES_AT_ONCE // len(documents))
    for start in range(0, len(queries), rows):
        table = queries[start : start + rows] @ documents.T  # (rows, documents)
        for scores, graded in zip(table, relevant[start : start + rows], strict=True):
            yield ranks_of_relevant(scores, graded, TIE)


def score_vectors(queries: np.ndarray, documents: np.ndarray, relevant: Sequence[Mapping[int, float]]) -> QueryMetrics:
    """The metrics of each query by the cosine of its vector with the documents'; NaN where a vector is not finite."""
    if not (np.isfinite(queries).all() and np.isfinite(documents).all()):
        return {name: np.full(len(queries), np.nan) for name in METRICS}
    return retrieval_metrics(rank_vectors(queries, documents, relevant), relevant)


def bm25_results(retrieval_set: RetrievalSet) -> QueryMetrics:
    """The metrics of each query by BM25 (k1 1.5, b 0.75; lower case, without English stop words), the usual yardstick.

    Raises:
        UserError: bm25s is not installed.
    """
    bm25s = load_bm25s()
    quiet: dict[str, Any] = {"show_progress": False}
    documents, queries = (
        bm25s.tokenize(texts, token_pattern=WORDS, return_ids=False, **quiet)
        for texts in (retrieval_set.documents, retrieval_set.queries)
    )
    relevant = retrieval_set.relevant
    nothing = np.zeros(len(documents), dtype=np.float32)
    if not any(documents):  # no word in any of them
        return retrieval_metrics((ranks_of_relevant(nothing, graded) for graded in relevant), relevant)
    index = bm25s.BM25()
    index.index(documents, **quiet)
    scores = (index.get_scores(words) if words else nothing for words in queries)
    ranks = (ranks_of_relevant(row, graded) for row, graded in zip(scores, relevant, strict=True))
    return retrieval_metrics(ranks, relevant)


def load_bm25s() -> Any:
    """The library, which is only imported where it is asked for.

    Raises:
        UserError: it is not installed.
    """
    with extra_needed("adapt", "BM25 needs the library bm25s"):
        import bm25s
    return bm25s
