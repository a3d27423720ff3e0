"""The distillation loss of CACSE: the student contrasts with its teacher and is drawn to it; and what it forgets."""

import torch
import torch.nn.functional as F
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


def cosine_drift(vectors: Tensor, start: Tensor) -> Tensor:
    """How far the cosines of N sentences have moved: the mean over i ≠ j of ``(cos(v_i, v_j) - cos(s_i, s_j))²``.

    Args:
        vectors: (N, H), of the model that is trained.
        start: (N, H'), of the model that it started from; detached here.

    Returns:
        Scalar, float32 for half-precision input; 0 with fewer than two sentences.

    Raises:
        ValueError: the numbers of rows differ.

    >>> cosine_drift(torch.eye(2), torch.ones(2, 3)).item()     # cosine 0 where it was 1
    1.0
    """
    if vectors.dim() != 2 or start.dim() != 2 or len(vectors) != len(start):
        raise ValueError(f"give (N, H) and (N, H'), got {tuple(vectors.shape)} and {tuple(start.shape)}")
    with torch.autocast(vectors.device.type, enabled=False):
        own, old = (F.normalize(full_precision(rows), dim=-1) for rows in (vectors, start.detach()))
        squares = (own @ own.T - old @ old.T).square()
        pairs = len(own) * (len(own) - 1)
        return (squares.sum() - squares.diagonal().sum()) / max(pairs, 1)


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
