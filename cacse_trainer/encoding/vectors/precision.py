"""Smaller vectors: fewer dimensions, two bytes, a byte or a bit for each number.

What is kept in files and indexes (`to_precision`) is directions, row by row. ``float16`` rounds; ``int8`` stores
``round(127 · v / max_j |v_j|)``, each row with its own scale, which a cosine does not see. ``binary`` stores
``v_j > 0`` packed into bytes, and the cosine of two sign vectors is ``1 - 2 · hamming / dim`` (Charikar 2002). A
quarter and a thirty-second of float32's size.

`quantized` gives the numbers that sentence-transformers gives for a table as a whole.
"""

from collections.abc import Sequence

import numpy as np

from cacse_trainer.errors import UserError

PRECISIONS = ("float32", "float16", "int8", "binary")
"""Those of `to_precision`."""
QUANTIZED = ("float32", "int8", "uint8", "binary", "ubinary")
"""Those of `quantized`."""


def check_precision(precision: str, known: Sequence[str] = PRECISIONS) -> str:
    """The precision, if there is one of that name.

    Raises:
        UserError: there is none.
    """
    if precision not in known:
        raise UserError(f"precision {precision!r} is none of {', '.join(known)}")
    return precision


def truncated(table: np.ndarray, dim: int | None) -> np.ndarray:
    """The first ``dim`` columns of (n, width); all of them for None.

    Raises:
        UserError: there are fewer, or none is asked for.
    """
    if dim is None or table.shape[0] == 0:
        return table
    if not 1 <= dim <= table.shape[1]:
        raise UserError(f"truncate_dim {dim} must lie between 1 and the vectors' {table.shape[1]} dimensions")
    return table[:, :dim]


def normalized(table: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a zero row stays zero."""
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    return table / np.where(lengths == 0, 1, lengths)


def to_precision(table: np.ndarray, precision: str) -> np.ndarray:
    """(n, dim) float32 → float32 as it is, float16 or int8 (n, dim), or packed bits uint8 (n, ⌈dim / 8⌉).

    >>> to_precision(np.array([[0.5, -1.0, 0.25]]), "int8").tolist()
    [[64, -127, 32]]
    >>> to_precision(np.array([[0.5, -1.0, 0.25]]), "binary").tolist()  # 101 and five zeros
    [[160]]
    """
    if precision == "int8":
        largest = np.abs(table).max(axis=1, keepdims=True, initial=0)
        return np.rint(table / np.where(largest == 0, 1, largest) * 127).astype(np.int8)
    if precision == "binary":
        return np.packbits(table > 0, axis=1)
    return table.astype(np.float16) if precision == "float16" else table


def quantized(table: np.ndarray, precision: str) -> np.ndarray:
    """(n, dim) float32 → what sentence-transformers' ``quantize_embeddings`` gives for the same table.

    ``uint8`` and ``int8`` cut the range of each dimension, over these n rows, in 255 steps, counted from 0 or -128.
    ``ubinary`` and ``binary`` pack ``v_j > 0`` into bytes, (n, ⌈dim / 8⌉), unsigned, or signed and 128 less.

    Raises:
        UserError: one row has no ranges.

    >>> quantized(np.array([[0.0, -1.0], [1.0, 1.0], [0.5, 0.9]], dtype=np.float32), "uint8").tolist()
    [[0, 0], [255, 255], [127, 242]]
    """
    if precision in ("int8", "uint8"):
        if len(table) == 1:
            raise UserError(f"precision {precision} scales by the range of several sentences: give more than one")
        starts = table.min(axis=0, initial=np.inf)
        steps = (table.max(axis=0, initial=-np.inf) - starts) / 255
        counted = np.clip(np.floor((table - starts) / np.where(steps == 0, 1, steps)), 0, 255)
        return counted.astype(np.uint8) if precision == "uint8" else (counted - 128).astype(np.int8)
    if precision in ("binary", "ubinary"):
        packed = np.packbits(table > 0, axis=1)
        return packed if precision == "ubinary" else (packed ^ 128).view(np.int8)
    return table


def directions(table: np.ndarray, precision: str, dim: int) -> np.ndarray:
    """Stored rows back to float32 rows of length 1, (n, dim): what cosines are taken of."""
    if precision == "binary":
        bits = np.unpackbits(table, axis=1, count=dim)  # (n, dim) of 0 and 1
        return (bits.astype(np.float32) * 2 - 1) / np.float32(np.sqrt(dim))
    return table if precision == "float32" else normalized(table.astype(np.float32))
