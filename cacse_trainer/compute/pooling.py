"""Token states to one vector a sentence: pure functions, shared by training, evaluation and the encoder.

Every function takes ``last_hidden_state`` (N, L, H), ``hidden_states`` (the embedding output and each layer's, K + 1
tensors of (N, L, H), or None) and ``attention_mask`` (N, L) or None for "no padding", and returns (N, H). Tokens are
found by the mask, so padding may stand on either side.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

HiddenStates = Sequence[Tensor] | None
Pooling = Callable[[Tensor, HiddenStates, Tensor | None], Tensor]


def first_token(attention_mask: Tensor) -> Tensor:
    """(N, L) → (N,), the position of each row's first token."""
    return (attention_mask != 0).int().argmax(dim=1)


def last_token(attention_mask: Tensor) -> Tensor:
    """(N, L) → (N,), the position of each row's last token."""
    return attention_mask.shape[1] - 1 - (attention_mask != 0).int().flip(1).argmax(dim=1)


def masked_mean(states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Mean over the tokens of each row: (N, L, H) → (N, H). A row without tokens gives 0."""
    if attention_mask is None:
        return states.mean(dim=1)
    weights = (attention_mask != 0).unsqueeze(-1).to(states.dtype)  # (N, L, 1)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def pool_cls(last_hidden_state: Tensor, hidden_states: HiddenStates, attention_mask: Tensor | None) -> Tensor:
    """The last layer's state at the first token."""
    if attention_mask is None:
        return last_hidden_state[:, 0]
    rows = torch.arange(len(last_hidden_state), device=last_hidden_state.device)
    return last_hidden_state[rows, first_token(attention_mask)]


def pool_last_token(last_hidden_state: Tensor, hidden_states: HiddenStates, attention_mask: Tensor | None) -> Tensor:
    """The last layer's state at the last token."""
    if attention_mask is None:
        return last_hidden_state[:, -1]
    rows = torch.arange(len(last_hidden_state), device=last_hidden_state.device)
    return last_hidden_state[rows, last_token(attention_mask)]


def pool_avg(last_hidden_state: Tensor, hidden_states: HiddenStates, attention_mask: Tensor | None) -> Tensor:
    """The mean of the last layer's states over the tokens."""
    return masked_mean(last_hidden_state, attention_mask)


def pool_weighted_mean(last_hidden_state: Tensor, hidden_states: HiddenStates, attention_mask: Tensor | None) -> Tensor:
    """The mean of the last layer's states weighted by their place: ``Σ_i i·h_i / Σ_i i`` over a row's tokens, from 1.

    Source: Muennighoff 2022 (arXiv 2202.08904), for decoders, whose later tokens have seen more.
    """
    if attention_mask is None:
        attention_mask = torch.ones(last_hidden_state.shape[:2], device=last_hidden_state.device)
    tokens = (attention_mask != 0).long()
    weights = (tokens.cumsum(dim=1) * tokens).unsqueeze(-1).to(last_hidden_state.dtype)  # (N, L, 1)
    return (last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def pool_max(last_hidden_state: Tensor, hidden_states: HiddenStates, attention_mask: Tensor | None) -> Tensor:
    """The largest of the last layer's states over the tokens, in each dimension."""
    if attention_mask is not None:
        padding = (attention_mask == 0).unsqueeze(-1)  # (N, L, 1)
        last_hidden_state = last_hidden_state.masked_fill(padding, torch.finfo(last_hidden_state.dtype).min)
    return last_hidden_state.amax(dim=1)


def _mean_with_layer(layer: int) -> Pooling:
    def pool(last_hidden_state: Tensor, hidden_states: HiddenStates, attention_mask: Tensor | None) -> Tensor:
        if hidden_states is None:
            raise ValueError("this pooling averages two layers: run the encoder with output_hidden_states=True")
        return masked_mean((hidden_states[layer] + last_hidden_state) / 2, attention_mask)

    pool.__doc__ = f"The mean over the tokens of the last layer and hidden_states[{layer}]."
    return pool


POOLINGS: dict[str, Pooling] = {
    "cls": pool_cls,
    "cls_before_pooler": pool_cls,  # SimCSE's name of the raw CLS state; its `cls` has a head on top
    "mean": pool_avg,
    "avg": pool_avg,
    "avg_top2": _mean_with_layer(-2),
    "avg_first_last": _mean_with_layer(1),
    "avg_embeddings_last": _mean_with_layer(0),  # what DiffCSE's code calls avg_first_last
    "max": pool_max,
    "last_token": pool_last_token,
    "weighted_mean": pool_weighted_mean,
}
"""Every pooling by name."""

FIRST_TOKEN_POOLINGS = frozenset({"cls", "cls_before_pooler"})
"""Those that read the last layer's state at the first token, and nothing else."""

LAYER_POOLINGS = frozenset({"avg_top2", "avg_first_last", "avg_embeddings_last"})
"""Those that read ``hidden_states``: the encoder must be run with ``output_hidden_states=True``."""


def check_pooling(name: str) -> None:
    """Refuse an unknown pooling, naming the known ones."""
    if name not in POOLINGS:
        raise ValueError(f"pooling {name!r} is unknown; choose one of {', '.join(POOLINGS)}")


def pool(
    name: str, last_hidden_state: Tensor, hidden_states: HiddenStates = None, attention_mask: Tensor | None = None
) -> Tensor:
    """Pool by name: (N, L, H) → (N, H).

    Raises:
        ValueError: the pooling is unknown, or needs hidden states that are not given.

    >>> states = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [9.0, 9.0]]])
    >>> pool("mean", states, attention_mask=torch.tensor([[1, 1, 0]]))
    tensor([[2., 2.]])
    """
    check_pooling(name)
    return POOLINGS[name](last_hidden_state, hidden_states, attention_mask)
