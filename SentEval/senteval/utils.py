"""Helpers with the names that existing evaluation scripts import: ``dotdict``, ``cosine``, ``create_dictionary``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


class dotdict(dict[str, Any]):
    """A dictionary whose keys are attributes too; an absent key reads as None.

    Example:
        >>> params = dotdict(batch_size=64)
        >>> params.batch_size, params.word_vec
        (64, None)
        >>> params.wvec_path = "glove.txt"
        >>> params["wvec_path"]
        'glove.txt'
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask for their protocols and must not be handed None
            raise AttributeError(name)
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(name) from None


def cosine(u: Any, v: Any) -> Any:
    """Cosine of two vectors in their own precision, u·v / (|u| |v|); 0 where one of them is zero.

    Args:
        u: vector of shape (dim,).
        v: vector of shape (dim,).

    Returns:
        A NumPy scalar of the vectors' dtype.

    Example:
        >>> float(cosine(np.array([3.0, 4.0]), np.array([4.0, 3.0])))
        0.96
    """
    norms = np.linalg.norm(u) * np.linalg.norm(v)
    return np.dot(u, v) / norms if norms > 0 else norms * 0


def create_dictionary(sentences: Iterable[Sequence[str]]) -> tuple[list[str], dict[str, int]]:
    """Vocabulary of tokenised sentences, most frequent word first, after the three markers ``<s>``, ``</s>``, ``<p>``.

    Args:
        sentences: lists of tokens, as ``prepare`` receives them.

    Returns:
        (words by id, id by word).

    Example:
        >>> create_dictionary([["a", "b"], ["b"]])[0]
        ['<s>', '</s>', '<p>', 'b', 'a']
    """
    markers = ["<s>", "</s>", "<p>"]
    counts = Counter(word for sentence in sentences for word in sentence if word not in markers)
    words = markers + [word for word, _ in counts.most_common()]
    return words, {word: index for index, word in enumerate(words)}
