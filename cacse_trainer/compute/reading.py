"""What is read of an encoder's states: without padding where that is to be had (`packing`), else by its own forward."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cacse_trainer.compute.encoder_tools import known_inputs, run_encoder
from cacse_trainer.compute.half import full
from cacse_trainer.compute.packing import can_pack, packed_rows, packed_states
from cacse_trainer.compute.pooling import FIRST_TOKEN_POOLINGS, LAYER_POOLINGS, pool


def layer_vectors(encoder: Any, start_layer: int, pooling: str, **inputs: Tensor) -> Tensor:
    """Pooled states of each layer from ``start_layer`` on (0: the embeddings): (N, L) inputs → (N, K, H)."""
    rows = packed_rows(inputs, encoder.config.num_attention_heads)
    first_only = pooling in FIRST_TOKEN_POOLINGS
    *states, last = packed_states(encoder, rows, first_only)
    if first_only:
        first = [*(part[rows.starts] for part in states[start_layer:]), last]
        vectors = [full(rows.in_order(part)) for part in first]
    else:
        hidden = [rows.unpack(full(part)) for part in (*states[start_layer:], last)]
        vectors = [pool(pooling, part, attention_mask=inputs["attention_mask"]) for part in hidden]
    return torch.stack(vectors, dim=1)


def pool_packed(encoder: Any, pooling: str, **inputs: Tensor) -> Tensor:
    """Pooled states: (N, L) inputs → (N, H)."""
    rows = packed_rows(inputs, encoder.config.num_attention_heads)
    first_only = pooling in FIRST_TOKEN_POOLINGS
    states = packed_states(encoder, rows, first_only)
    if first_only:
        return full(rows.in_order(states[-1]))
    hidden = [rows.unpack(full(part)) for part in (states if pooling in LAYER_POOLINGS else states[-1:])]
    return pool(pooling, hidden[-1], hidden, inputs["attention_mask"])


def pool_padded(encoder: Any, pooling: str, inputs: Mapping[str, Tensor], **asked: Any) -> tuple[Any, Tensor]:
    """By the encoder's own forward, asked with these flags: (N, L) inputs → its output, and pooled states (N, H)."""
    more = {"output_hidden_states": True} if pooling in LAYER_POOLINGS else {}
    output = run_encoder(encoder, inputs, **{**asked, **more})
    layers = output.hidden_states if more else None
    return output, pool(pooling, output.last_hidden_state, layers, inputs.get("attention_mask"))


def sentence_vectors(encoder: Any, pooling: str, inputs: Mapping[str, Tensor | None]) -> Tensor:
    """Pooled states: (N, L) inputs → (N, H), without padding where `can_pack`, else by the encoder's own forward."""
    known = known_inputs(encoder, inputs)
    if can_pack(encoder, known):
        return pool_packed(encoder, pooling, **known)
    return pool_padded(encoder, pooling, known)[1]


def packed_tokens(
    encoder: Any, read: Callable[[Tensor], Tensor], first: Tensor | None = None, **inputs: Tensor
) -> Tensor:
    """``read`` of the last states, (T, H) → (T, W) token by token: (N, L) inputs → (N, L, W), 0 at padding.

    Args:
        encoder: that `can_pack` the inputs.
        read: a head, blind to which token stands where.
        first: vectors (N, H) in place of the first tokens' embeddings.
        inputs: of the rows.
    """
    rows = packed_rows(inputs, encoder.config.num_attention_heads)
    return rows.unpack(read(packed_states(encoder, rows, first_only=False, first=first)[-1]))
