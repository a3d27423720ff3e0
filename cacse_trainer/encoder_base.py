"""What every encoder can do once it can turn sentences into vectors: encode, compare, search."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from cacse_trainer.errors import UserError

QUERIES_AT_ONCE = 256  # bounds the similarity table of a search

Hits = list[tuple[str, float]]


class BaseEncoder(ABC):
    """What every encoder can do once it can turn sentences into vectors."""

    name: str
    """As the user gave it."""
    pooling: str
    """What was stated, read or guessed."""
    normalizes: bool
    """Whether the folder says that its vectors are scaled to length 1 (MTEB's classifiers see them so)."""

    def __init__(self) -> None:
        self._index: tuple[list[str], np.ndarray] | None = None

    @abstractmethod
    def vectors(
        self,
        sentences: Sequence[str],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        description: str = "Encoding",
    ) -> np.ndarray:
        """(len(sentences), dim) float32, as the model gives them: not scaled."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the weights."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What else the vectors depend on, for reports."""

    def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int | None = None,
        normalize: bool = True,
        show_progress_bar: bool = False,
    ) -> np.ndarray:
        """Encode sentences.

        Args:
            sentences: one, or any number; ``""`` is fine.
            batch_size: rows a batch; default: by a budget of tokens, which is faster.
            normalize: scale to length 1, so that the dot product is the cosine; a zero vector stays zero.
            show_progress_bar: a bar on standard error.

        Returns:
            float32, (dim,) for one sentence, (n, dim) for a list.

        Raises:
            UserError: a vector is not finite.
        """
        rows = [sentences] if isinstance(sentences, str) else list(sentences)
        table = self.vectors(rows, batch_size=batch_size, show_progress_bar=show_progress_bar)
        if normalize:
            lengths = np.linalg.norm(table, axis=1, keepdims=True)
            table = table / np.where(lengths == 0, 1, lengths)
        return table[0] if isinstance(sentences, str) else table

    @overload
    def similarity(self, a: str, b: str) -> float: ...
    @overload
    def similarity(self, a: str | Sequence[str], b: str | Sequence[str]) -> float | np.ndarray: ...

    def similarity(self, a: str | Sequence[str], b: str | Sequence[str]) -> float | np.ndarray:
        """Cosine of sentences: two strings → float, a string and n sentences → (n,), n and m sentences → (n, m)."""
        first, second = ([x] if isinstance(x, str) else list(x) for x in (a, b))
        both = self.encode(first + second)
        table = both[: len(first)] @ both[len(first) :].T  # (n, m)
        if isinstance(a, str) and isinstance(b, str):
            return float(table[0, 0])
        return table.reshape(-1) if isinstance(a, str) or isinstance(b, str) else table

    def build_index(
        self, sentences_or_file: Sequence[str] | str | os.PathLike[str], show_progress_bar: bool = False
    ) -> None:
        """Encode the sentences that `search` looks through.

        Args:
            sentences_or_file: sentences, or a UTF-8 text file with one a line (blank lines are skipped).

        Raises:
            UserError: no such file, or no sentence in it.
        """
        if isinstance(sentences_or_file, (str, os.PathLike)):
            sentences = _read_lines(Path(sentences_or_file))
        else:
            sentences = list(sentences_or_file)
        if not sentences:
            raise UserError("build_index: no sentences to look through")
        self._index = sentences, self.encode(sentences, show_progress_bar=show_progress_bar)

    @overload  # a string is a sequence of strings, too; the first signature wins
    def search(self, queries: str, top_k: int = 5, threshold: float = 0.6) -> Hits: ...  # type: ignore[overload-overlap]
    @overload
    def search(self, queries: Sequence[str], top_k: int = 5, threshold: float = 0.6) -> list[Hits]: ...

    def search(self, queries: str | Sequence[str], top_k: int = 5, threshold: float = 0.6) -> Hits | list[Hits]:
        """The nearest sentences of the index, exactly.

        Args:
            queries: one, or several.
            top_k: at most so many each.
            threshold: cosine from which a sentence counts.

        Returns:
            ``[(sentence, score), …]``, best first, for one query; a list of those for a list.

        Raises:
            UserError: there is no index yet.
        """
        if self._index is None:
            raise UserError("search: there is no index yet; call build_index(sentences) first")
        sentences, index = self._index
        found: list[Hits] = []
        asked = [queries] if isinstance(queries, str) else list(queries)
        wanted = self.encode(asked)
        for start in range(0, len(asked), QUERIES_AT_ONCE):
            scores = torch.from_numpy(wanted[start : start + QUERIES_AT_ONCE] @ index.T)  # (queries, sentences)
            best, where = scores.topk(max(0, min(top_k, len(sentences))), dim=1)
            for row_scores, row in zip(best.tolist(), where.tolist(), strict=True):
                hits = zip(row, row_scores, strict=True)
                found.append([(sentences[i], score) for i, score in hits if score >= threshold])
        return found[0] if isinstance(queries, str) else found


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"build_index: no file {path}; give a file with one sentence a line, or a list of sentences")
    try:
        with path.open(encoding="utf-8") as lines:
            return [line.rstrip("\r\n") for line in lines if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error})") from error
