"""From token lists to one checked float matrix, through the user's ``batcher(params, batch)``.

A batcher may return a NumPy array, a torch tensor (any device, any float type) or a list of rows. What comes back is
checked once, here: one row a sentence, finite numbers, the same width in every batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from senteval.errors import EmbeddingError, SettingsError
from senteval.utils import dotdict

Tokens = list[str]
Batcher = Callable[[dotdict, list[Tokens]], Any]
Prepare = Callable[[dotdict, list[Tokens]], Any]
Item = TypeVar("Item")


def progress(params: dotdict, items: Iterable[Item], label: str, total: int | None = None) -> Iterable[Item]:
    """The items themselves, behind a tqdm bar if ``params.progress`` says where to draw it.

    ``progress`` absent, None or False: quiet. True: standard error. An open text stream: that stream.
    """
    where = params.get("progress")
    if where is None or where is False:
        return items
    from tqdm import tqdm  # only those who want a bar need it

    return tqdm(items, desc=label, total=total, file=sys.stderr if where is True else where, leave=False)


def as_matrix(rows: Any, count: int, task: str) -> np.ndarray:
    """One batch's embeddings as a NumPy matrix of ``count`` rows.

    Args:
        rows: what the batcher returned, (count, dim); a bare (dim,) vector is accepted for a batch of one.
        count: number of sentences in the batch.
        task: task name, for the error message.

    Returns:
        float32 or float64 matrix (half precisions become float32).

    Raises:
        EmbeddingError: wrong shape, or a value that is not finite.
    """
    if isinstance(rows, torch.Tensor):
        rows = rows.detach().cpu()
        rows = rows.numpy() if rows.dtype in (torch.float32, torch.float64) else rows.float().numpy()
    elif isinstance(rows, (list, tuple)) and rows and isinstance(rows[0], torch.Tensor):
        rows = torch.stack([row.detach().cpu().float() for row in rows]).numpy()
    matrix = np.asarray(rows)
    if matrix.dtype not in (np.float32, np.float64):
        matrix = matrix.astype(np.float32)
    if matrix.ndim == 1 and count == 1:
        matrix = matrix[None, :]  # (dim,) → (1, dim)
    if matrix.ndim != 2 or len(matrix) != count:
        raise EmbeddingError(
            f"{task}: the batcher returned shape {matrix.shape} for {count} sentences, not ({count}, dim)"
        )
    return matrix


def encode(params: dotdict, batcher: Batcher, sentences: Sequence[Tokens], task: str) -> np.ndarray:
    """Embeddings of ``sentences`` in their order, through batches of ``params.batch_size``.

    Args:
        params: the engine's parameters; ``batch_size`` and ``progress`` are read.
        batcher: the user's function.
        sentences: token lists; an empty sentence is an empty list.
        task: task name, for the error messages and the progress bar.

    Returns:
        (len(sentences), dim) matrix.

    Raises:
        EmbeddingError: wrong shapes, or values that are not finite (the first such sentence is quoted).
    """
    size = int(params.batch_size)
    if size < 1:
        raise SettingsError(f"batch_size is {params.batch_size}; it must be at least 1")
    blocks: list[np.ndarray] = []
    for start in progress(params, range(0, len(sentences), size), f"{task} sentences"):
        batch = list(sentences[start : start + size])
        block = as_matrix(batcher(params, batch), len(batch), task)
        if blocks and block.shape[1] != blocks[0].shape[1]:
            raise EmbeddingError(f"{task}: embeddings of width {blocks[0].shape[1]}, then of width {block.shape[1]}")
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise EmbeddingError(
                f"{task}: {int((~finite).sum())} of {len(batch)} embeddings in a batch are NaN or infinite; "
                f"the first is that of {' '.join(batch[row])[:80]!r}"
            )
        blocks.append(block)
    return np.concatenate(blocks)
