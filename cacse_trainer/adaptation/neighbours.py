"""Batches of neighbours: rows with near texts stand together, so that their other texts are hard negatives.

In a batch of random rows nearly every wrong text is far from the anchor, and the loss has little to teach after some
dozens of steps. Rows that the start takes for similar are harder for each other, at no cost to a step. Groups are made
greedily: a random row that is still free, and the free rows nearest to it, of other documents and with other texts;
then the groups are shuffled.
"""

import random
from collections.abc import Callable, Sequence

import numpy as np

from cacse_trainer.data.structure import OWN, Row

WINDOW = 32_768
"""Rows among which neighbours are sought: the work grows with rows × window."""
Vectors = Callable[[Sequence[str]], np.ndarray]
"""From texts to their vectors (texts, dim)."""


def beside_neighbours(rows: Sequence[Row], size: int, vectors: Vectors, seed: int) -> list[Row]:
    """The rows in another order: groups of ``size`` rows with near anchors.

    Args:
        rows: in a random order.
        size: rows of a group, at least 1; the last ones of a window may have fewer.
        vectors: of anchors.
        seed: of the draws.
    """
    if size <= 1:
        return list(rows)
    number = {text: place for place, text in enumerate(dict.fromkeys(row.anchor for row in rows))}
    found = vectors(list(number)).astype(np.float32)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    draws = random.Random(f"{seed} neighbours")
    arranged: list[Row] = []
    for start in range(0, len(rows), WINDOW):
        window = rows[start : start + WINDOW]
        groups = _groups(window, found[[number[row.anchor] for row in window]], size)
        draws.shuffle(groups)
        arranged += [window[place] for group in groups for place in group]
    return arranged


def _groups(rows: Sequence[Row], vectors: np.ndarray, size: int) -> list[list[int]]:
    free = np.ones(len(rows), dtype=bool)
    groups = []
    for first in range(len(rows)):
        if not free[first]:
            continue
        free[first] = False
        likeness = np.where(free, vectors @ vectors[first], -np.inf)
        nearest = min(4 * size, len(rows) - 1)  # some are of one document
        candidates = np.argpartition(-likeness, nearest)[:nearest]
        group, taken = [first], _what_parts(rows[first])
        for place in candidates[np.argsort(-likeness[candidates], kind="stable")].tolist():
            own = _what_parts(rows[place])
            if len(group) < size and free[place] and not own & taken:
                group.append(place)
                taken |= own
        free[group] = False
        groups.append(group)
    return groups


def _what_parts(row: Row) -> set[int | str]:
    """What no two rows of a group share; a user's own pairs are of no document."""
    return {row.anchor, row.positive, *([] if row.document == OWN else [row.document])}
