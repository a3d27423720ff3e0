"""BeLLM: the upper layers of a decoder see both directions.

Layer i (from 0) of a causal model attends to every token of its row if i ≥ start; padding stays masked, so a row's
vectors do not depend on its batch (the release lets such layers attend to padding). Nothing of transformers is
replaced: a hook on each of these layers turns the causal mask that it is given into one without a direction, and its
attention is told that it is not causal, for the kernels that make the mask themselves.

Source: Li and Li 2024 (arXiv 2311.05296), and the BiLLM release.
"""

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cacse_trainer.compute.fast_paths import ATTENTION as TRAINING_ATTENTION

logger = logging.getLogger(__name__)

VARIABLE = "BiLLM_START_INDEX"
"""By which BiLLM is told the start layer."""
KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3")
"""Kinds of decoder whose layers take the mask as ``attention_mask`` and ask ``is_causal`` of their attention."""
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")


def make_bidirectional(encoder: PreTrainedModel, start_layer: int) -> None:
    """Let the decoder's layers from ``start_layer`` on see both directions.

    Args:
        encoder: a decoder without its language model head, as `AutoModel` loads it.
        start_layer: 0 makes all layers bidirectional, the number of layers none.

    Raises:
        ValueError: another kind of model, an attention that keeps its own masks, or no such layer.
    """
    kind, attention = encoder.config.model_type, encoder.config._attn_implementation
    if kind not in KINDS:
        raise ValueError(f"bidirectional_start_layer: {kind} is no decoder known to it; choose {', '.join(KINDS)}")
    if attention not in (*ATTENTIONS, TRAINING_ATTENTION):
        raise ValueError(
            f"bidirectional_start_layer: the attention {attention} keeps masks that cannot be changed a layer; "
            f"choose attn_implementation of {', '.join(ATTENTIONS)}"
        )
    layers: Any = encoder.layers
    if not 0 <= start_layer <= len(layers):
        raise ValueError(
            f"bidirectional_start_layer must be within 0 and {len(layers)}, the number of layers, got {start_layer}"
        )
    for layer in layers[start_layer:]:
        for module in layer.modules():
            if "is_causal" in vars(module):
                module.is_causal = False  # type: ignore[assignment]
        if _see_both_directions not in layer._forward_pre_hooks.values():  # a copied layer has it already
            layer.register_forward_pre_hook(_see_both_directions, with_kwargs=True)


def tell_of_environment(name: str, model_type: str, start_layer: int | None) -> None:
    """Say of a decoder without such layers that BiLLM's variable, which would have made them, is not read."""
    if start_layer is None and model_type in KINDS and VARIABLE in os.environ:
        logger.warning(
            "model %s: %s=%s in the environment is not read; give bidirectional_start_layer %s",
            *(name, VARIABLE, os.environ[VARIABLE], os.environ[VARIABLE]),
        )


def _see_both_directions(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    return given, {**named, "attention_mask": without_direction(named["attention_mask"])}


def without_direction(mask: Tensor | None) -> Tensor | None:
    """A causal mask (B, 1, L, L) → (B, 1, L, L): every query sees each key that any query sees, all but padding.

    The mask is of booleans (sdpa), or of numbers to add, 0 or very negative (eager). None, for rows without padding,
    and the (B, L) mask of flash attention hold no direction and stay as they are. A sliding window is opened (with
    flash attention it stays, on both sides; rows shorter than the window do not see it).
    """
    if mask is None or mask.dim() == 2:
        return mask
    if mask.dtype == torch.bool:
        return mask.any(dim=-2, keepdim=True).expand_as(mask)
    return mask.amax(dim=-2, keepdim=True).expand_as(mask)
