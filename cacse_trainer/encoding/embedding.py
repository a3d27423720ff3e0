"""From a loaded model and the name of a pooling to the function of input tensors that gives its sentence vectors."""

import logging
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from cacse_trainer.compute.encoder_tools import known_inputs
from cacse_trainer.compute.packing import sentence_vectors
from cacse_trainer.compute.pooling import LAYER_POOLINGS, pool
from cacse_trainer.encoding.embedder import Embed
from cacse_trainer.encoding.stated_modules import Modules
from cacse_trainer.errors import UserError
from cacse_trainer.models.modeling_cacse import CacseModel
from cacse_trainer.models.modeling_ensemble import EnsembleModel
from cacse_trainer.models.modeling_sentence_embedding import SentenceEmbeddingModel

logger = logging.getLogger(__name__)

CLS_WITH_MLP = "cls_with_mlp"
"""The first token's state through the model's own head, dense and tanh; SimCSE's pooler ``cls``."""

CHOICES = ("cls", CLS_WITH_MLP, "mean", "weighted_mean", "last_token", "avg_top2", "avg_first_last", "max")
"""The poolings that are offered; the other names of `POOLINGS` are taken too."""


def embed_function(
    name: str, model: Any, pooling: str, dense: list[nn.Module], missing: set[str], *, is_stated: bool
) -> Embed:
    """The function of input tensors for a pooling.

    Raises:
        UserError: the model has no head, or no layers to average.
    """
    ours = isinstance(model, (CacseModel, EnsembleModel, SentenceEmbeddingModel))
    if ours and not is_stated:
        return lambda **inputs: model.embed(**known_inputs(model, inputs))
    if pooling == CLS_WITH_MLP:
        return _with_head(name, model, dense, missing)
    core = model.encoder if isinstance(model, SentenceEmbeddingModel) else model
    if isinstance(core, (CacseModel, EnsembleModel)) and pooling in LAYER_POOLINGS:
        raise UserError(
            f"model {name}: pooling {pooling} averages layers, and a sum of towers has none; use cls or mean"
        )
    layers = nn.ModuleList(dense).to(model.device)

    def embed(**inputs: Tensor) -> Tensor:
        vectors = sentence_vectors(core, pooling, inputs)  # (N, H)
        for layer in layers:
            vectors = layer(vectors)
        return vectors

    return embed


def _with_head(name: str, model: PreTrainedModel, dense: list[nn.Module], missing: set[str]) -> Embed:
    if isinstance(model, SentenceEmbeddingModel):
        if not model.config.has_projection:
            raise UserError(f"model {name} has no head: it was trained with pooling {model.config.pooling}")
        encoder, head = model.encoder, model.projection_head
        return lambda **inputs: head(encoder(**known_inputs(encoder, inputs)).last_hidden_state[:, 0])
    if dense:
        head = nn.Sequential(*dense).to(model.device)
        return lambda **inputs: head(
            pool("cls", model(**known_inputs(model, inputs)).last_hidden_state, None, inputs.get("attention_mask"))
        )
    has_pooler = any(part == "pooler" and module is not None for part, module in model.named_children())
    if not has_pooler or any(key.startswith("pooler.") for key in missing):
        raise UserError(f"model {name}: pooling {CLS_WITH_MLP} needs a trained pooler, and it has none; use cls")
    return lambda **inputs: model(**known_inputs(model, inputs)).pooler_output


def stated_by_model(model: PreTrainedModel) -> str | None:
    """The pooling that one of our own model classes has; None for any other."""
    if isinstance(model, SentenceEmbeddingModel):
        if model.config.has_projection:
            return CLS_WITH_MLP if model.config.projects_at_inference else "cls"
        return {"cls_before_pooler": "cls", "avg": "mean"}.get(model.config.pooling, model.config.pooling)
    if isinstance(model, EnsembleModel):
        return " + ".join(dict.fromkeys(model.config.poolings))
    return "cls" if isinstance(model, CacseModel) else None


def guess_pooling(name: str, config: Any) -> str:
    """Nothing is stated: the last token of a decoder, else the mean, as sentence-transformers does. Logged."""
    decoder = any(str(kind).endswith("ForCausalLM") for kind in config.architectures or [])
    guess = "last_token" if decoder else "mean"
    logger.warning(
        "model %s states no pooling: GUESSED %s (state another with pooling, --pooling: %s)",
        name,
        guess,
        ", ".join(CHOICES),
    )
    return guess


def describe_pooling(model: PreTrainedModel, pooling: str, stated: Modules) -> str:
    """The pooling's name, with what the folder puts above it."""
    if pooling == "cls" and stated.dense:
        return CLS_WITH_MLP
    return f"{pooling} + dense" if stated.dense and pooling != CLS_WITH_MLP else pooling
