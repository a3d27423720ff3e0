"""The text that the demo searches and maps: its sentences, their vectors by each model, and what to colour them by."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cacse_trainer.data.corpus import Corpus
from cacse_trainer.encoding.vectors.index import Hits
from cacse_trainer.errors import UserError

MOST_COLOURS = 12
"""Distinct values up to which a column is shown as groups; more, if they are numbers, as a scale."""
MISSING = "–"


@dataclass
class Loaded:
    """Sentences and their vectors of length 1.

    Args:
        sentences: in order.
        tables: (n, dim), a model each.
        columns: what they may be coloured by: a name each, or a number each.
    """

    sentences: list[str]
    tables: list[np.ndarray]
    columns: dict[str, list[str] | np.ndarray] = field(default_factory=dict)

    def nearest(self, cosines: np.ndarray, top_k: int, threshold: float = -1.0, leave: int | None = None) -> Hits:
        """The sentences of the highest cosines; of equal ones that which stands first.

        Args:
            cosines: of a query with each.
            top_k: at most so many.
            threshold: cosine from which one counts.
            leave: the number of a sentence that is left out.
        """
        order = [i for i in np.argsort(-cosines, kind="stable")[: top_k + 1].tolist() if i != leave]
        return [(self.sentences[i], float(cosines[i])) for i in order[:top_k] if cosines[i] >= threshold]


def read_corpus(path: str, text_column: str | None) -> tuple[list[str], dict[str, list[str] | np.ndarray]]:
    """The sentences of a file that are not blank, and its other columns that can be colours.

    Raises:
        UserError: it cannot be read, or holds no sentence.
    """
    corpus = Corpus(path, text_column)
    texts = list(corpus)
    kept = [i for i, text in enumerate(texts) if text.strip()]
    if not kept:
        raise UserError(f"{corpus.name.rpartition('/')[2]}: no sentences in it")
    columns = {}
    for name, values in corpus.others().items():
        colours = colours_of([values[i] for i in kept])
        if colours is not None:
            columns[name] = colours
    return [texts[i] for i in kept], columns


def colours_of(values: Sequence[Any]) -> list[str] | np.ndarray | None:
    """Cells as groups or as numbers; None where they are all one, or too many words.

    >>> colours_of(["a", "b", None, "a"])
    ['a', 'b', '–', 'a']
    >>> colours_of([str(n / 2) for n in range(30)])[:3].tolist(), colours_of(["a", "a"])
    ([0.0, 0.5, 1.0], None)
    """
    names = [MISSING if value is None or str(value).strip() in ("", "nan") else str(value) for value in values]
    if len(set(names)) < 2:
        return None
    if len(set(names)) <= MOST_COLOURS:
        return names
    try:
        numbers = np.array([np.nan if name == MISSING else float(name) for name in names])
    except ValueError:
        return None
    known = numbers[np.isfinite(numbers)]
    return np.where(np.isfinite(numbers), numbers, known.min()) if len(known) else None
