"""Encoders of BERT's kind over the tokens of a batch alone: nothing is spent on padding, or on states nobody reads.

The rows are sorted by length and laid end to end. Linear layers, norms and dropout run once over all tokens; attention
goes by groups of rows of nearly equal length, each padded to its own longest row. Where only the first token's state is
read (CLS pooling, CACSE), the last layer runs for the first tokens alone, with keys and values of every token.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cacse_trainer.models.bucketing import cheapest_groups
from cacse_trainer.models.fast_paths import ATTENTION, half_once
from cacse_trainer.models.pooling import FIRST_TOKEN_POOLINGS, LAYER_POOLINGS, pool

GROUP_COST = 50
"""What a group of the attention costs besides its tokens, in tokens."""
KINDS = {"bert": False, "roberta": True, "xlm-roberta": True, "camembert": True}
"""Kinds whose modules are run here, and whether their positions count from the padding's id."""


def can_pack(encoder: Any, inputs: Mapping[str, Tensor]) -> bool:
    """Whether `PackedRows` takes these inputs and `packed_states` this encoder: a CPU, padding on the right."""
    config, mask = encoder.config, inputs.get("attention_mask")
    return (
        mask is not None
        and mask.device.type == "cpu"
        and config.model_type in KINDS
        and config._attn_implementation in {"sdpa", ATTENTION}
        and not config.is_decoder
        and not any(getattr(part, "gradient_checkpointing", False) for part in encoder.modules())
        and bool(mask[:, 0].all())
        and bool((mask[:, 1:] <= mask[:, :-1]).all())
    )


class Group(NamedTuple):
    """Packed rows that attend together; ``mask``, (rows, 1, 1, length), is added to the scores; None: equal lengths."""

    rows: int
    length: int
    mask: Tensor | None


class PackedRows:
    """The tokens of padded rows laid end to end, the shortest row first.

    Args:
        inputs: ``input_ids``, ``attention_mask`` and, where given, ``token_type_ids``, (N, L) each.

    Attributes:
        groups: of the attention; T is the sum of their rows · length.
        tokens: (T,), each packed token's place in the flattened (N·L) inputs.
        places: (T,), its place in its row.
        starts: (N,), where each packed row begins, in their order.
        order: (N,), the packed rows' numbers in the inputs.
    """

    def __init__(self, inputs: Mapping[str, Tensor]):
        self.inputs = inputs
        mask = inputs["attention_mask"] != 0
        self.order = torch.argsort(mask.sum(dim=1), stable=True)
        lengths = mask.sum(dim=1)[self.order].clamp(min=1)
        self.groups: list[Group] = []
        tokens, places, starts, row, start = [], [], [], 0, 0
        for size in cheapest_groups(lengths, GROUP_COST):
            rows, longest = self.order[row : row + size], int(lengths[row + size - 1])
            added = None
            if lengths[row] < longest:
                padding = ~mask[rows, :longest]
                added = torch.zeros(padding.shape).masked_fill(padding, torch.finfo(torch.float32).min)[:, None, None]
            self.groups.append(Group(size, longest, added))
            place = torch.arange(longest)
            tokens.append((rows[:, None] * mask.shape[1] + place).flatten())
            places.append(place.repeat(size))
            starts.append(start + torch.arange(size) * longest)
            row, start = row + size, start + size * longest
        self.tokens, self.places, self.starts = torch.cat(tokens), torch.cat(places), torch.cat(starts)

    def ids(self, name: str) -> Tensor:
        """One of the inputs, (N, L) → (1, T)."""
        return self.inputs[name].flatten()[self.tokens][None]

    def in_order(self, vectors: Tensor) -> Tensor:
        """(N, H) of the packed rows → in the order of the inputs."""
        return vectors[torch.argsort(self.order)]

    def unpack(self, states: Tensor) -> Tensor:
        """(T, H) → (N, L, H), 0 at padding that was cut off."""
        rows, length = self.inputs["attention_mask"].shape
        whole = states.new_zeros(rows * length, states.shape[1])
        return whole.index_copy(0, self.tokens, states).unflatten(0, (rows, length))


def first_token_states(encoder: Any, start_layer: int, **inputs: Tensor) -> Tensor:
    """First tokens' states of the layers from ``start_layer`` on (0: the embeddings): (N, L) inputs → (N, K, H)."""
    rows = PackedRows(inputs)
    *states, last = packed_states(encoder, rows, first_only=True)
    firsts = [rows.in_order(part[rows.starts]) for part in states[start_layer:]]
    return torch.stack([*firsts, rows.in_order(last)], dim=1)


def pool_packed(encoder: Any, pooling: str, **inputs: Tensor) -> Tensor:
    """Pooled states: (N, L) inputs → (N, H)."""
    rows = PackedRows(inputs)
    first_only = pooling in FIRST_TOKEN_POOLINGS
    states = packed_states(encoder, rows, first_only)
    if first_only:
        return rows.in_order(states[-1])
    hidden = [rows.unpack(part) for part in (states if pooling in LAYER_POOLINGS else states[-1:])]
    return pool(pooling, hidden[-1], hidden, inputs["attention_mask"])


def packed_states(encoder: Any, rows: PackedRows, first_only: bool) -> list[Tensor]:
    """The embedding output and each layer's, (T, H) each; with ``first_only`` the last is (N, H), of the first tokens.

    The last one is in the packed rows' order as well.
    """
    offset = encoder.config.pad_token_id + 1 if KINDS[encoder.config.model_type] else 0
    given = {"input_ids": rows.ids("input_ids"), "position_ids": (rows.places + offset)[None]}
    if "token_type_ids" in rows.inputs:
        given["token_type_ids"] = rows.ids("token_type_ids")
    else:
        given["token_type_ids"] = torch.zeros_like(given["input_ids"])
    states = [encoder.embeddings(**given)[0]]
    layers = encoder.encoder.layer
    for i, layer in enumerate(layers):
        asking = rows.starts if first_only and i == len(layers) - 1 else None
        states.append(_run_layer(layer, states[-1], rows.groups, asking))
    return states


def _run_layer(layer: Any, states: Tensor, groups: list[Group], asking: Tensor | None) -> Tensor:
    """One encoder layer: (T, H) → (T, H), or (N, H) for the tokens ``asking``, the first of each row."""
    attention = layer.attention.self
    own = states if asking is None else states[asking]
    half = half_once(states)
    query = attention.query(half if asking is None else half_once(own))
    context = _attend(attention, query, attention.key(half), attention.value(half), groups)
    return layer.feed_forward_chunk(layer.attention.output(context, own))


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, groups: list[Group]) -> Tensor:
    """``dropout(softmax(q kᵀ·scaling + mask)) v`` by heads and groups: (T or N, H), (T, H), (T, H) → as ``query``."""
    width = module.attention_head_size
    sizes = [group.rows * group.length for group in groups]
    asked = sizes if len(query) == len(key) else [group.rows for group in groups]
    found = []
    parts = zip(groups, query.split(asked), key.split(sizes), value.split(sizes), strict=True)
    for (rows, _, mask), *projected in parts:
        q, k, v = (part.view(rows, len(part) // rows, -1, width).transpose(1, 2) for part in projected)
        scores = q @ k.transpose(2, 3) * module.scaling  # (rows, heads, l or 1, l)
        if mask is not None:
            scores = scores + mask.to(scores.dtype)
        weights = module.dropout(scores.softmax(dim=-1))
        found.append((weights @ v).transpose(1, 2).flatten(0, 1).flatten(1))  # (rows · (l or 1), H)
    return torch.cat(found)
