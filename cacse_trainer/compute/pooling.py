"""Token states to one vector a sentence: pure functions, shared by training, evaluation and the encoder.

Every pooling takes states (N, L, H) and ``attention_mask`` (N, L), and returns (N, H). Tokens are found by the mask,
so padding may stand on either side. A row without tokens gives 0 in each of them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def first_token(attention_mask: Tensor) -> Tensor:
    """(N, L) → (N,), the position of each row's first token."""
    return (attention_mask != 0).int().argmax(dim=1)


def last_token(attention_mask: Tensor) -> Tensor:
    """(N, L) → (N,), the position of each row's last token."""
    return attention_mask.shape[1] - 1 - (attention_mask != 0).int().flip(1).argmax(dim=1)


def pool_mean(states: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean over the tokens of each row."""
    weights = (attention_mask != 0).unsqueeze(-1).to(states.dtype)  # (N, L, 1)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def pool_cls(states: Tensor, attention_mask: Tensor) -> Tensor:
    """The state at the first token."""
    return states[torch.arange(states.shape[0], device=states.device), first_token(attention_mask)]


def pool_last_token(states: Tensor, attention_mask: Tensor) -> Tensor:
    """The state at the last token."""
    return states[torch.arange(states.shape[0], device=states.device), last_token(attention_mask)]


def pool_weighted_mean(states: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean of the states weighted by their place: ``Σ_i i·h_i / Σ_i i`` over a row's tokens, from 1.

    Source: Muennighoff 2022 (arXiv 2202.08904), for decoders, whose later tokens have seen more.
    """
    tokens = (attention_mask != 0).long()
    weights = (tokens.cumsum(dim=1) * tokens).unsqueeze(-1).to(states.dtype)  # (N, L, 1)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def pool_max(states: Tensor, attention_mask: Tensor) -> Tensor:
    """The largest of the states over the tokens, in each dimension."""
    padding = (attention_mask == 0).unsqueeze(-1)  # (N, L, 1)
    return states.masked_fill(padding, torch.finfo(states.dtype).min).amax(dim=1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": pool_cls,
    "cls_before_pooler": pool_cls,  # SimCSE's name of the raw CLS state; its `cls` has a head on top
    "mean": pool_mean,
    "avg": pool_mean,
    "avg_top2": pool_mean,
    "avg_first_last": pool_mean,
    "avg_embeddings_last": pool_mean,  # what DiffCSE's code calls avg_first_last
    "max": pool_max,
    "last_token": pool_last_token,
    "weighted_mean": pool_weighted_mean,
}
"""Every pooling by name."""

FIRST_TOKEN_POOLINGS = frozenset({"cls", "cls_before_pooler"})
"""Those that read the last layer's state at the first token, and nothing else."""

LAYER_POOLINGS = {"avg_top2": -2, "avg_first_last": 1, "avg_embeddings_last": 0}
"""Those of the mean of two layers, the last and this one of ``hidden_states``."""


def check_pooling(name: str) -> None:
    """Refuse an unknown pooling, naming the known ones."""
    if name not in POOLINGS:
        raise ValueError(f"pooling {name!r} is unknown; choose one of {', '.join(POOLINGS)}")


def pool(
    name: str,
    last_hidden_state: Tensor,
    hidden_states: Sequence[Tensor] | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Pool by name: (N, L, H) → (N, H).

    Args:
        name: one of `POOLINGS`.
        last_hidden_state: (N, L, H).
        hidden_states: the embedding output and each layer's, K + 1 tensors of (N, L, H), for `LAYER_POOLINGS`.
        attention_mask: (N, L); None: there is no padding.

    Raises:
        ValueError: the pooling is unknown, or needs hidden states that are not given.

    >>> states = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [9.0, 9.0]]])
    >>> pool("mean", states, attention_mask=torch.tensor([[1, 1, 0]]))
    tensor([[2., 2.]])
    """
    check_pooling(name)
    if attention_mask is None:
        attention_mask = last_hidden_state.new_ones(last_hidden_state.shape[:2])
    if name in LAYER_POOLINGS:
        if hidden_states is None:
            raise ValueError("this pooling averages two layers: run the encoder with output_hidden_states=True")
        last_hidden_state = (hidden_states[LAYER_POOLINGS[name]] + last_hidden_state) / 2
    empty = ~(attention_mask != 0).any(dim=1, keepdim=True)  # (N, 1)
    return POOLINGS[name](last_hidden_state, attention_mask).masked_fill(empty, 0.0)
