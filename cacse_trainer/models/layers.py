"""The layers of an encoder, by its kind: where they are, how one is made, and how one is run by itself.

A layer that runs by itself sees vectors without an order, such as a batch of sentence vectors: each stands at position
0, so rotations are by 0, and biases for the distance between two tokens are left out.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LayerKind:
    """What is to be known of a kind of encoder.

    Args:
        name: of the layer's class.
        place: of the list of layers in the encoder.
        numbered: whether a layer is made with its number.
        turned: whether it turns queries and keys by their positions.
        biased: whether its attention adds what it knows of distances, and asks for a mask.
    """

    name: str
    place: str = "encoder.layer"
    numbered: bool = True
    turned: bool = False
    biased: bool = False


KINDS = {
    "bert": LayerKind("BertLayer"),
    "roberta": LayerKind("RobertaLayer"),
    "xlm-roberta": LayerKind("XLMRobertaLayer"),
    "camembert": LayerKind("CamembertLayer"),
    "electra": LayerKind("ElectraLayer"),
    "mpnet": LayerKind("MPNetLayer", numbered=False),
    "distilbert": LayerKind("TransformerBlock", "transformer.layer", numbered=False),
    "deberta-v2": LayerKind("DebertaV2Layer", numbered=False, biased=True),  # DeBERTa-v3 is of this kind
    "modernbert": LayerKind("ModernBertEncoderLayer", "layers", turned=True),
    "eurobert": LayerKind("EuroBertDecoderLayer", "layers", turned=True),
}
"""By ``model_type``."""


def kind_of(config: Any) -> LayerKind:
    """The kind of an encoder's layers.

    Raises:
        ValueError: nothing is known of it.
    """
    if config.model_type not in KINDS:
        raise ValueError(
            f"the layers of a {config.model_type} are not known here; choose an encoder of the kinds {', '.join(KINDS)}"
        )
    return KINDS[config.model_type]


def layers_in(encoder: Any) -> nn.ModuleList:
    """An encoder's layers, the lowest first."""
    found: Any = encoder.get_submodule(kind_of(encoder.config).place)
    return found


def last_layers(encoder: Any, count: int) -> nn.ModuleList:
    """An encoder's last layers, to be run by `run_alone`."""
    layers = list(layers_in(encoder))
    return _by_themselves(layers[len(layers) - count :], kind_of(encoder.config))


def fresh_layers(config: Any, count: int) -> nn.ModuleList:
    """As `last_layers` of an encoder of this config, with weights of their own."""
    kind = kind_of(config)
    module = config.model_type.replace("-", "_")
    made = getattr(import_module(f"transformers.models.{module}.modeling_{module}"), kind.name)
    numbers = range(config.num_hidden_layers - count, config.num_hidden_layers)
    return _by_themselves([made(config, number) if kind.numbered else made(config) for number in numbers], kind)


def _by_themselves(layers: list[Any], kind: LayerKind) -> nn.ModuleList:
    if kind.biased:
        for layer in layers:
            layer.attention.self.relative_attention = False
    return nn.ModuleList(layers)


def run_alone(layers: nn.ModuleList, config: Any, hidden: Tensor) -> Tensor:
    """Vectors (N, L, H) through layers one after the other, without an order among the L.

    Args:
        layers: of `last_layers` or `fresh_layers`.
        config: the encoder's.
        hidden: what the first layer is given.
    """
    kind = kind_of(config)
    more: dict[str, Any] = {}
    if kind.turned:
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        angle = hidden.new_zeros(1, hidden.shape[1], width)
        more["position_embeddings"] = angle.cos(), angle.sin()
    if kind.biased:
        more["attention_mask"] = torch.ones(1, 1, *[hidden.shape[1]] * 2, dtype=torch.bool, device=hidden.device)
    for layer in layers:
        output = layer(hidden, **more)
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden
