"""The three validation schemes: how the L2 value is chosen and what the reported accuracies mean.

=================  ====================================================  =================================
scheme             L2 chosen by                                          reported on
=================  ====================================================  =================================
``inner_kfold``    inner folds of each outer training part               the outer folds (MR, CR, SUBJ, MPQA)
``kfold``          folds of the training part                            the test part (TREC, MRPC)
``split``          the given dev part                                    the test part (SST, SICK-E, SNLI, probing)
=================  ====================================================  =================================

Accuracies are in percent, rounded to two decimals where the original rounds: a grid value's mean before the largest is
taken (ties go to the smaller L2), each outer fold's test accuracy, and the final means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from senteval.errors import SettingsError
from senteval.tools.batched import can_batch, fit_linear
from senteval.tools.classifier import fit_plain
from senteval.tools.fits import Fit, Fitted
from senteval.tools.settings import Settings

L2_GRID = (1e-5, 1e-4, 1e-3, 1e-2)
OUTER_SEED = 1111  # the nested folds ignore the seed of the run
INVERSE_L2 = {  # scikit-learn's C, when usepytorch is False
    "inner_kfold": tuple(2.0**t for t in range(-2, 4)),
    "kfold": tuple(2.0**t for t in range(-1, 6)),
    "split": tuple(2.0**t for t in range(-2, 4)),
}


def grid(scheme: str, settings: Settings) -> tuple[float, ...]:
    """The regularisation values a scheme tries."""
    return L2_GRID if settings.usepytorch else INVERSE_L2[scheme]


def fit_all(x: np.ndarray, y: np.ndarray, fits: Sequence[Fit], settings: Settings) -> list[list[Fitted]]:
    """Trains every fit with every L2 value: vectorised for linear layers, one by one for networks with a hidden layer.

    Args:
        x: (rows, dim) features of all rows.
        y: (rows,) labels.
        fits: row numbers and L2 values.
        settings: the classifier.

    Returns:
        For each fit one ``Fitted`` an L2 value.
    """
    if not settings.usepytorch:
        return [[fit_sklearn(x, y, fit, reg, settings) for reg in fit.regs] for fit in fits]
    features = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(settings.device)
    labels = torch.from_numpy(np.ascontiguousarray(y, dtype=np.int64)).to(settings.device)
    if can_batch(settings):
        return fit_linear(features, labels, fits, settings)
    return [[fit_plain(features, labels, fit, reg, settings) for reg in fit.regs] for fit in fits]


def fit_sklearn(x: np.ndarray, y: np.ndarray, fit: Fit, inverse_l2: float, settings: Settings) -> Fitted:
    """scikit-learn's logistic regression on all training rows (it stops by itself: nothing is held out)."""
    model = LogisticRegression(C=inverse_l2, random_state=settings.seed, max_iter=1000)
    model.fit(x[fit.train], y[fit.train])
    scored = fit.train if fit.dev is None else fit.dev
    return Fitted(float(model.score(x[scored], y[scored])), model.predict)


def folds(y: np.ndarray, settings: Settings, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stratified, shuffled folds as (training rows, test rows) of y."""
    splitter = StratifiedKFold(n_splits=settings.kfold, shuffle=True, random_state=seed)
    try:
        yield from splitter.split(np.zeros((len(y), 1)), y)
    except ValueError as error:
        raise SettingsError(f"kfold={settings.kfold} does not suit {len(y)} rows: {error}") from error


def percent(share: float) -> float:
    """A share in percent with two decimals."""
    return round(100 * share, 2)


def best_of(regs: Sequence[float], by_fit: Sequence[Sequence[Fitted]]) -> tuple[float, float]:
    """The L2 value with the largest mean accuracy over fits, the smaller one on a tie, and that accuracy in percent."""
    scores = [percent(float(np.mean([fitted[r].accuracy for fitted in by_fit]))) for r in range(len(regs))]
    index = int(np.argmax(scores))
    return regs[index], float(scores[index])


def test_accuracy(fitted: Fitted, x: np.ndarray, y: np.ndarray) -> float:
    """Accuracy in percent of a classifier on rows x with labels y."""
    return percent(float(np.mean(fitted.predict(x) == y)))


def inner_kfold(x: np.ndarray, y: np.ndarray, settings: Settings) -> tuple[float, float]:
    """Nested cross-validation; a task without a test part.

    Each outer training part chooses its own L2 by inner folds (the inner test fold also stops the training), is fitted
    again with a hold-out, and scored on its outer fold.

    Args:
        x: (rows, dim).
        y: (rows,).
        settings: the classifier; ``kfold`` outer and inner folds.

    Returns:
        (mean of the best inner scores, mean outer accuracy), in percent.
    """
    regs = grid("inner_kfold", settings)
    outer = list(folds(y, settings, OUTER_SEED))
    inner = [
        Fit(rows[train], rows[dev], regs) for rows, _ in outer for train, dev in folds(y[rows], settings, OUTER_SEED)
    ]
    fitted = fit_all(x, y, inner, settings)
    k = settings.kfold
    chosen = [best_of(regs, fitted[start : start + k]) for start in range(0, len(fitted), k)]
    again = [Fit(rows, None, (reg,)) for (rows, _), (reg, _) in zip(outer, chosen, strict=True)]
    refitted = fit_all(x, y, again, settings)
    tests = [test_accuracy(model[0], x[test], y[test]) for model, (_, test) in zip(refitted, outer, strict=True)]
    return float(round(np.mean([score for _, score in chosen]), 2)), float(round(np.mean(tests), 2))


def kfold(
    x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, settings: Settings
) -> tuple[float, float, np.ndarray]:
    """Cross-validation on the training part, then one fit on all of it with a hold-out.

    Args:
        x: (rows, dim) of both parts.
        y: (rows,).
        train: row numbers of the training part.
        test: row numbers of the test part.
        settings: the classifier; the folds are drawn with its seed.

    Returns:
        (best cross-validated accuracy, test accuracy, both in percent; predicted test labels).
    """
    regs = grid("kfold", settings)
    parts = [Fit(train[a], train[b], regs) for a, b in folds(y[train], settings, settings.seed)]
    reg, dev_score = best_of(regs, fit_all(x, y, parts, settings))
    model = fit_all(x, y, [Fit(train, None, (reg,))], settings)[0][0]
    return dev_score, test_accuracy(model, x[test], y[test]), model.predict(x[test])


def split(
    x: np.ndarray,
    y: np.ndarray,
    train: np.ndarray,
    dev: np.ndarray,
    test: np.ndarray,
    settings: Settings,
    regs: tuple[float, ...] | None = None,
) -> tuple[float, float]:
    """The given dev part chooses the L2 value and stops the training; nothing is held out.

    Args:
        x: (rows, dim) of all parts.
        y: (rows,).
        train: row numbers of the training part.
        dev: row numbers of the dev part.
        test: row numbers of the test part.
        settings: the classifier.
        regs: values to try in place of the grid.

    Returns:
        (dev accuracy, test accuracy), in percent.
    """
    regs = regs or grid("split", settings)
    fitted = fit_all(x, y, [Fit(train, dev, regs)], settings)
    reg, dev_score = best_of(regs, fitted)
    return dev_score, test_accuracy(fitted[0][regs.index(reg)], x[test], y[test])
