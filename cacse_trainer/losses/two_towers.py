"""What TNCSE asks of two towers beside NT-Xent on each: that each tells the other's views apart, and agrees in norm.

Rows are interleaved: rows 2n and 2n+1 are the two views of sentence n, as ``(N, 2, H)`` flattened has them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cacse_trainer.losses.contrastive import check_same_shape, check_temperature, equal_rows, full_precision

OPPOSED_COSINE = 1e-4
"""What the TNCSE release takes for a cosine that has no logarithm."""


def check_interleaved(first: Tensor, second: Tensor) -> None:
    """Both tensors must be (2N, H), two rows a sentence."""
    check_same_shape(first, second)
    if len(first) % 2:
        raise ValueError(f"rows are the two views of each sentence, got {len(first)}, an odd number")


def cross_nt_xent(first: Tensor, second: Tensor, temperature: float = 0.05, texts: Tensor | None = None) -> Tensor:
    """NT-Xent from one tower's views to the other's: TNCSE's interaction of the towers.

    With p(i) the other view of row i's sentence:
    ``L = -1/2N Σ_i log( exp(cos(u_i, v_p(i))/τ) / Σ_{j≠i} exp(cos(u_i, v_j)/τ) )``; the same view in the other tower,
    j = i, is left out.

    Args:
        first: (2N, H), u, one tower's views, interleaved.
        second: (2N, H), v, the other tower's of the same views.
        temperature: τ > 0.
        texts: (N, V), numbers of the sentences, as for `nt_xent`: rows of equal ones are no negatives of each other.

    Returns:
        Scalar loss, float32 for half-precision input. With N = 1 there is no negative and it is 0.

    Raises:
        ValueError: shapes differ or are not (2N, H); the temperature is not positive.

    Source: TNCSE (AAAI 2025), the release's ``icnce``.

    >>> x = torch.eye(2).repeat_interleave(2, dim=0)
    >>> round(cross_nt_xent(x, x, 1.0).item(), 4)     # log(1 + 2·exp(0-1))
    0.5514
    """
    check_interleaved(first, second)
    check_temperature(temperature)
    with torch.autocast(first.device.type, enabled=False):
        first, second = (F.normalize(full_precision(rows), dim=-1) for rows in (first, second))
        logits = first @ second.T / temperature  # (2N, 2N)
        rows = torch.arange(len(first), device=first.device)
        left_out = rows[:, None] == rows
        if texts is not None:
            left_out = left_out | equal_rows(texts).repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
        return F.cross_entropy(logits.masked_fill(left_out, float("-inf")), rows ^ 1)  # row i ↔ the other of its pair


def norm_constraint(first: Tensor, second: Tensor, pooled_first: Tensor, pooled_second: Tensor) -> Tensor:
    """TNCSE's constraint on the towers' norms, of each sentence's first view in one tower and second in the other.

    ``L = 1/N Σ_{even i} -log(c_i) · ‖pu_i - pv_{i+1}‖ / (2(‖pu_i‖ + ‖pv_{i+1}‖))`` with c_i = cos(u_i, v_{i+1}). A
    cosine that is not positive counts as the constant 1e-4: it gets no gradient, the norms do.

    Args:
        first: (2N, H), u, one tower's views, interleaved.
        second: (2N, H), v, the other tower's.
        pooled_first: (2N, P), pu, what the first tower's pooler makes of them.
        pooled_second: (2N, P), pv, the second's.

    Returns:
        Scalar loss, float32 for half-precision input.

    Raises:
        ValueError: shapes differ or are not (2N, H) and (2N, P).

    Source: TNCSE (AAAI 2025), the release's ``LTN_loss``.

    >>> u, v = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    >>> round(norm_constraint(u, v, u, v).item(), 4)     # -log(1/√2) · ‖(1, 0) - (1, 1)‖ / (2(1 + √2))
    0.0718
    """
    check_interleaved(first, second)
    check_interleaved(pooled_first, pooled_second)
    if len(first) != len(pooled_first):
        raise ValueError(f"there must be one pooled row a row, got {len(pooled_first)} for {len(first)}")
    with torch.autocast(first.device.type, enabled=False):
        ours, theirs = full_precision(first)[::2], full_precision(second)[1::2]  # (N, H)
        pooled, others = full_precision(pooled_first)[::2], full_precision(pooled_second)[1::2]  # (N, P)
        cosine = F.cosine_similarity(ours, theirs, dim=-1)  # (N,)
        distance = -cosine.masked_fill(cosine <= 0, OPPOSED_COSINE).log()
        share = (pooled - others).norm(dim=-1) / (2 * (pooled.norm(dim=-1) + others.norm(dim=-1)))
        return (distance * share).mean()
