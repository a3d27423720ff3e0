"""Exact nearest neighbours by cosine, block by block: memory stays flat whatever the number of vectors and queries."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from cacse_trainer.encoding.vectors.precision import directions
from cacse_trainer.encoding.vectors.tables import ParquetTable, Table, write_table
from cacse_trainer.errors import user_errors

ROWS_AT_ONCE = 16_384
QUERIES_AT_ONCE = 256
FILE = "vectors.npy"
STORED = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "binary": np.uint8}
"""The numbers that a precision's rows are kept in."""


class ExactVectors:
    """Stored vectors, and every one of them compared with every query.

    Args:
        tables: float32 rows of length 1, or their float16, int8 or binary form; may be mapped from files, or read from
            them a slice at a time. They are never put together.
        precision: which of these.
        dim: dimensions.
    """

    def __init__(self, tables: Sequence[Table], precision: str, dim: int):
        self.precision, self.dim = precision, dim
        self._tables = list(tables)
        self._added: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(len(table) for table in (*self._tables, *self._added))

    def add(self, table: np.ndarray) -> None:
        """More rows, behind the others."""
        self._added.append(table)

    def _blocks(self) -> Iterator[np.ndarray]:
        """All rows, some at a time."""
        if len(self._added) > 1:
            self._added = [np.concatenate(self._added)]
        for table in (*self._tables, *self._added):
            for start in range(0, len(table), ROWS_AT_ONCE):
                yield table[start : start + ROWS_AT_ONCE]

    def search(
        self, queries: np.ndarray, top_k: int, device: torch.device | str = "cpu"
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest rows.

        Args:
            queries: (q, dim) float32 rows of length 1.
            top_k: how many each; fewer where there are fewer rows.
            device: where the products are computed.

        Returns:
            (q, k) cosines, best first, and (q, k) row numbers; of equal cosines the row that stands first.
        """
        count = max(0, min(top_k, len(self)))
        scores = torch.empty((len(queries), 0), device=device)
        rows = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
        wanted = torch.from_numpy(np.ascontiguousarray(queries)).to(device)
        start = 0
        for stored in self._blocks():
            block = self._unit_rows(stored, device)  # (≤ ROWS_AT_ONCE, dim)
            found = [_best(part @ block.T, count) for part in wanted.split(QUERIES_AT_ONCE)]
            scores = torch.cat([scores, torch.cat([best for best, _ in found])], dim=1)  # (q, ≤ 2k)
            rows = torch.cat([rows, torch.cat([where for _, where in found]) + start], dim=1)
            scores, kept = scores.sort(dim=1, descending=True, stable=True)  # earlier rows stand first
            scores, rows = scores[:, :count], rows.gather(1, kept[:, :count])
            start += len(stored)
        return scores.cpu().numpy(), rows.cpu().numpy()

    def _unit_rows(self, stored: np.ndarray, device: torch.device | str) -> torch.Tensor:
        if self.precision in (
            "int8",
            "float16",
        ):  # as `directions` does; with torch's threads, and fewer bytes to a GPU
            return functional.normalize(torch.from_numpy(np.ascontiguousarray(stored)).to(device).float(), dim=1)
        return torch.from_numpy(np.ascontiguousarray(directions(stored, self.precision, self.dim))).to(device)

    def save(self, folder: Path) -> None:
        """Write the rows into a folder."""
        write_table(folder / FILE, self._blocks(), len(self))

    @classmethod
    def load(cls, folder: Path, precision: str, dim: int) -> "ExactVectors":
        """The rows of a folder, mapped and not read: they may be larger than memory."""
        return cls([open_table(folder / FILE, precision, dim)], precision, dim)


def open_table(path: Path, precision: str, dim: int) -> Any:
    """The rows of a ``.npy`` file, mapped and not read, or those of a ``.parquet`` file, a `ParquetTable`.

    Raises:
        UserError: it holds no rows of this precision and so many dimensions.
    """
    with user_errors(f"{path} is damaged", KeyError):
        wanted = no_rows(precision, dim)
        if path.suffix == ".parquet":
            return ParquetTable(path, wanted)
        table = np.load(path, mmap_mode="c")
        if table.ndim != 2 or (table.dtype, table.shape[1]) != (wanted.dtype, wanted.shape[1]):
            raise ValueError(f"it has {table.dtype} of the shape {table.shape}, not {precision} of {dim} dimensions")
        return table


def no_rows(precision: str, dim: int) -> np.ndarray:
    """The table that rows of this precision and so many dimensions are put into, with none yet."""
    return np.empty((0, -(-dim // 8) if precision == "binary" else dim), dtype=STORED[precision])


def _best(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` largest of each row of (q, n), and their places; of equal ones the first, as topk does not say."""
    count = min(count, scores.shape[1])
    best, places = scores.topk(min(count + 1, scores.shape[1]), dim=1)
    if best.shape[1] > count > 0:
        tied = (best[:, count - 1] == best[:, count]).nonzero()[:, 0]  # rows with equal ones on both sides of the cut
        cut = best[tied, count - 1]
        rows, columns = (scores[tied] >= cut[:, None]).nonzero(as_tuple=True)  # few; in the order of their places
        equal = scores[tied[rows], columns] == cut[rows]
        passed = equal.cumsum(0)  # equal ones up to here, those of the rows before among them
        before = torch.cat([passed.new_zeros(1), passed])[torch.searchsorted(rows, torch.arange(len(tied)).to(rows))]
        free = count - torch.bincount(rows[~equal], minlength=len(tied))
        kept = ~equal | (passed - before[rows] <= free[rows])
        places[tied, :count] = columns[kept].view(-1, count)
    places = places[:, :count].sort(dim=1).values
    best, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    return best, places.gather(1, order)
