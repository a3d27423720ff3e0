"""Attention over rows laid end to end, a softmax a row: what a GPU's kernel is to compute, on any device."""

import torch
from torch import Tensor

from cacse_trainer.compute.varlen import Bounds, Kernel


def attention_by_row(
    query: Tensor, key: Tensor, value: Tensor, asked: Bounds, given: Bounds, dropout: float, scaling: float
) -> Tensor:
    """See `Kernel`."""
    lengths = (asked.at.diff().tolist(), given.at.diff().tolist())
    assert all(max(each) <= bounds.longest for each, bounds in zip(lengths, (asked, given), strict=True))
    parts = zip(query.split(lengths[0]), key.split(lengths[1]), value.split(lengths[1]), strict=True)
    found = []
    for q, k, v in parts:
        weights = (torch.einsum("qhd,khd->hqk", q, k) * scaling).softmax(dim=-1)
        found.append(torch.einsum("hqk,khd->qhd", torch.nn.functional.dropout(weights, dropout), v))
    return torch.cat(found)


def for_half(query: Tensor, dropout: float) -> Kernel | None:
    """In the place of `varlen.kernel_for`: in half precision, with dropout or without it."""
    return attention_by_row if query.dtype in (torch.bfloat16, torch.float16) else None
