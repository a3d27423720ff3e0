"""Rows of similar length run together: less padding is computed, the result is the same.

Of a batch padded to its longest row most tokens are padding. The rows are sorted by length, cut into groups of
equal size, each group trimmed to its own longest row, encoded, and put back in order; the loss still sees them all.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def encode_in_buckets(encode: Callable[..., Tensor], inputs: dict[str, Tensor], buckets: int) -> Tensor:
    """``encode(**inputs)`` in ``buckets`` passes of rows of similar length.

    Args:
        encode: (n, l) tensors by name → (n, …), row by row, blind to padding.
        inputs: (N, L) tensors, among them ``attention_mask`` (without it, or padded on the left, one pass is made).
        buckets: number of passes, at least 1.

    Returns:
        (N, …), in the order of the rows.
    """
    mask = inputs.get("attention_mask")
    if buckets <= 1 or mask is None or len(mask) < 2 * buckets or not bool(mask[:, 0].all()):
        return encode(**inputs)
    lengths = mask.sum(dim=1)
    order = torch.argsort(lengths, stable=True)
    parts = []
    for rows in order.chunk(buckets):
        longest = int(lengths[rows].max())
        parts.append(encode(**{name: tensor[rows, :longest] for name, tensor in inputs.items()}))
    return torch.cat(parts)[torch.argsort(order)]
