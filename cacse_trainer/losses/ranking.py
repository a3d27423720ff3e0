"""Ranking losses on labelled pairs: CoSENT's cosine loss and AnglE's angle loss.

Both are ``log(1 + Σ exp(s_i - s_j))`` over the pairs of rows with label_i < label_j: a row whose label is lower must
not score higher. They differ in what the score s is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cacse_trainer.losses.contrastive import check_labels, check_same_shape, full_precision


def _rank(scores: Tensor, labels: Tensor) -> Tensor:
    """``log(1 + Σ_{label_i < label_j} exp(s_i - s_j))``; 0 when no label is below another. scores, labels: (N,)."""
    differences = scores[:, None] - scores[None, :]  # (N, N): s_i - s_j
    wrong_way = labels[:, None] < labels[None, :]
    differences = differences.masked_fill(~wrong_way, float("-inf")).flatten()
    return torch.logsumexp(F.pad(differences, (0, 1), value=0.0), dim=0)  # the appended 0 is the 1 in log(1 + …)


def cosent_loss(first: Tensor, second: Tensor, labels: Tensor, scale: float = 20.0) -> Tensor:
    """CoSENT's cosine loss: ``log(1 + Σ_{label_i < label_j} exp(τ(cos_i - cos_j)))``.

    Args:
        first: (N, H), first sentences.
        second: (N, H), second sentences.
        labels: (N,), graded or binary similarity.
        scale: τ.

    Returns:
        Scalar loss, float32 for half-precision input.

    Raises:
        ValueError: shapes do not fit.

    Source: Su 2022 (CoSENT); the AnglE release's ``cosine_loss``.
    """
    check_same_shape(first, second)
    check_labels(first, labels)
    with torch.autocast(first.device.type, enabled=False):
        cosine = F.cosine_similarity(full_precision(first), full_precision(second), dim=-1)  # (N,)
        return _rank(scale * cosine, labels)


def angle_loss(first: Tensor, second: Tensor, labels: Tensor, scale: float = 20.0) -> Tensor:
    """AnglE's angle loss: the ranking loss on an angle difference in complex space.

    With first = (a, b) and second = (c, d) split into real and imaginary halves,
    ``p = τ·|Σ(ac + bd + bc - ad)| / (‖first‖·‖second‖)`` takes the cosine's place.

    Args:
        first: (N, H), H even.
        second: (N, H).
        labels: (N,), graded or binary similarity.
        scale: τ.

    Returns:
        Scalar loss, float32 for half-precision input.

    Raises:
        ValueError: shapes do not fit, or H is odd.

    Source: Li and Li 2023 (arXiv 2309.12871), and the AnglE release's ``angle_loss``.
    """
    check_same_shape(first, second)
    check_labels(first, labels)
    if first.shape[1] % 2:
        raise ValueError(f"the angle loss splits vectors in halves: H must be even, got {first.shape[1]}")
    with torch.autocast(first.device.type, enabled=False):
        first, second = full_precision(first), full_precision(second)
        real_1, imaginary_1 = first.chunk(2, dim=1)  # (N, H/2) each
        real_2, imaginary_2 = second.chunk(2, dim=1)
        quotient = real_1 * real_2 + imaginary_1 * imaginary_2 + imaginary_1 * real_2 - real_1 * imaginary_2
        length = first.norm(dim=1) * second.norm(dim=1)  # (N,)
        return _rank(scale * (quotient.sum(dim=1) / length).abs(), labels)
