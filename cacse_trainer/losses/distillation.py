"""The distillation loss of CACSE: the student contrasts with its teacher and is drawn to it."""

import torch
from torch import Tensor

from cacse_trainer.losses.contrastive import check_same_shape, full_precision, nt_xent


def interleave(teacher: Tensor, student: Tensor) -> Tensor:
    """Rows teacher_0, student_0, teacher_1, student_1, …: (N, H), (N, H) → (2N, H)."""
    return torch.stack([teacher, student], dim=1).flatten(0, 1)


def distillation_parts(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 0.05,
    contrastive_weight: float = 0.01,
    texts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`distillation_loss`, and its parts ``NT-Xent(teacher, student; τ)`` and ``mean|student - teacher|``.

    ``texts`` as for `nt_xent`.
    """
    check_same_shape(student, teacher)
    if not 0 <= contrastive_weight <= 1:
        raise ValueError(f"contrastive_weight must be within [0, 1], got {contrastive_weight}")
    teacher, student = full_precision(teacher.detach()), full_precision(student)
    contrastive, distance = nt_xent(teacher, student, temperature, texts), (student - teacher).abs().mean()
    return contrastive_weight * contrastive + (1 - contrastive_weight) * distance, contrastive, distance


def distillation_loss(
    student: Tensor, teacher: Tensor, temperature: float = 0.05, contrastive_weight: float = 0.01
) -> Tensor:
    """``w·NT-Xent(teacher, student; τ) + (1-w)·mean|student - teacher|``.

    Teacher rows are anchors and negatives too; the gradient reaches the student only.

    Args:
        student: (N, H), the student's embeddings of N sentences.
        teacher: (N, H), the teacher's embeddings of the same sentences; detached here.
        temperature: τ > 0.
        contrastive_weight: w; the CACSE release uses 0.01 with the cascade as teacher, 0.1 with the UC ensemble.

    Returns:
        Scalar loss, float32 for half-precision input.

    Raises:
        ValueError: shapes differ or are not (N, H); the weight is outside [0, 1].

    Source: the CACSE release's distillation scripts.

    >>> x = torch.eye(2)
    >>> round(distillation_loss(x, x, 1.0, contrastive_weight=0.5).item(), 4)     # half of nt_xent(x, x, 1)
    0.2757
    """
    return distillation_parts(student, teacher, temperature, contrastive_weight)[0]
