"""An index larger than memory: faiss's cells with their lists on the disk, and the sentences beside them.

It is fed from the files that ``cacse-trainer encode`` wrote. The cells' centres are trained on a sample; vectors are
added some at a time to indexes of their own, whose lists are then put together, one after the other, in the file
``lists.ivfdata``, which a search maps: what it looks into is read, and nothing else.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from cacse_trainer.encoding.vectors.exact import ExactVectors
from cacse_trainer.encoding.vectors.faiss_vectors import FAISS_KINDS, FILE, VECTORS_A_CELL, FaissVectors, load_faiss
from cacse_trainer.encoding.vectors.precision import directions
from cacse_trainer.encoding.vectors.tables import SelectedRows, Table
from cacse_trainer.errors import UserError, one_line

LISTS = "lists.ivfdata"
TEXTS = "sentences.arrow"
TEXTS_AT_ONCE = 16_384
TRAINED_BYTES = 1 << 30
ADDED_BYTES = 1 << 28
"""Of vectors in float32: the most that the centres are trained on, and those that are added at once."""
ASKED, NEAREST = 100, 10
"""Vectors of the corpus that are looked for to know the recall, and how many are found for each."""


class StoredTexts(Sequence[str]):
    """Texts in a file that is mapped: what is asked for is read.

    Args:
        path: a file of `write_texts`.

    Raises:
        ArrowException: it is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = self._file.num_record_batches
        last = self._file.get_batch(batches - 1).num_rows if batches else 0
        self._count = max(batches - 1, 0) * TEXTS_AT_ONCE + last

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        batch, row = divmod(range(len(self))[place], TEXTS_AT_ONCE)
        return str(self._file.get_batch(batch).column(0)[row])


def write_texts(path: Path, texts: Iterable[str]) -> Iterator[str]:
    """The same texts, written into a file as they pass."""
    rest, schema = iter(texts), pa.schema([("text", pa.large_string())])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        while block := list(islice(rest, TEXTS_AT_ONCE)):
            writer.write_batch(pa.record_batch([pa.array(block, pa.large_string())], schema=schema))
            yield from block


def build_lists(
    folder: Path, tables: Sequence[Table], precision: str, dim: int, kind: str, effort: int | None = None
) -> float:
    """Write the index of some tables of vectors into a folder.

    Args:
        folder: that is there.
        tables: as they are stored, one behind the other.
        precision, dim: of these.
        kind: ``ivf``, or a faiss factory string that begins with IVF, such as ``IVF65536,SQ8``.
        effort: cells that a query looks into; for the recall.

    Returns:
        The recall: of the nearest ten of a hundred vectors of the corpus the share that is found.

    Raises:
        UserError: faiss is not installed, refuses the kind, or has no cells for it.
    """
    faiss = load_faiss()
    rows = sum(map(len, tables))
    sampled = min(rows, TRAINED_BYTES // (4 * dim))
    cells = max(1, min(int(4 * np.sqrt(rows)), sampled // VECTORS_A_CELL))
    sample = SelectedRows(tables, np.linspace(0, rows - 1, min(sampled, 64 * cells)).astype(np.int64))
    parts: list[Path] = []
    try:
        factory = f"IVF{cells},Flat" if kind == "ivf" else kind
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        faiss.extract_index_ivf(index)
        index.train(directions(sample[:], precision, dim))
        start, at_once = 0, max(1, ADDED_BYTES // (4 * dim))
        for block in _blocks(tables, at_once):
            part = faiss.clone_index(index)
            part.add_with_ids(directions(block, precision, dim), np.arange(start, start + len(block)))
            start += len(block)
            parts.append(folder / f"part_{len(parts)}.faiss")
            faiss.write_index(part, str(parts[-1]))
        from faiss.contrib.ondisk import merge_ondisk

        merge_ondisk(index, [str(part) for part in parts], str(folder / LISTS))
        faiss.write_index(index, str(folder / FILE))
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"index kind {kind!r}: faiss refuses it for {rows} vectors of {dim} dimensions on the disk "
            f"({one_line(error)}); choose ivf, or a factory string that begins with IVF (of {', '.join(FAISS_KINDS)} "
            "the others are held in memory: build those without --vectors)"
        ) from error
    for path in parts:
        path.unlink()
    found = FaissVectors(index, kind, effort)
    asked = SelectedRows(tables, np.unique(np.linspace(0, rows - 1, min(rows, ASKED)).astype(np.int64)))
    return recall(found, ExactVectors(tables, precision, dim), directions(asked[:], precision, dim))


def recall(found: Any, exact: ExactVectors, queries: np.ndarray) -> float:
    """The share of the exact `NEAREST` of each of the (q, dim) queries that an index finds among as many."""
    wanted, near = exact.search(queries, NEAREST)[1], found.search(queries, NEAREST)[1]
    hits = sum(len(np.intersect1d(first, second)) for first, second in zip(wanted, near, strict=True))
    return float(hits / wanted.size)


def _blocks(tables: Sequence[Table], at_once: int) -> Iterator[np.ndarray]:
    """All rows, about so many at a time, small tables together."""
    waiting: list[np.ndarray] = []
    for table in tables:
        for start in range(0, len(table), at_once):
            waiting.append(np.asarray(table[slice(start, start + at_once)]))
            if sum(map(len, waiting)) >= at_once:
                yield np.concatenate(waiting)
                waiting = []
    if waiting:
        yield np.concatenate(waiting)
