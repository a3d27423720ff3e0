"""Adam and RMSprop on one large tensor, in place, with as few passes over it as the formulas allow.

The formulas and default settings are torch's (tested against ``torch.optim``); what is left out is the bookkeeping
that would take longer than the arithmetic of a small classifier.
"""

from __future__ import annotations

import torch

Index = tuple[torch.Tensor, ...]


class Adam:
    """w ← w − lr · m̂ / (√v̂ + ε), bias-corrected moments m and v with decays 0.9 and 0.999; torch's fused kernel."""

    def __init__(self, like: torch.Tensor, lr: float = 1e-3) -> None:
        self.lr = lr
        self.steps, self.one = torch.zeros((), device=like.device), torch.ones((), device=like.device)
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)

    def step(self, parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        """Updates ``parameter`` in place."""
        self.steps.add_(self.one)
        torch._fused_adam_(
            [parameter],
            [gradient],
            [self.mean],
            [self.square],
            [],
            [self.steps],
            lr=self.lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def keep(self, index: Index) -> None:
        """Drops the state of everything but ``index``."""
        self.mean, self.square = self.mean[index], self.square[index]


class RMSprop:
    """w ← w − lr · g / (√v + ε), v the running mean of g² with decay 0.99."""

    def __init__(self, like: torch.Tensor, lr: float = 1e-2) -> None:
        self.lr = lr
        self.square, self.scratch = torch.zeros_like(like), torch.empty_like(like)

    def step(self, parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        """Updates ``parameter`` in place."""
        self.square.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
        torch.sqrt(self.square, out=self.scratch).add_(1e-8)
        parameter.addcdiv_(gradient, self.scratch, value=-self.lr)

    def keep(self, index: Index) -> None:
        """Drops the state of everything but ``index``."""
        self.square = self.square[index]
        self.scratch = torch.empty_like(self.square)


UPDATES: dict[str, type[Adam] | type[RMSprop]] = {"adam": Adam, "rmsprop": RMSprop}
