"""What every task is: a name, its sentences, and ``run(params, batcher)``.

A task loads its files when it is made and keeps the sentences as token lists (``' '.join(tokens)`` is the sentence), so
that a caller can collect the sentences of many tasks and embed each distinct one once before anything runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from senteval.encoding import Batcher, Prepare, Tokens, encode
from senteval.utils import dotdict

Result = dict[str, Any]


class Task(ABC):
    """One evaluation task with its data in memory.

    Args:
        name: the task's name, used in messages and as ``params.current_task``.
        seed: seed of the classifiers, where the task trains any.
    """

    def __init__(self, name: str, seed: int = 1111) -> None:
        self.name = name
        self.seed = seed

    @property
    @abstractmethod
    def samples(self) -> list[Tokens]:
        """Every sentence of the task as a token list, repeated where the files repeat it."""

    def do_prepare(self, params: dotdict, prepare: Prepare) -> Any:
        """Shows the whole task to the user's ``prepare(params, samples)``."""
        return prepare(params, self.samples)

    @abstractmethod
    def run(self, params: dotdict, batcher: Batcher) -> Result:
        """Embeds the sentences through ``batcher(params, batch)`` and returns the task's result dictionary."""


def pair_features(
    params: dotdict, batcher: Batcher, first: Sequence[Tokens], second: Sequence[Tokens], task: str
) -> np.ndarray:
    """|u − v| beside u∘v for pairs of sentences: (pairs, 2·dim)."""
    u, v = encode(params, batcher, first, task), encode(params, batcher, second, task)
    return np.concatenate([np.abs(u - v), u * v], axis=1)


def length_order(*columns: Sequence[Any]) -> list[int]:
    """Stable order by (tokens of each text column …, value of the last column), as published runs sort their data.

    Example:
        >>> length_order([["a", "b"], ["c"], ["d"]], [0, 1, 0])
        [2, 1, 0]
    """
    *texts, values = columns
    return sorted(range(len(values)), key=lambda i: (*(len(text[i]) for text in texts), values[i]))


def distinct_sentences(tasks: Iterable[Task]) -> list[str]:
    """Each distinct sentence of the tasks once, in order of first appearance."""
    return list(dict.fromkeys(" ".join(tokens) for task in tasks for tokens in task.samples))


class EmbeddingTable:
    """A batcher that looks sentences up in a table made beforehand.

    Args:
        sentences: the distinct sentences, as ``distinct_sentences`` lists them.
        vectors: their embeddings, (len(sentences), dim).

    Example:
        >>> table = EmbeddingTable(["a b", ""], np.array([[1.0, 2.0], [3.0, 4.0]]))
        >>> table(dotdict(), [[], ["a", "b"]])
        array([[3., 4.],
               [1., 2.]])
    """

    def __init__(self, sentences: Sequence[str], vectors: np.ndarray) -> None:
        if len(sentences) != len(vectors):
            raise ValueError(f"{len(sentences)} sentences and {len(vectors)} vectors")
        self.vectors = vectors
        self.index = {sentence: row for row, sentence in enumerate(sentences)}

    def __call__(self, params: dotdict, batch: Sequence[Tokens]) -> np.ndarray:
        """The rows of a batch of token lists; KeyError for a sentence that is not in the table."""
        return self.vectors[[self.index[" ".join(tokens)] for tokens in batch]]
