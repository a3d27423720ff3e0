"""Ranking distillation: a student's similarities within a batch take over a teacher's ranking (RankCSE, DistillCSE).

All are of (N, N) cosines: row i holds those of sentence i to every sentence of the batch, itself on the diagonal.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cacse_trainer.losses.contrastive import check_same_shape, check_temperature, full_precision

LOG_2 = torch.tensor(2.0, dtype=torch.float64).log().item()


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of every row of the one with every row of the other: (N, H), (N, H) → (N, N), float32 for half precision.

    Raises:
        ValueError: shapes differ or are not (N, H).
    """
    check_same_shape(first, second)
    with torch.autocast(first.device.type, enabled=False):
        return F.normalize(full_precision(first), dim=-1) @ F.normalize(full_precision(second), dim=-1).T


def check_similarities(first: Tensor, second: Tensor) -> None:
    """Both tensors must be (N, N)."""
    if first.dim() != 2 or first.shape[0] != first.shape[1] or first.shape != second.shape:
        raise ValueError(f"similarities must be (N, N), got {tuple(first.shape)} and {tuple(second.shape)}")


def listnet_loss(
    student: Tensor, teacher: Tensor, student_temperature: float = 0.05, teacher_temperature: float = 0.025
) -> Tensor:
    """ListNet: the cross-entropy of the student's distribution over the other sentences under the teacher's.

    ``L = -mean_i Σ_{j≠i} softmax(S^T_i/τ₃)_j · log softmax(S_i/τ₂)_j``; both softmax are over j ≠ i.

    Args:
        student: (N, N), S, the student's cosines.
        teacher: (N, N), S^T, the teacher's; detached here.
        student_temperature: τ₂ > 0.
        teacher_temperature: τ₃ > 0; RankCSE has half of τ₂.

    Returns:
        Scalar loss, float32 for half-precision input. With N = 1 there is no other sentence and it is 0.

    Raises:
        ValueError: shapes differ or are not (N, N); a temperature is not positive.

    Source: Cao et al. 2007; Liu et al. 2023 (RankCSE). Its public reimplementation leaves τ₃ out.

    >>> student = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]])
    >>> round(listnet_loss(student, torch.eye(3), 1.0, 1.0).item(), 4)     # 2/3·(log(1 + e^½) - ¼) + 1/3·log 2
    0.7138
    """
    check_similarities(student, teacher)
    for temperature in (student_temperature, teacher_temperature):
        check_temperature(temperature)
    with torch.autocast(student.device.type, enabled=False):
        others = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
        own, given = (full_precision(rows)[others].view(len(rows), -1) for rows in (student, teacher.detach()))
        shares = (given / teacher_temperature).softmax(dim=-1)  # (N, N - 1)
        return -(shares * (own / student_temperature).log_softmax(dim=-1)).sum(dim=-1).mean()


def listmle_loss(student: Tensor, teacher: Tensor, temperature: float = 0.05) -> Tensor:
    """ListMLE: the negative log-likelihood of the teacher's ranking under the student's scores.

    ``L = mean_i Σ_k [ logsumexp_{l≥k} s_π(l) - s_π(k) ]`` with s = S_i/τ₂, π sorting the teacher's row, highest first.
    A row is taken whole, its own sentence included, which the teacher ranks first. Of equal scores the first comes
    first.

    Args:
        student: (N, N), S, the student's cosines.
        teacher: (N, N), the teacher's, of which the order alone counts.
        temperature: τ₂ > 0.

    Returns:
        Scalar loss, float32 for half-precision input. It grows with N: a sum over the places of the ranking.

    Raises:
        ValueError: shapes differ or are not (N, N); the temperature is not positive.

    Source: Xia et al. 2008; Liu et al. 2023 (RankCSE). Its public reimplementation takes the mean over the
    places, 1/N of this.

    >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> round(listmle_loss(student, torch.eye(2), 1.0).item(), 4)     # log(1 + exp(0-1))
    0.3133
    """
    check_similarities(student, teacher)
    check_temperature(temperature)
    with torch.autocast(student.device.type, enabled=False):
        order = teacher.argsort(dim=-1, descending=True, stable=True)
        scores = (full_precision(student) / temperature).gather(1, order)  # (N, N), best first
        remaining = scores.flip(1).logcumsumexp(dim=1).flip(1)  # of each place and those after it
        return (remaining - scores).sum(dim=-1).mean()


def js_consistency(first: Tensor, second: Tensor, temperature: float = 0.05) -> Tensor:
    """The Jensen-Shannon divergence of two similarity distributions: RankCSE's consistency of two views.

    ``L = mean_i JS(P_i ‖ Q_i)``, P = softmax_j(first/τ₁), Q = softmax_j(second/τ₁),
    ``JS(P ‖ Q) = ½·KL(P ‖ M) + ½·KL(Q ‖ M)``, M = (P + Q)/2.

    Args:
        first: (N, N), cosines of the first views to the second.
        second: (N, N), cosines of the second views to the first.
        temperature: τ₁ > 0.

    Returns:
        Scalar loss within [0, log 2], float32 for half-precision input.

    Raises:
        ValueError: shapes differ or are not (N, N); the temperature is not positive.

    Source: Liu et al. 2023 (RankCSE). Its public reimplementation clamps a log-probability from below.

    >>> opposed = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    >>> round(js_consistency(opposed, opposed.flip(1), 1.0).item(), 4)     # log 2
    0.6931
    """
    check_similarities(first, second)
    check_temperature(temperature)
    with torch.autocast(first.device.type, enabled=False):
        p, q = ((full_precision(rows) / temperature).log_softmax(dim=-1) for rows in (first, second))
        middle = torch.logaddexp(p, q) - LOG_2
        return ((p.exp() * (p - middle)).sum(dim=-1) + (q.exp() * (q - middle)).sum(dim=-1)).mean() / 2
