"""Stops a training whose loss or gradient is not finite, without making the host wait for the device at every step.

On a CPU each figure is looked at when it is there. Elsewhere the figures stay on the device and are looked at together,
before a log line, a score or a checkpoint, and at the latest after `MOST_STEPS`: so no weights that a NaN has reached
are scored or saved, and the message names the step and the rows all the same.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cacse_trainer.training import guards

MOST_STEPS = 50
"""Figures that wait at most."""


def runs_ahead(device: torch.device) -> bool:
    """Whether the host queues work on the device without waiting for it."""
    return device.type != "cpu"


class Batch(NamedTuple):
    """How many rows, and the numbers of their texts, see `text_id`."""

    rows: int
    texts: Tensor | None


class _Figure(NamedTuple):
    """What must be finite, and what is said where it is not; ``parts`` is None of a gradient's norm."""

    value: Tensor
    step: int
    batch: Batch
    parts: Mapping[str, Tensor] | None
    wrong: list[Tensor]


class FiniteWatch:
    """Watches the losses and the norms of the gradients of one training.

    Args:
        at_once: look at each figure when it is given.
    """

    def __init__(self, at_once: bool):
        self.at_once = at_once
        self._waiting: list[_Figure] = []
        self._overflows = 0  # steps in a row whose fp16 gradients overflowed

    def loss(
        self,
        loss: Tensor,
        step: int,
        batch: Batch,
        parts: Mapping[str, Tensor],
        outputs: Mapping[str, Any],
        dataset: Any,
    ) -> None:
        """Watch a step's loss.

        Args:
            loss: scalar.
            step: from 1.
            batch: whose loss it is.
            parts: of the loss, by name.
            outputs: of the model; they tell which rows went wrong.
            dataset: the training data.

        Raises:
            NonFiniteLossError: with the step, the parts and the rows; of this step, or one before it.
        """
        if self.at_once and torch.isfinite(loss):
            return
        if not self.at_once:  # a CUDA graph writes into its output again at the next step
            loss, parts = loss.detach().clone(), {name: part.detach().clone() for name, part in parts.items()}
        self._waiting.append(_Figure(loss.detach(), step, batch, parts, guards.rows_not_finite(outputs)))
        if self.at_once or len(self._waiting) >= MOST_STEPS:
            self.look(dataset)

    def norm(self, norm: Tensor | float | None, step: int, batch: Batch, model: nn.Module, dataset: Any) -> None:
        """Watch the norm of a step's gradient, None where there is none; otherwise as `loss`.

        Raises:
            NonFiniteGradientError: with the step, the parameters where they are still there, and the rows.
        """
        if norm is None or (self.at_once and math.isfinite(norm)):
            return
        value = torch.tensor(float(norm)) if self.at_once else torch.as_tensor(norm).detach()
        self._waiting.append(_Figure(value, step, batch, None, []))
        if self.at_once:
            self.look(dataset, model)

    def scaled_norm(self, norm: Tensor | float | None, step: int) -> None:
        """Watch the norm of a gradient that fp16's loss scale was on: a step whose gradient overflows is skipped.

        Raises:
            NonFiniteGradientError: too many in a row.
        """
        self._overflows = 0 if norm is None or math.isfinite(norm) else self._overflows + 1
        if self._overflows >= guards.OVERFLOWS_IN_A_ROW:
            raise guards.NonFiniteGradientError(
                f"fp16 overflowed at {self._overflows} steps in a row, the last one step {step}: no loss scale is "
                "small enough; train in bfloat16 (--bf16 auto) or float32 (--fp16 false)"
            )

    def look(self, dataset: Any, model: nn.Module | None = None) -> None:
        """Look at all that waits.

        Raises:
            NonFiniteError: of the first step whose figure is not finite.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        fine = torch.stack(
            [torch.isfinite(figure.value).all().to(waiting[0].value.device) for figure in waiting]
        ).tolist()
        if all(fine):
            return
        value, step, batch, parts, wrong = waiting[fine.index(False)]
        rows = guards.describe_rows(*batch, guards.rows_in_question(wrong), dataset)
        if parts is not None:
            values = ", ".join(f"{name} {part.item():.4g}" for name, part in parts.items())
            raise guards.NonFiniteLossError(
                f"the loss is {value.item()} at step {step} ({values}); {rows}; lower the learning rate, "
                "check the weights that training started from, or train in float32 (--bf16 false)"
            )
        names = guards.non_finite_parameters(model) if model is not None else []
        where = f"of {names[0]} and {len(names) - 1} more" if names else "as a whole (its norm)"
        raise guards.NonFiniteGradientError(
            f"the gradient {where} is not finite at step {step}, the loss was; {rows}; lower the "
            "learning rate, or train in float32 (--bf16 false)"
        )
