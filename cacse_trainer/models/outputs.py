"""What the models return: a ModelOutput with the losses in training, with the sentence embedding otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

Layers = dict[str, Any]
"""``hidden_states`` and ``attentions``, as far as they are asked for; None stands for a layer that is not."""


@dataclass
class EmbeddingOutput(ModelOutput):
    """Output of the models of this package.

    Args:
        loss: scalar, for (B, V, L) inputs.
        losses: its named parts before weighting, detached, for logging.
        last_hidden_state: (N, L, H), for (N, L) inputs.
        sentence_embedding: (N, H), for (N, L) inputs.
        embeddings: (B, V, H), the vectors that the loss compares, for (B, V, L) inputs.
        hidden_states: the embedding output and each layer's, (N, L, H) or (B, V, L, H) each, where they are asked for.
        attentions: each layer's weights, (N, heads, L, L) or (B, V, heads, L, L), likewise.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    last_hidden_state: Tensor | None = None
    sentence_embedding: Tensor | None = None
    embeddings: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class TwoTowersOutput(EmbeddingOutput):
    """Output of the models of two towers, whose token states, at each layer, and sentence embedding are h_A + h_B.

    The heads of ``attentions`` are tower A's and behind them tower B's.

    Args:
        tower_a_embeddings: (B, 2, H), tower A's pooled states of both views.
        tower_b_embeddings: (B, 2, H), tower B's.
    """

    tower_a_embeddings: Tensor | None = None
    tower_b_embeddings: Tensor | None = None


@dataclass
class CacseOutput(TwoTowersOutput):
    """Output of the CACSE models: the loss is ``L_A + L_B + λ·L_C``, of `losses` ``tower_a``, ``tower_b``, ``cascade``.

    Args:
        cascade_embeddings: (B, 2, H), the cascade's of both views.
    """

    cascade_embeddings: Tensor | None = None


def layers_of(output: Any, asked: Mapping[str, Any], batch: int | None = None) -> Layers:
    """What an encoder's output shows of its layers.

    Args:
        output: the encoder's.
        asked: the flags that it was asked with, ``output_hidden_states`` and ``output_attentions``.
        batch: B, where the rows are the views of so many sentences; None: they are sentences.
    """
    found = {name: output[name] for name in ("hidden_states", "attentions") if f"output_{name}" in asked}
    if batch is None:
        return found
    return {
        name: tuple(None if layer is None else layer.unflatten(0, (batch, -1)) for layer in layers)
        for name, layers in found.items()
    }


def joined(parts: Sequence[Layers], weights: Sequence[float] | None = None) -> Layers:
    """The layers of several encoders as those of one: the weighted sums of their states, their heads side by side.

    The encoders are of one depth and read the same tokens. Default: the plain sums.
    """
    found: Layers = {}
    factors = [1.0] * len(parts) if weights is None else weights
    for name in parts[0]:
        layers: Any = zip(*(part[name] for part in parts), strict=True)
        if name == "attentions":
            found[name] = tuple(torch.cat(layer, dim=-3) for layer in layers)
        else:
            found[name] = tuple(None if layer[0] is None else _sum(layer, factors) for layer in layers)
    return found


def _sum(states: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total: Any = 0
    for part, weight in zip(states, weights, strict=True):
        total = total + weight * part
    return total
