"""Settings of a trained classifier, and the optimizer named by a string such as ``"rmsprop"`` or ``"sgd,lr=0.1"``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

from torch import nn, optim

from senteval.errors import SettingsError
from senteval.utils import dotdict

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "adadelta": optim.Adadelta,
    "adagrad": optim.Adagrad,
    "adam": optim.Adam,
    "adamax": optim.Adamax,
    "asgd": optim.ASGD,
    "rmsprop": optim.RMSprop,
    "rprop": optim.Rprop,
    "sgd": optim.SGD,
}


def parse_optimizer(text: str) -> tuple[str, dict[str, float]]:
    """Method and options of an optimizer string.

    Args:
        text: method, then ``key=number`` pairs, separated by commas.

    Raises:
        SettingsError: unknown method, or something that is no ``key=number``.

    Example:
        >>> parse_optimizer("sgd,lr=0.1")
        ('sgd', {'lr': 0.1})
    """
    method, *pairs = (part.strip() for part in text.split(","))
    if method not in OPTIMIZERS:
        raise SettingsError(f"unknown optimizer {method!r}; choose from {', '.join(OPTIMIZERS)}")
    try:
        return method, {key.strip(): float(value) for key, value in (pair.split("=") for pair in pairs)}
    except ValueError as error:
        raise SettingsError(f"optimizer {text!r}: {error}; write for instance 'sgd,lr=0.1'") from error


def make_optimizer(text: str, parameters: Iterable[nn.Parameter], weight_decay: float) -> optim.Optimizer:
    """An optimizer with torch's default settings, except those named in ``text``.

    Args:
        text: see ``parse_optimizer``.
        parameters: what it updates.
        weight_decay: coupled L2, added to the gradient, biases included.

    Raises:
        SettingsError: an option the optimizer does not have.
    """
    method, options = parse_optimizer(text)
    try:
        return OPTIMIZERS[method](parameters, weight_decay=weight_decay, **options)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"optimizer {text!r}: {error}") from error


@dataclass(frozen=True)
class Settings:
    """How one classifier is trained; the defaults are those of published runs in mode test.

    Args:
        nclasses: number of labels.
        nhid: hidden units, 0 for a linear layer.
        optim: optimizer, see ``parse_optimizer``.
        batch_size: rows a step; the last, smaller batch of a pass is kept.
        tenacity: training stops at miss number ``tenacity`` + 1.
        epoch_size: passes a round; the dev accuracy is taken after each round.
        max_epoch: no round begins past this number of passes.
        dropout: dropout after the hidden layer.
        kfold: number of folds of the cross-validations.
        seed: every fit starts anew from it.
        usepytorch: False trains scikit-learn's logistic regression instead.
        device: torch device the fits run on.
    """

    nclasses: int
    nhid: int = 0
    optim: str = "adam"
    batch_size: int = 64
    tenacity: int = 5
    epoch_size: int = 4
    max_epoch: int = 200
    dropout: float = 0.0
    kfold: int = 5
    seed: int = 1111
    usepytorch: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (
            ("kfold", 2),
            ("batch_size", 1),
            ("epoch_size", 1),
            ("nhid", 0),
            ("tenacity", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise SettingsError(f"classifier setting {name} is {getattr(self, name)}; it must be at least {least}")
        parse_optimizer(self.optim)

    @classmethod
    def from_params(cls, params: dotdict, nclasses: int, seed: int) -> Settings:
        """Settings out of the engine's parameters; a key of ``params.classifier`` nobody reads is warned about."""
        given: dict[str, Any] = dict(params.classifier or {})
        known = {field.name for field in fields(cls)} - {"nclasses", "kfold", "seed", "usepytorch"}
        for key in sorted(set(given) - known):
            warnings.warn(f"classifier setting {key!r} is not known and has no effect", stacklevel=2)
        chosen = {key: value for key, value in given.items() if key in known}
        return cls(nclasses=nclasses, kfold=params.kfold, seed=seed, usepytorch=params.usepytorch, **chosen)

    def network(self, width: int) -> nn.Sequential:
        """A network for rows of ``width`` features, initialised from torch's current random state."""
        if self.nhid == 0:
            return nn.Sequential(nn.Linear(width, self.nclasses))
        return nn.Sequential(
            nn.Linear(width, self.nhid),
            nn.Dropout(p=self.dropout),
            nn.Sigmoid(),
            nn.Linear(self.nhid, self.nclasses),
        )
