"""Tables of vectors on the disk, and what ties them to the rows that they were made of."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

EMBEDDING = "embedding"
"""The column of the vectors in a parquet file."""


class Table(Protocol):
    """What a table of vectors is read by, wherever its rows lie."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> np.ndarray: ...


def write_table(path: Path, blocks: Iterable[np.ndarray], rows: int | None = None) -> None:
    """Blocks of one kind, one behind the other, as one ``.npy`` file.

    They are written and not mapped: a full disk ends a process that writes to mapped memory by a signal.

    Args:
        path: the file.
        blocks: (n, …) arrays, at least one.
        rows: of all blocks together; default: as they are counted.

    Raises:
        OSError: the disk is full.
        ValueError: the blocks have another number of rows.
    """
    written = 0
    with path.open("wb") as file:
        for i, block in enumerate(blocks):
            if i == 0:
                _write_header(file, block, rows or 0)
            file.write(np.ascontiguousarray(block).data)
            written += len(block)
        if rows is None:  # numpy leaves room in the header for any number of them
            file.seek(0)
            _write_header(file, block, written)
    if rows is not None and written != rows:
        raise ValueError(f"{path}: {written} rows instead of {rows}")


def _write_header(file: BinaryIO, block: np.ndarray, rows: int) -> None:
    kind = np.lib.format.dtype_to_descr(block.dtype)
    header = {"descr": kind, "fortran_order": False, "shape": (rows, *block.shape[1:])}
    np.lib.format.write_array_header_1_0(file, header)


def write_parquet(path: Path, blocks: Iterable[tuple[dict[str, pa.Array], np.ndarray]]) -> None:
    """Columns and the vectors beside them as a parquet file; each block is a group of rows.

    Args:
        path: the file.
        blocks: of the same columns; (n, …) arrays of one kind, in a column ``embedding`` of lists of one length.

    Raises:
        OSError: the disk is full.
    """
    rest = iter(blocks)
    first, vectors = next(rest)
    kind = pa.list_(pa.from_numpy_dtype(vectors.dtype), vectors.shape[1])
    schema = pa.schema([*((name, column.type) for name, column in first.items()), (EMBEDDING, kind)])
    with pq.ParquetWriter(path, schema) as writer:
        for columns, table in chain([(first, vectors)], rest):
            embedding = pa.FixedSizeListArray.from_arrays(pa.array(table.reshape(-1)), type=kind)
            writer.write_table(pa.Table.from_arrays([*columns.values(), embedding], schema=schema))


class ParquetTable:
    """The vectors of a parquet file, read a slice at a time.

    Args:
        path: the file.
        like: (0, width) of their kind.

    Raises:
        ValueError: it holds no vectors of this kind.
        ArrowException: it is damaged.
    """

    def __init__(self, path: Path, like: np.ndarray):
        self.path, self._like = path, like
        with pq.ParquetFile(path) as file:
            kind, wanted = file.schema_arrow.field(EMBEDDING).type, pa.from_numpy_dtype(like.dtype)
            if kind != pa.list_(wanted, like.shape[1]):
                raise ValueError(f"it has {kind}, not {wanted} of the width {like.shape[1]}")
            groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._ends = np.cumsum(groups)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        if start >= stop:
            return self._like
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right")
        with pq.ParquetFile(self.path) as file:
            column = file.read_row_groups(list(range(first, last + 1)), columns=[EMBEDDING]).column(0)
        before = int(self._ends[first - 1]) if first else 0
        chunks = column.slice(start - before, stop - start).chunks
        return np.concatenate([chunk.flatten().to_numpy().reshape(-1, self._like.shape[1]) for chunk in chunks])


class SelectedRows:
    """Some rows of tables that lie one behind the other, as a table of its own; read where they lie.

    Args:
        tables: of one kind, one at least.
        rows: their numbers, counted over all tables.
    """

    def __init__(self, tables: Sequence[Table], rows: np.ndarray):
        self._tables, self._rows = tables, rows
        self._ends = np.cumsum([len(table) for table in tables])
        self._like = tables[0][slice(0, 0)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        rows = self._rows[places]
        found = np.empty((len(rows), *self._like.shape[1:]), dtype=self._like.dtype)
        where = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(where):
            own = where == number
            wanted = rows[own] - (self._ends[number - 1] if number else 0)
            first = int(wanted.min())
            found[own] = self._tables[number][slice(first, int(wanted.max()) + 1)][wanted - first]
        return found


class RowsHash:
    """A SHA-256 of texts and of their borders, and their number."""

    def __init__(self) -> None:
        self.count, self._digest = 0, hashlib.sha256()

    def over(self, rows: Iterable[str]) -> Iterator[str]:
        """The same texts, hashed as they pass."""
        for text in rows:
            self._digest.update(f"{len(text)}:{text}".encode(errors="surrogatepass"))
            self.count += 1
            yield text

    def add(self, strings: pa.Array) -> None:
        """Texts as Arrow strings without nulls: as by `over`, several times faster."""
        lengths = pc.cast(pc.utf8_length(strings), pa.string())
        joined = pc.binary_join_element_wise(lengths, strings, ":")  # fresh, so that its bytes stand end to end
        self._digest.update(joined.buffers()[2] if len(joined) else b"")  # without texts it holds anything
        self.count += len(strings)

    def hexdigest(self) -> str:
        """In hexadecimal digits."""
        return self._digest.hexdigest()


def hash_of_rows(rows: Iterable[str]) -> tuple[int, str]:
    """The number of texts, and a SHA-256 of them all, in hexadecimal digits."""
    hashed = RowsHash()
    for _ in hashed.over(rows):
        pass
    return hashed.count, hashed.hexdigest()
