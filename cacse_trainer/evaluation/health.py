"""Signs of a healthy embedding space: alignment, uniformity, average cosine, dead dimensions."""

import numpy as np

from cacse_trainer.encoding.vectors.precision import normalized

COLLAPSE_COSINE = 0.99
"""An average cosine above this means that the sentences are told apart by almost nothing."""


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, in float64; a zero row stays zero."""
    return normalized(vectors.astype(np.float64))


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared distance of positive pairs on the unit sphere, ``E‖f(x) - f(x⁺)‖²``; (n, H) each. NaN for n = 0.

    Source: Wang and Isola 2020 (arXiv 2005.10242).
    """
    if len(first) == 0:
        return float("nan")
    return float(np.square(unit(first) - unit(second)).sum(axis=1).mean())


def uniformity(vectors: np.ndarray, most: int = 4096) -> float:
    """``log E exp(-2‖f(x) - f(y)‖²)`` over the pairs of distinct rows; the lower, the more evenly spread.

    Args:
        vectors: (n, H); of more than ``most`` rows an even selection is used. NaN for n < 2.

    Source: Wang and Isola 2020 (arXiv 2005.10242).
    """
    if len(vectors) < 2:
        return float("nan")
    step = -(-len(vectors) // most)
    chosen = unit(vectors[::step])
    cosines = (chosen @ chosen.T)[np.triu_indices(len(chosen), k=1)]
    return float(np.log(np.exp(-2 * (2 - 2 * cosines)).mean()))


def average_cosine(vectors: np.ndarray) -> float:
    """Mean cosine over the pairs of distinct rows, ``(‖Σû‖² - n) / n(n-1)``. NaN for n < 2."""
    count = len(vectors)
    if count < 2:
        return float("nan")
    total = unit(vectors).sum(axis=0)
    return float((total @ total - count) / (count * (count - 1)))


def dead_dimensions(vectors: np.ndarray) -> int:
    """Number of dimensions whose standard deviation is under 1 % of the average one (all, if nothing varies)."""
    deviations = vectors.astype(np.float64).std(axis=0)
    average = deviations.mean()
    if average == 0:
        return vectors.shape[1]
    return int((deviations < 0.01 * average).sum())
