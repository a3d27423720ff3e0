"""What is to be fitted, and what comes out: the common language of the plain and the vectorised classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from senteval.errors import SettingsError

HOLD_OUT = 0.05


@dataclass(frozen=True)
class Fit:
    """One training set and the rows that stop the training, to be fitted once for each L2 value.

    Args:
        train: row numbers to train on, in order, shape (n,).
        dev: row numbers whose accuracy chooses the state; None holds 5 % of ``train`` out.
        regs: the L2 values.
    """

    train: np.ndarray
    dev: np.ndarray | None
    regs: tuple[float, ...]


@dataclass(frozen=True)
class Fitted:
    """A trained classifier: its best dev accuracy (0 to 1) and ``predict``, from features (n, dim) to labels (n,)."""

    accuracy: float
    predict: Callable[[np.ndarray], np.ndarray]


def hold_out(fit: Fit, stream: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Training and dev rows of a fit; a hold-out takes the first permutation of the fit's random stream.

    Args:
        fit: what is to be fitted.
        stream: NumPy stream, freshly seeded.

    Returns:
        (training rows, dev rows): with a hold-out the first int(0.05 n) rows of the permutation are dev.

    Example:
        >>> train, dev = hold_out(Fit(np.arange(40), None, (1e-4,)), np.random.RandomState(0))
        >>> len(train), len(dev)
        (38, 2)
    """
    if fit.dev is not None:
        return fit.train, fit.dev
    size = int(HOLD_OUT * len(fit.train))
    if size == 0:
        raise SettingsError(f"{len(fit.train)} training rows are too few to hold 5 % out; 20 are the least")
    shuffled = fit.train[stream.permutation(len(fit.train))]
    return shuffled[size:], shuffled[:size]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's thread count within a block, the former one afterwards.

    Steps of some 100 µs gain nothing from threads within them, and on a busy machine they wait for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
