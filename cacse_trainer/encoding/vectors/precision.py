"""Smaller vectors: fewer dimensions, a byte or a bit for each number.

Only directions are kept. ``int8`` stores ``round(127 · v / max_j |v_j|)``, each row with its own scale, which a cosine
does not see. ``binary`` stores ``v_j > 0`` packed into bytes, and the cosine of two sign vectors is
``1 - 2 · hamming / dim`` (Charikar 2002). A quarter and a thirty-second of float32's size.
"""

import numpy as np

from cacse_trainer.errors import UserError

PRECISIONS = ("float32", "int8", "binary")


def check_precision(precision: str) -> str:
    """The precision, if there is one of that name.

    Raises:
        UserError: there is none.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
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
    """(n, dim) float32 → float32 as it is, int8 (n, dim), or packed bits uint8 (n, ⌈dim / 8⌉).

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
    return table


def directions(table: np.ndarray, precision: str, dim: int) -> np.ndarray:
    """Stored rows back to float32 rows of length 1, (n, dim): what cosines are taken of."""
    if precision == "binary":
        bits = np.unpackbits(table, axis=1, count=dim)  # (n, dim) of 0 and 1
        return (bits.astype(np.float32) * 2 - 1) / np.float32(np.sqrt(dim))
    return table if precision == "float32" else normalized(table.astype(np.float32))
