"""How far two computations of one thing may lie apart, from their precision instead of from a guess.

A float32 sum is another one in its last digits on another machine: with other vector instructions, other threads or
another library its terms are added in another order. Where a test can, it computes in float64, whose noise no error
hides in: there 1e-10 of the largest entry is a thousand times the noise. Bitwise equality is for the same computation
in the same process.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

SAFETY = 8.0
"""Over the random walk's standard deviation: a network's sums are neither independent nor of equal terms."""
ENCODER = 12 * 6 * 48
"""Terms on the longest way through the largest encoder of these tests: 12 layers of 6 products over 48 numbers."""
GRADIENT = 4.0
"""A gradient goes there and back, and is summed over a batch's rows and tokens: 16 times the terms."""

Numbers = torch.Tensor | np.ndarray | Sequence[float] | float


def noise(reference: Numbers, terms: int = ENCODER, dtype: torch.dtype = torch.float32) -> float:
    """Bound on the difference of two roundings of one computation: SAFETY · ε · √terms · the largest entry.

    Each of ``terms`` additions errs by up to ε/2 of its result, in either direction: a random walk.

    Args:
        reference: one of the two results.
        terms: numbers that are added up on the longest way from the inputs to an entry.
        dtype: that was computed in.
    """
    return SAFETY * torch.finfo(dtype).eps * math.sqrt(terms) * _exact(reference).abs().max().item()


def assert_near(found: Numbers, expected: Numbers, terms: int = ENCODER, times: float = 1.0) -> None:
    """Fail unless the two are one float32 result but for its noise.

    Args:
        found, expected: of the same shape.
        terms: as for `noise`.
        times: how many times the noise is let pass, `GRADIENT` for gradients.
    """
    ours, theirs = _exact(found), _exact(expected)
    assert ours.shape == theirs.shape
    difference, bound = (ours - theirs).abs().max().item(), times * noise(theirs, terms)
    assert difference <= bound, f"{difference:.2e} apart, the noise is {bound:.2e}"


def _exact(values: Numbers) -> torch.Tensor:
    given = values.detach().cpu().double() if isinstance(values, torch.Tensor) else np.array(values, np.float64)
    return torch.as_tensor(given)
