"""What every encoder can do: encode (`Encoding`), compare, search.

The names of `encode`, `similarity`, `build_index`, `add_to_index` and `search`, and the order of what they return, are
those of the SimCSE tool (Gao et al. 2021), so that a program written for it runs on any encoder.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from torch import Tensor

from cacse_trainer.data.corpus import Corpus
from cacse_trainer.encoding.blocks import Device, Encoding
from cacse_trainer.encoding.vectors.index import EXACT, Hits, SearchIndex
from cacse_trainer.encoding.vectors.precision import check_precision, normalized
from cacse_trainer.errors import UserError


class BaseEncoder(Encoding):
    """What every encoder can do once it can turn sentences into vectors."""

    def __init__(self, truncate_dim: int | None = None) -> None:
        super().__init__(truncate_dim)
        self.index: SearchIndex | None = None

    @overload
    def similarity(self, queries: str, keys: str, device: Device | None = None) -> float: ...
    @overload
    def similarity(
        self, queries: str | Sequence[str] | np.ndarray, keys: str | Sequence[str] | np.ndarray, device: Any = None
    ) -> float | np.ndarray: ...

    def similarity(
        self,
        queries: str | Sequence[str] | np.ndarray,
        keys: str | Sequence[str] | np.ndarray,
        device: Device | None = None,
    ) -> float | np.ndarray:
        """Cosine of sentences: two strings → float, a string and n sentences → (n,), n and m sentences → (n, m).

        Vectors, (dim,) for one or (n, dim), may stand for sentences.
        """
        self._on(device)
        first, second = (self._unit_rows(given) for given in (queries, keys))
        if len(first) == 0 or len(second) == 0:
            return np.zeros((len(first), len(second)), dtype=np.float32)
        table = first @ second.T  # (n, m)
        single = [isinstance(given, str) or getattr(given, "ndim", 2) == 1 for given in (queries, keys)]
        return float(table[0, 0]) if all(single) else table.reshape(-1) if any(single) else table

    def build_index(
        self,
        sentences_or_file: Iterable[str] | str | os.PathLike[str],
        use_faiss: bool | None = None,
        faiss_fast: bool = False,
        device: Device | Sequence[Device] | None = None,
        batch_size: int | None = None,
        *,
        kind: str | None = None,
        precision: str = "float32",
        search_effort: int | None = None,
        text_column: str | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        """Encode the sentences that `search` looks through.

        Args:
            sentences_or_file: sentences, or a txt, csv, tsv, jsonl or parquet file (blank rows are skipped).
            use_faiss, faiss_fast: True stands for ``kind`` "flat", and both for "ivf".
            device, batch_size, show_progress_bar: as for `encode`.
            kind: exact (default; needs nothing more), or through faiss: flat, ivf, hnsw, or a faiss factory string.
            precision: of the exact index's vectors: float32, int8 or binary.
            search_effort: cells (ivf, default 32) or candidates (hnsw, default 128) that a query looks at.
            text_column: of a file with several.

        Raises:
            UserError: no such file, no sentence in it, or an index that is not possible.
        """
        check_precision(precision)
        chosen = kind or ("ivf" if faiss_fast and use_faiss is not False else "flat" if use_faiss else EXACT)
        sentences = _texts(sentences_or_file, text_column)
        table = self.encode(sentences, batch_size, device=device, show_progress_bar=show_progress_bar)
        self.index = SearchIndex.build(
            sentences,
            table,
            kind=chosen,
            precision=precision,
            search_effort=search_effort,
            made_by=self.described(),
        )

    def add_to_index(
        self,
        sentences_or_file: Iterable[str] | str | os.PathLike[str],
        device: Device | Sequence[Device] | None = None,
        batch_size: int | None = None,
        *,
        text_column: str | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        """Encode more sentences and put them into the index, behind the others; arguments as for `build_index`.

        Raises:
            UserError: there is no index yet, no such file, or no sentence in it.
        """
        index = self._built("add_to_index")
        sentences = _texts(sentences_or_file, text_column)
        table = self.encode(sentences, batch_size, device=device, show_progress_bar=show_progress_bar)
        index.add(sentences, table)

    @overload  # a string is a sequence of strings, too; the first signature wins
    def search(  # type: ignore[overload-overlap]
        self, queries: str, top_k: int = 5, threshold: float = 0.6, device: Device | None = None
    ) -> Hits: ...
    @overload
    def search(
        self, queries: Sequence[str], top_k: int = 5, threshold: float = 0.6, device: Device | None = None
    ) -> list[Hits]: ...

    def search(
        self, queries: str | Sequence[str], top_k: int = 5, threshold: float = 0.6, device: Device | None = None
    ) -> Hits | list[Hits]:
        """The nearest sentences of the index.

        Args:
            queries: one, or several.
            top_k: at most so many each.
            threshold: cosine from which a sentence counts.
            device: move the model there first; an exact index compares there, too.

        Returns:
            ``[(sentence, score), …]``, best first, for one query; a list of those for a list.

        Raises:
            UserError: there is no index yet.
        """
        index = self._built("search")
        wanted = self.encode([queries] if isinstance(queries, str) else list(queries), device=device)
        found = index.search(wanted, top_k=top_k, threshold=threshold, device=self.device)
        return found[0] if isinstance(queries, str) else found

    def save_index(self, folder: str | os.PathLike[str]) -> None:
        """Write the index with its sentences into a folder, whole or not at all.

        Raises:
            UserError: there is no index, or the folder holds something else or cannot be written.
        """
        self._built("save_index").save(Path(folder))

    def load_index(self, folder: str | os.PathLike[str], search_effort: int | None = None) -> None:
        """Read an index that `save_index` wrote; an exact one's vectors are mapped, not read.

        Raises:
            UserError: there is none, it is damaged, or other weights, another pooling or length made it.
        """
        index = SearchIndex.load(Path(folder), search_effort)
        mine = self.described()
        differing = [name for name, value in index.made_by.items() if name != "model" and mine.get(name) != value]
        if differing:
            raise UserError(
                f"index {folder}: was made by {index.made_by.get('model')}, and {self.name} differs in "
                f"{', '.join(differing)}; load the encoder that made it, or build the index anew"
            )
        self.index = index

    def described(self) -> dict[str, Any]:
        """What a saved index records of its encoder: name, weights, and what else directions depend on."""
        path = Path(self.name)
        more = {name: value for name, value in self.settings().items() if name not in ("dtype", "adapter")}
        return {
            "model": str(path.resolve()) if path.is_dir() else self.name,
            "pooling": self.pooling,
            "fingerprint": self.fingerprint(),
            "truncate_dim": self.truncate_dim,
            **more,
        }

    def _unit_rows(self, given: str | Sequence[str] | np.ndarray | Tensor) -> np.ndarray:
        if isinstance(given, (np.ndarray, Tensor)):
            return normalized(np.atleast_2d(np.asarray(given, dtype=np.float32)))
        return self.encode([given] if isinstance(given, str) else list(given))

    def _built(self, what: str) -> SearchIndex:
        if self.index is None:
            raise UserError(f"{what}: there is no index yet; call build_index(sentences) first")
        return self.index


def _texts(sentences_or_file: Iterable[str] | str | os.PathLike[str], text_column: str | None) -> list[str]:
    if isinstance(sentences_or_file, (str, os.PathLike)):
        sentences = [text for text in Corpus(os.fspath(sentences_or_file), text_column) if text.strip()]
    else:
        sentences = list(sentences_or_file)
    if not sentences:
        raise UserError("build_index: no sentences to look through")
    return sentences
