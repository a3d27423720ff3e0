"""The distinct texts of a corpus and their vectors, both on the disk: what negatives are chosen from.

A corpus of ten million lines costs some hundred MB of memory: eight bytes a line to know texts that say the same, and
the block that is being encoded.
"""

import hashlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from cacse_trainer.data.tokens import checked
from cacse_trainer.encoding.base import BaseEncoder, Device
from cacse_trainer.encoding.embedder import progress_bar
from cacse_trainer.encoding.vectors.exact import ExactVectors, open_table
from cacse_trainer.encoding.vectors.faiss_vectors import FaissVectors
from cacse_trainer.encoding.vectors.index import EXACT, Encoded
from cacse_trainer.encoding.vectors.precision import directions
from cacse_trainer.encoding.vectors.tables import RowsHash, SelectedRows, write_table
from cacse_trainer.errors import UserError

BLOCK = 16_384
"""Texts that are held at once."""
TEXTS, VECTORS = "texts.arrow", "vectors.npy"


def keys_of(texts: Iterable[str]) -> np.ndarray:
    """(n,) uint64: equal for texts that differ in white space and case alone.

    >>> first, second, third = keys_of(["The  dog", "the dog ", "the dogs"])
    >>> bool(first == second), bool(first == third)
    (True, False)
    """
    digests = (
        hashlib.blake2b(" ".join(text.split()).casefold().encode(), digest_size=8).digest() for text in checked(texts)
    )
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


class Candidates:
    """The texts of a corpus, without blank ones and without those that say the same as an earlier one.

    Args:
        corpus: the texts; gone through once.
        folder: where they and their vectors are kept.

    Raises:
        UserError: a text is no string, or there is none.
    """

    def __init__(self, corpus: Iterable[str], folder: Path):
        self.folder, self.lines, self.blank = folder, 0, 0
        self._read = RowsHash()
        texts, schema = self._read.over(checked(corpus)), pa.schema([("text", pa.string())])
        keys, rows = [], []
        with (folder / TEXTS).open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
            while block := list(islice(texts, BLOCK)):
                places = [place for place, text in enumerate(block) if text.strip()]
                kept = [block[place] for place in places]
                rows.append(np.array(places, dtype=np.int64) + self.lines)
                self.lines, self.blank = self.lines + len(block), self.blank + len(block) - len(kept)
                keys.append(keys_of(kept))
                writer.write_table(pa.table({"text": pa.array(kept, pa.string())}))
        if self.lines == self.blank:
            raise UserError("corpus: holds no text; give one with at least one line")
        self._texts = datasets.Dataset.from_file(str(folder / TEXTS))
        every = np.concatenate(keys)
        self._lines = np.sort(np.unique(every, return_index=True)[1])  # of each text the first line that says it
        self._rows = np.concatenate(rows)[self._lines]  # of the corpus, blank ones counted
        self._order = np.argsort(every[self._lines])
        self._keys = every[self._lines][self._order]

    def __len__(self) -> int:
        return len(self._lines)

    def identity(self) -> str:
        """A hash of the texts and of their order."""
        return self._read.hexdigest()

    def texts(self, places: np.ndarray) -> list[str]:
        """The texts at these places, from 0."""
        return list(self._texts[self._lines[places].tolist()]["text"])

    def places(self, keys: np.ndarray) -> np.ndarray:
        """Where the texts of these keys stand; -1 for those that the corpus has not."""
        found = np.minimum(np.searchsorted(self._keys, keys), len(self) - 1)
        return np.where(self._keys[found] == keys, self._order[found], -1)

    def encode(
        self,
        encoder: BaseEncoder,
        *,
        prompt: str = "",
        precision: str = "float32",
        index: str = EXACT,
        search_effort: int | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        """Encode the texts once, to the disk, and make the index that is searched.

        Args:
            encoder: gives the vectors.
            prompt: put before every text.
            precision: of the vectors on the disk: float32, int8 (a quarter of its size) or binary.
            index: exact, or a kind of `FaissVectors`, which holds all vectors in memory.
            search_effort: of the faiss index.
            batch_size: as for `BaseEncoder.encode`.
            show_progress_bar: on standard error.

        Raises:
            UserError: a vector is not finite, or faiss refuses the index.
        """
        path, dim = self.folder / VECTORS, encoder.encode("a").shape[0]
        rows = (prompt + text for start in range(0, len(self), BLOCK) for text in self.texts(self._block(start)))
        with progress_bar(len(self), show_progress_bar, "Encoding the corpus") as bar:
            tables = encoder.encode_stream(rows, BLOCK, precision=precision, batch_size=batch_size, advance=bar.update)
            write_table(path, tables, len(self))
        self._index(open_table(path, precision, dim), precision, dim, index, search_effort)

    def take(self, encoded: Encoded, index: str = EXACT, search_effort: int | None = None) -> None:
        """Make the index of vectors that are there, of all rows of the corpus; they stay where they are.

        Args:
            encoded: as `read_encoded` gives them.
            index, search_effort: as for `encode`.
        """
        table = SelectedRows(encoded.tables, self._rows)
        self._index(table, encoded.precision, encoded.dim, index, search_effort)

    def _index(self, table: Any, precision: str, dim: int, index: str, search_effort: int | None) -> None:
        self._table, self._precision, self._dim = table, precision, dim
        self._store: ExactVectors | FaissVectors
        if index == EXACT:
            self._store = ExactVectors([self._table], precision, dim)
        else:
            self._store = FaissVectors.build(directions(np.asarray(table[:]), precision, dim), index, search_effort)

    def vectors(self, places: np.ndarray) -> np.ndarray:
        """(n, dim) float32 rows of length 1: the vectors of the texts at these places."""
        return directions(np.asarray(self._table[places]), self._precision, self._dim)

    def nearest(self, queries: np.ndarray, count: int, device: Device) -> tuple[np.ndarray, np.ndarray]:
        """(q, k) cosines of the ``count`` nearest texts, best first, and their places (-1: none)."""
        scores, places = self._store.search(queries, count, device)
        return np.asarray(scores), np.asarray(places)

    def close(self) -> None:
        """Delete texts and vectors."""
        for name in (TEXTS, VECTORS):
            (self.folder / name).unlink(missing_ok=True)

    def _block(self, start: int) -> np.ndarray:
        return np.arange(start, min(start + BLOCK, len(self)))
