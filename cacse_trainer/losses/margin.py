"""MarginMSE: the student's margin between a positive and a negative is to be the teacher's (Hofstätter et al. 2020)."""

import torch
from torch import Tensor

from cacse_trainer.losses.contrastive import full_precision


def margin_mse_loss(anchor: Tensor, positive: Tensor, negatives: Tensor, teacher_margins: Tensor) -> Tensor:
    """Mean over rows and negatives of ((a·p − a·n) − m)², by dot products of the vectors as they are.

    Args:
        anchor, positive: (N, H).
        negatives: (N, K, H), or (N, H) for one a row.
        teacher_margins: (N, K), or (N,) for one a row: the teacher's score of the positive less that of the negative,
            such as a cross-encoder's logits.

    Returns:
        A scalar, float32 for half precision.

    Raises:
        ValueError: another number of margins than of negatives.
    """
    negatives = negatives.unsqueeze(1) if negatives.dim() == 2 else negatives
    margins = teacher_margins.unsqueeze(1) if teacher_margins.dim() == 1 else teacher_margins
    if margins.shape != negatives.shape[:2]:
        raise ValueError(f"margins {tuple(margins.shape)} for negatives {tuple(negatives.shape[:2])}")
    with torch.autocast(anchor.device.type, enabled=False):
        anchor, positive, negatives = (full_precision(rows) for rows in (anchor, positive, negatives))
        own = (anchor * positive).sum(-1, keepdim=True) - (anchor.unsqueeze(1) * negatives).sum(-1)  # (N, K)
        return (own - margins).square().mean()
