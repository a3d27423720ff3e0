"""Reading the last layers of a checkpoint without loading the rest of it."""

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from cacse_trainer.models.pretrained import load_weights


class _LastLayers(PreTrainedModel):
    """Only the encoder layers that the cascade uses; every other tensor of the checkpoint stays on disk."""

    config_class = PretrainedConfig
    _supports_sdpa = True
    _supports_flash_attn = True
    _keys_to_ignore_on_load_unexpected = [".*"]  # noqa: RUF012 - transformers' convention

    def __init__(self, config: PretrainedConfig, layer_class: type[nn.Module], count: int):
        super().__init__(config)
        self.layers: Any = nn.ModuleList(layer_class(config, layer_idx=i) for i in range(count))
        self.post_init()


def load_constraint_layers(
    path: str, config: PretrainedConfig, count: int, layer_class: type[nn.Module], dtype: torch.dtype = torch.float32
) -> nn.ModuleList:
    """The last ``count`` encoder layers of the checkpoint at ``path``.

    Raises:
        ValueError: the checkpoint lacks one of their weights.
        OSError: the folder or hub id cannot be read.
    """
    if count == 0:
        return nn.ModuleList()
    first = config.num_hidden_layers - count
    renamed = {rf"^(.*\.)?encoder\.layer\.{first + i}\.": f"layers.{i}." for i in range(count)}
    model, _ = load_weights(_LastLayers, path, layer_class, count, config=config, dtype=dtype, key_mapping=renamed)
    return model.layers
