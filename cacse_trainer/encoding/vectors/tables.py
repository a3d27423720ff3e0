"""Tables of vectors on the disk, and what ties them to the rows that they were made of."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def write_table(path: Path, blocks: Iterable[np.ndarray], rows: int) -> None:
    """Blocks of one kind, one behind the other, as one ``.npy`` file.

    They are written and not mapped: a full disk ends a process that writes to mapped memory by a signal.

    Args:
        path: the file.
        blocks: (n, …) arrays.
        rows: of all blocks together.

    Raises:
        OSError: the disk is full.
        ValueError: the blocks have another number of rows.
    """
    written = 0
    with path.open("wb") as file:
        for i, block in enumerate(blocks):
            if i == 0:
                kind = np.lib.format.dtype_to_descr(block.dtype)
                header = {"descr": kind, "fortran_order": False, "shape": (rows, *block.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(block).data)
            written += len(block)
    if written != rows:
        raise ValueError(f"{path}: {written} rows instead of {rows}")


def hash_of_rows(rows: Iterable[str]) -> tuple[int, str]:
    """The number of texts, and a SHA-256 of them all, in hexadecimal digits."""
    digest, count = hashlib.sha256(), 0
    for text in rows:
        digest.update(f"{len(text)}:{text}".encode(errors="surrogatepass"))
        count += 1
    return count, digest.hexdigest()
