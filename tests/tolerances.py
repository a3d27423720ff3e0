"""How far two computations of one thing may lie apart, from their precision instead of from a guess.

A float32 sum is another one in its last digits on another machine: with other vector instructions, other threads or
another library its terms are added in another order. Where a test can, it computes in float64, whose noise no error
hides in; bitwise equality is for the same computation in the same process.
"""

import math

import numpy as np
import torch

SAFETY = 8.0
"""Over the standard deviation: a network's layers are no independent sums of unit weights."""
ENCODER = 2_000
"""Terms on the longest way through a tiny encoder: four layers of six products over 32 to 64 numbers, twice."""


def noise(
    reference: torch.Tensor | np.ndarray | float, terms: int = ENCODER, dtype: torch.dtype | None = None
) -> float:
    """Bound on the difference of two roundings of one computation, SAFETY · ε · √terms · the largest entry.

    Each of ``terms`` additions errs by up to ε/2 of its result, in either direction: a random walk.

    Args:
        reference: one of the two results.
        terms: numbers that are added up on the longest way from the inputs to an entry.
        dtype: that was computed in; default: the reference's, float32 for a number.
    """
    if isinstance(reference, (int, float)):
        reference = torch.tensor(reference, dtype=torch.float32)
    values = torch.as_tensor(reference).detach()
    largest = values.abs().max().item() if values.numel() else 0.0
    return SAFETY * torch.finfo(dtype or values.dtype).eps * math.sqrt(terms) * largest
