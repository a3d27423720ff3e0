"""Nearest neighbours through faiss (extra ``faiss``): exact, or approximate and many times faster.

``flat`` compares all vectors. ``ivf`` sorts them into cells and looks into some (Sivic and Zisserman 2003), ``hnsw``
walks a graph of neighbours (Malkov and Yashunin 2018). Any other name goes to ``faiss.index_factory`` as it is, such as
``IVF1024,PQ48``.
"""

from pathlib import Path
from typing import Any

import numpy as np

from cacse_trainer.errors import UserError, extra_needed

FAISS_KINDS = ("flat", "ivf", "hnsw")
FILE = "index.faiss"
VECTORS_A_CELL = 39  # below that faiss warns of too few to place a cell's centre
SEARCHED_CELLS = 32
SEARCHED_CANDIDATES = 128


class FaissVectors:
    """A faiss index of vectors of length 1, by inner product.

    Args:
        index: the faiss index.
        kind: as it was asked for.
        effort: cells looked into (ivf) or candidates kept (hnsw); more is slower and nearer to exact. Default: 32
            cells, 128 candidates.

    Raises:
        UserError: an effort for an index that has no such setting.
    """

    def __init__(self, index: Any, kind: str, effort: int | None = None):
        self.index, self.kind, self.effort = index, kind, effort
        self.precision, self.dim = "float32", int(index.d)
        text = kind.lower()
        name = "nprobe" if "ivf" in text else "efSearch" if "hnsw" in text else None  # trades speed for nearness
        if name is None and effort is not None:
            raise UserError(f"search_effort {effort}: an index of kind {kind} has no such setting")
        if name is not None:
            value = effort or (SEARCHED_CELLS if name == "nprobe" else SEARCHED_CANDIDATES)
            load_faiss().ParameterSpace().set_index_parameter(index, name, value)

    @classmethod
    def build(cls, table: np.ndarray, kind: str, effort: int | None = None) -> "FaissVectors":
        """Train an index of this kind on the vectors, and add them.

        Raises:
            UserError: faiss is not installed, an unknown kind, or too few vectors for it.
        """
        faiss = load_faiss()
        cells = max(1, min(int(4 * np.sqrt(len(table))), len(table) // VECTORS_A_CELL))
        factory = {"flat": "Flat", "ivf": f"IVF{cells},Flat", "hnsw": "HNSW32,Flat"}.get(kind, kind)
        try:
            index = faiss.index_factory(table.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            index.train(table)
            index.add(table)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"index kind {kind!r}: faiss refuses it for {len(table)} vectors of {table.shape[1]} dimensions "
                f"({reason}); choose exact, {', '.join(FAISS_KINDS)} or a faiss factory string"
            ) from error
        return cls(index, kind, effort)

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def add(self, table: np.ndarray) -> None:
        """More rows, behind the others."""
        self.index.add(np.ascontiguousarray(table))

    def search(self, queries: np.ndarray, top_k: int, device: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """(q, k) cosines, best first, and (q, k) row numbers, -1 where an approximate index found fewer."""
        count = max(0, min(top_k, len(self)))
        if count == 0 or len(queries) == 0:
            return np.empty((len(queries), 0), dtype=np.float32), np.empty((len(queries), 0), dtype=np.int64)
        return self.index.search(np.ascontiguousarray(queries), count)

    def save(self, folder: Path) -> None:
        """Write the index into a folder."""
        load_faiss().write_index(self.index, str(folder / FILE))

    @classmethod
    def load(cls, folder: Path, kind: str, effort: int | None = None) -> "FaissVectors":
        """The index of a folder; lists that lie beside it are mapped."""
        faiss = load_faiss()
        try:
            return cls(faiss.read_index(str(folder / FILE), faiss.IO_FLAG_ONDISK_SAME_DIR), kind, effort)
        except RuntimeError as error:
            raise UserError(f"index {folder}: {str(error).strip().splitlines()[-1]}") from error


def load_faiss() -> Any:
    """The faiss module.

    Raises:
        UserError: it is not installed.
    """
    with extra_needed("faiss", "a faiss index needs faiss", "; the exact search needs nothing more"):
        import faiss
    return faiss
