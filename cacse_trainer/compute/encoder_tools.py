"""What models made of `AutoModel` encoders need of them, whatever their kind."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from cacse_trainer.compute.distributed import gather_rows, world_size


def loaded_or(module: Any, build: Callable[[], Any]) -> Any:
    """A module whose weights were loaded, kept from being drawn anew by ``post_init``; None: what ``build`` gives."""
    if module is None:
        return build()
    for part in module.modules():
        part._is_hf_initialized = True
    return module


def freeze_pooler(encoder: nn.Module) -> None:
    """Freeze the encoder's own pooler, which never runs: DDP need not search for its gradient."""
    for name, module in encoder.named_children():
        if name == "pooler":
            module.requires_grad_(False)


def known_inputs(encoder: nn.Module, inputs: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The inputs that are given and that this kind of encoder reads (many know no ``token_type_ids``)."""
    known = inspect.signature(encoder.forward).parameters
    return {name: tensor for name, tensor in inputs.items() if tensor is not None and name in known}


def run_encoder(encoder: nn.Module, inputs: Mapping[str, Tensor | None], **more: Any) -> Any:
    """The encoder's output for the inputs that it reads; a decoder keeps no keys and values, there is no next token."""
    if "use_cache" in inspect.signature(encoder.forward).parameters:
        more["use_cache"] = False
    return encoder(**known_inputs(encoder, inputs), **more)


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """Mean over all processes' items, scaled so that the average over the processes has the one-process gradient.

    ``total`` is the scalar sum of this process's items, ``count`` how many they are; no items at all give 0.
    """
    return world_size() * total / gather_rows(count.reshape(1)).sum().clamp(min=1)
