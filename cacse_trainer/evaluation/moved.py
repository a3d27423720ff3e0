"""What training did to single sentences: their nearest neighbours before and after it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cacse_trainer.evaluation.dev_sets import DevSet

MOST_SENTENCES = 200
"""That are looked at: two encodings of so many are the whole cost."""
NEIGHBOURS = 10
"""By whose change the movement of a sentence is measured."""
SHOWN = 3
MOST_MOVED = 8
LONGEST = 1_000
"""Characters of a sentence that are told."""


def sample(sets: Mapping[str, DevSet], most: int = MOST_SENTENCES) -> list[str]:
    """Distinct sentences of the dev sets, drawn at random where there are more."""
    found = list(dict.fromkeys(text for one in sets.values() for text in one.texts if text.strip()))
    chosen = np.random.default_rng(0).permutation(len(found))[:most]
    return [found[i] for i in sorted(chosen)]


def most_moved(sentences: Sequence[str], before: np.ndarray, after: np.ndarray) -> list[dict[str, Any]]:
    """The sentences whose neighbours changed most.

    The two spaces have no common directions, so that a sentence's own vectors say nothing of its movement; it is told
    by how many of its ten nearest neighbours are others after training, and where these are equally many by the change
    of its cosines with all.

    Args:
        sentences: distinct ones.
        before, after: their vectors (n, dim), of any length.

    Returns:
        The most moved first: ``sentence``, ``kept`` (how many of the ``of`` nearest neighbours stayed), and the three
        nearest ``before`` and ``after`` as [cosine, sentence]. A sentence whose neighbours all stayed is none.
    """
    count = min(NEIGHBOURS, len(sentences) - 1)
    if count < 1:
        return []
    tables = [_cosines(vectors) for vectors in (before, after)]
    ranks = [np.argsort(-table, axis=1, kind="stable")[:, :count] for table in tables]
    kept = np.array([len(np.intersect1d(*row)) for row in zip(*ranks, strict=True)])
    changes = np.abs(tables[1] - tables[0]).mean(axis=1)
    order = [i for i in np.lexsort((-changes, kept)).tolist() if kept[i] < count]

    def nearest(i: int, which: int) -> list[tuple[float, str]]:
        return [(float(tables[which][i, j]), sentences[j][:LONGEST]) for j in ranks[which][i, :SHOWN]]

    return [
        {
            "sentence": sentences[i][:LONGEST],
            "kept": int(kept[i]),
            "of": count,
            "before": nearest(i, 0),
            "after": nearest(i, 1),
        }
        for i in order[:MOST_MOVED]
    ]


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """Of all pairs; of a sentence with itself -2, below all others."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    table = np.asarray(unit @ unit.T)
    np.fill_diagonal(table, -2)
    return table
