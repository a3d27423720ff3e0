"""Contrastive objectives over the views of a batch, by name. A new one is a function and a line in `OBJECTIVES`."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from cacse_trainer.losses import info_nce, nt_xent


def _check_views(vectors: Tensor, name: str, allowed: tuple[int, ...]) -> None:
    """Refuse a number of views V of (B, V, H) that the objective does not know."""
    if vectors.shape[1] not in allowed:
        raise ValueError(
            f"objective {name} compares {' or '.join(map(str, allowed))} views of each row, got {vectors.shape[1]}"
        )


def info_nce_objective(vectors: Tensor, config: Any) -> Tensor:
    """SimCSE: anchors and positives, and hard negatives where there is a third view. (B, 2 or 3, H) → scalar."""
    _check_views(vectors, "info_nce", (2, 3))
    return info_nce(
        anchors=vectors[:, 0],
        positives=vectors[:, 1],
        hard_negatives=vectors[:, 2] if vectors.shape[1] == 3 else None,
        temperature=config.contrastive_temperature,
        hard_negative_weight=config.hard_negative_weight,
    )


def nt_xent_objective(vectors: Tensor, config: Any) -> Tensor:
    """CACSE's towers: every other view is a negative, in both directions. (B, 2, H) → scalar."""
    _check_views(vectors, "nt_xent", (2,))
    return nt_xent(vectors[:, 0], vectors[:, 1], config.contrastive_temperature)


class Objective(NamedTuple):
    """An objective.

    Args:
        loss: takes the vectors (B, V, H) of the global batch and the model's config, returns a scalar.
        negatives: in-batch negatives of each view, as a function of the global batch size B.
    """

    loss: Callable[[Tensor, Any], Tensor]
    negatives: Callable[[int], int]


OBJECTIVES: dict[str, Objective] = {
    "info_nce": Objective(info_nce_objective, lambda batch: batch - 1),
    "nt_xent": Objective(nt_xent_objective, lambda batch: 2 * batch - 2),
}
"""Every objective by name."""
