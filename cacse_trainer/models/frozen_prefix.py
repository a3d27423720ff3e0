"""Dev sentences through the frozen layers once: they do not change, and neither do those layers.

With ``freeze_embeddings`` a CACSE tower is frozen up to layer k0, more than half of it with the paper's settings. What
leaves layer k0 for a batch of dev sentences is kept from the first evaluation on, and the later ones begin there.
"""

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cacse_trainer.compute.packing import PackedRows, can_pack, packed_states
from cacse_trainer.compute.pooling import pool
from cacse_trainer.models.modeling_cacse import CacseModel

MOST_BYTES = 2 * 10**9
"""Kept states beyond this are not kept; those of STS-B dev take 0.3 GB with BERT-base towers in float32."""


class _Kept(nn.Module):
    """Stands where the frozen layers were; gives what they gave."""

    def __init__(self, states: Tensor):
        super().__init__()
        self.states = states

    def forward(self, *given: Any, **more: Any) -> Tensor:
        return self.states


class _Seen(nn.Module):
    """A layer, and what it gave."""

    states: Tensor

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *given: Any, **more: Any) -> Tensor:
        self.states = self.layer(*given, **more)
        return self.states


class FrozenPrefixes:
    """The states that leave the frozen layers of a model's towers, by batch.

    They are dropped when anything frozen changes (another tensor, or one written to by torch).

    Args:
        most_bytes: of kept states.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._kept: dict[Any, Tensor] = {}
        self._frozen: list[tuple[int, int]] = []

    def embed_of(self, model: Any) -> Callable[..., Tensor]:
        """The model's ``embed``, by kept states where it is a CACSE model with frozen embeddings in eval mode."""
        if isinstance(model, CacseModel) and model.config.freeze_embeddings and not model.training:
            return lambda *given, **inputs: self._embed(model, *given, **inputs)
        return model.embed

    def _embed(
        self,
        model: CacseModel,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """As `CacseModel.embed`."""
        towers = (model.tower_a, model.tower_b)
        depth = model.config.cascade_start_layer
        frozen = [
            (p.data_ptr(), p._version)
            for tower in towers
            for part in (tower.embeddings, *tower.encoder.layer[:depth])
            for p in part.parameters()
        ]
        if frozen != self._frozen:
            self._frozen, self._kept = frozen, {}
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs = {name: ids for name, ids in given.items() if ids is not None}
        device = input_ids.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (_digest(inputs), dtype, torch.is_inference_mode_enabled())
        total = [self._run(tower, depth, (i, *key), inputs) for i, tower in enumerate(towers)]
        return total[0] + total[1]

    def _run(self, tower: PreTrainedModel, depth: int, key: Any, inputs: dict[str, Tensor]) -> Tensor:
        """The tower's CLS vector, (n, H)."""
        run = _run_packed if can_pack(tower, inputs) else _run_padded
        states, vectors = run(tower, depth, self._kept.get(key), inputs)
        size = sum(states.nbytes for states in list(self._kept.values()))  # a list: other threads keep theirs
        if key not in self._kept and size + states.nbytes <= self.most_bytes:
            self._kept[key] = states
        return vectors


def _run_packed(tower: Any, depth: int, kept: Tensor | None, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What leaves the first ``depth`` layers, which run where nothing is kept, and the CLS vectors, (n, H)."""
    rows = PackedRows(inputs, tower.config.num_attention_heads)
    start = 0 if kept is None else depth
    states = packed_states(tower, rows, True, kept, start)[depth - start :]
    return states[0], rows.in_order(states[-1])


def _run_padded(tower: Any, depth: int, kept: Tensor | None, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The same by the tower's own forward; the tower stays as it is, for threads beside this one."""
    layers = list(tower.encoder.layer)
    below = _Seen(layers[depth - 1]) if kept is None else _Kept(kept)
    first = layers[: depth - 1] if kept is None else []
    encoder = _view(tower.encoder, layer=nn.ModuleList([*first, below, *layers[depth:]]))
    output = _view(tower, encoder=encoder)(**inputs)
    return below.states, pool("cls", output.last_hidden_state, attention_mask=inputs.get("attention_mask"))


def _view(module: nn.Module, **parts: nn.Module) -> Any:
    """The module with these parts in place of its own; everything else is shared."""
    view = copy.copy(module)
    view._modules = {**module._modules, **parts}
    return view


def _digest(inputs: dict[str, Tensor]) -> str:
    """A name for these inputs."""
    found = hashlib.blake2b()
    for name, ids in inputs.items():
        found.update(f"{name}{tuple(ids.shape)}".encode())
        found.update(ids.cpu().numpy().tobytes())
    return found.hexdigest()
