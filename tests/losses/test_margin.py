"""MarginMSE by hand."""

import pytest
import torch

from cacse_trainer.losses import margin_mse_loss


def test_by_hand():
    draw = torch.Generator().manual_seed(0)
    anchor, positive = torch.randn(2, 3, 4, generator=draw, dtype=torch.float64)
    negatives = torch.randn(3, 2, 4, generator=draw, dtype=torch.float64)
    margins = torch.randn(3, 2, generator=draw, dtype=torch.float64)
    total = 0.0
    for i in range(3):
        for k in range(2):
            own = torch.dot(anchor[i], positive[i]) - torch.dot(anchor[i], negatives[i, k])
            total += float((own - margins[i, k]) ** 2)
    assert float(margin_mse_loss(anchor, positive, negatives, margins)) == pytest.approx(total / 6, rel=1e-12)
    one = margin_mse_loss(anchor, positive, negatives[:, 0], margins[:, 0])
    assert float(one) == float(margin_mse_loss(anchor, positive, negatives[:, :1], margins[:, :1]))


def test_a_margin_for_every_negative():
    with pytest.raises(ValueError, match="margins"):
        margin_mse_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 4, 3), torch.zeros(2, 3))
