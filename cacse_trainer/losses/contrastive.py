"""Contrastive losses: NT-Xent (both directions, every other view a negative) and InfoNCE (one direction).

Both normalise the rows once and multiply them in one matrix product; nothing of size N×N×H exists. Under autocast the
product runs in float32: a cosine divided by τ = 0.05 in bfloat16 has an error of about 0.1, which the softmax sees.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """Half-precision tensors as float32; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive: the logits would change sign or be infinite."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; published recipes use 0.05")


def check_same_shape(first: Tensor, second: Tensor) -> None:
    """Both tensors must be (N, H) with the same N and H."""
    if first.dim() != 2 or first.shape != second.shape:
        raise ValueError(f"both tensors must be (N, H), got {tuple(first.shape)} and {tuple(second.shape)}")


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.05) -> Tensor:
    """NT-Xent over two views of N sentences, the loss of CACSE's towers and cascade.

    With the 2N rows z = [first; second] and p(i) the other view of row i:
    ``L = -1/2N Σ_i log( exp(cos(z_i, z_p(i))/τ) / Σ_{k≠i} exp(cos(z_i, z_k)/τ) )``.

    Args:
        first: (N, H), first views.
        second: (N, H), second views, row i of the same sentence as row i of ``first``.
        temperature: τ > 0.

    Returns:
        Scalar loss, float32 for half-precision input. With N = 1 there is no negative and it is 0.

    Raises:
        ValueError: shapes differ or are not (N, H); the temperature is not positive.

    Source: Chen et al. 2020 (arXiv 2002.05709), equation 1; the CACSE release's ``InfoNceLoss``.

    >>> x = torch.eye(2)
    >>> round(nt_xent(x, x, 1.0).item(), 4)     # log(1 + 2·exp(0-1))
    0.5514
    """
    check_same_shape(first, second)
    check_temperature(temperature)
    with torch.autocast(first.device.type, enabled=False):
        views = F.normalize(full_precision(torch.cat([first, second])), dim=-1)  # (2N, H)
        logits = views @ views.T / temperature  # (2N, 2N)
        count = first.shape[0]
        itself = torch.eye(2 * count, dtype=torch.bool, device=first.device)
        logits = logits.masked_fill(itself, float("-inf"))
        partner = torch.arange(2 * count, device=first.device).roll(count)  # row i ↔ row i ± N
        return F.cross_entropy(logits, partner)


def info_nce(
    anchors: Tensor,
    positives: Tensor,
    hard_negatives: Tensor | None = None,
    temperature: float = 0.05,
    hard_negative_weight: float = 0.0,
) -> Tensor:
    """InfoNCE with in-batch negatives and, where given, hard negatives: the loss of SimCSE.

    ``s_ij = cos(a_i, p_j)/τ``, ``t_ij = cos(a_i, n_j)/τ + weight·[i = j]``, ``L = CE([s | t], i)``, mean over rows.

    Args:
        anchors: (N, H).
        positives: (N, H).
        hard_negatives: (N, H), or None.
        temperature: τ > 0.
        hard_negative_weight: a logit added to each anchor's own hard negative, after the division by τ.

    Returns:
        Scalar loss, float32 for half-precision input.

    Raises:
        ValueError: shapes differ or are not (N, H); the temperature is not positive.

    Source: Gao et al. 2021 (arXiv 2104.08821), equations 1 and 5, and the SimCSE release.

    >>> x = torch.eye(2)
    >>> round(info_nce(x, x, temperature=1.0).item(), 4)     # log(1 + exp(0-1))
    0.3133
    """
    check_same_shape(anchors, positives)
    check_temperature(temperature)
    with torch.autocast(anchors.device.type, enabled=False):
        anchors = F.normalize(full_precision(anchors), dim=-1)
        positives = F.normalize(full_precision(positives), dim=-1)
        logits = anchors @ positives.T / temperature  # (N, N)
        if hard_negatives is not None:
            check_same_shape(anchors, hard_negatives)
            negatives = F.normalize(full_precision(hard_negatives), dim=-1)
            against_negatives = anchors @ negatives.T / temperature  # (N, N)
            own = torch.eye(anchors.shape[0], dtype=logits.dtype, device=logits.device)
            logits = torch.cat([logits, against_negatives + hard_negative_weight * own], dim=1)  # (N, 2N)
        return F.cross_entropy(logits, torch.arange(anchors.shape[0], device=anchors.device))
