"""Small networks on top of an encoder: projections of the sentence vector, and heads over tokens."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN

from cacse_trainer.models.pretrained import build_encoder


class TanhProjection(nn.Module):
    """``tanh(W h + b)``: SimCSE's MLP, of the form of BERT's pooler. (…, H) → (…, H)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, vectors: Tensor) -> Tensor:
        return torch.tanh(self.dense(vectors))


class BatchNormProjection(nn.Module):
    """Linear(H→2H) BN ReLU Linear(2H→H) BN(not affine): DiffCSE's MLP. (…, H) → (…, H).

    The statistics are those of all rows given, whatever the leading dimensions: with several processes the caller
    gathers the rows first, so that they are the global batch's. Linears without bias.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.expand = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.norm = nn.BatchNorm1d(2 * hidden_size)
        self.contract = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.output_norm = nn.BatchNorm1d(hidden_size, affine=False)

    def forward(self, vectors: Tensor) -> Tensor:
        rows = vectors.reshape(-1, vectors.shape[-1])  # (R, H)
        rows = torch.relu(self.norm(self.expand(rows)))  # (R, 2H)
        return self.output_norm(self.contract(rows)).view(vectors.shape)


PROJECTIONS: dict[str, type[nn.Module]] = {"tanh": TanhProjection, "batch_norm": BatchNormProjection}
"""Every projection by name."""


class FreshLinear(nn.Linear):
    """(…, n) → (…, m), drawn as torch draws a linear layer: ``post_init`` would draw N(0, 0.02).

    Args:
        in_features: n.
        out_features: m.
        weight_bound: weights are U(±weight_bound); default 1/√n.
        bias_bound: biases are U(±bias_bound); default 1/√n.
    """

    def __init__(
        self, in_features: int, out_features: int, weight_bound: float | None = None, bias_bound: float | None = None
    ):
        default = 1 / math.sqrt(in_features)
        self.weight_bound = default if weight_bound is None else weight_bound
        self.bias_bound = default if bias_bound is None else bias_bound
        super().__init__(in_features, out_features)

    def draw(self) -> None:
        """Draw weights and biases anew, unless they were loaded."""
        init.uniform_(self.weight, -self.weight_bound, self.weight_bound)
        init.uniform_(self.bias, -self.bias_bound, self.bias_bound)


ACTIVATIONS = {
    **{"bert": "hidden_act", "distilbert": "activation"},
    **{"deberta-v2": "hidden_act", "modernbert": "classifier_activation"},
}
"""What kinds call the activation of their masked language model's head; the others' is GELU."""


class MaskedLmHead(nn.Module):
    """Dense, activation, norm, decoder: what masked language models have above the encoder. (…, H) → (…, vocabulary).

    The decoder is a copy, trained apart from the word embeddings, as in the SimCSE release.

    Args:
        model: a masked language model whose head is copied.

    Raises:
        ValueError: the head is not made of these parts.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        backbone = set(model.base_model.modules())
        parts = [module for module in model.modules() if module not in backbone and not list(module.children())]
        linears = [module for module in parts if isinstance(module, nn.Linear)]
        decoders = [module for module in linears if module.out_features == model.config.vocab_size]
        denses = [module for module in linears if module not in decoders and module.out_features == module.in_features]
        norms = [module for module in parts if isinstance(module, nn.LayerNorm)]
        if not len(decoders) == len(denses) == len(norms) == 1:
            raise ValueError(
                f"the head of {type(model).__name__} is not dense, activation, norm, decoder: the masked language "
                "model objective knows the heads of BERT, RoBERTa and their kin"
            )
        self.dense, self.norm, self.decoder = copy.deepcopy((denses[0], norms[0], decoders[0]))
        name = ACTIVATIONS.get(model.config.model_type)
        self.activation = ACT2FN[getattr(model.config, name) if name is not None else "gelu"]

    def forward(self, states: Tensor) -> Tensor:
        return self.decoder(self.norm(self.activation(self.dense(states))))


def empty_masked_lm_head(config: PretrainedConfig) -> MaskedLmHead:
    """A head of the right shape for an encoder's config, its weights still to be drawn or loaded."""
    device: Any = torch.get_default_device()  # the meta device while from_pretrained builds the model
    with torch.device("meta"):
        head = MaskedLmHead(build_encoder(config, AutoModelForMaskedLM))
    return head.to_empty(device=device)
