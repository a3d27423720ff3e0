"""Dev sentences through the frozen layers once: they do not change, and neither do those layers.

With ``freeze_embeddings`` a CACSE tower is frozen up to layer k0, more than half of it with the paper's settings. What
leaves layer k0 for a batch of dev sentences is kept from the first evaluation on, and the later ones begin there.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

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
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        device = input_ids.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (_digest(inputs), dtype, torch.is_inference_mode_enabled())
        total = [self._run(tower, depth, (i, *key), inputs) for i, tower in enumerate(towers)]
        return total[0] + total[1]

    def _run(self, tower: PreTrainedModel, depth: int, key: Any, inputs: dict[str, Tensor | None]) -> Tensor:
        """The tower's CLS vector, (n, H)."""
        encoder: Any = tower.encoder
        whole = encoder.layer
        if key in self._kept:
            encoder.layer = nn.ModuleList([_Kept(self._kept[key]), *whole[depth:]])
            try:
                return tower(**inputs).last_hidden_state[:, 0]
            finally:
                encoder.layer = whole
        seen: list[Tensor] = []
        handle = whole[depth - 1].register_forward_hook(lambda layer, given, output: seen.append(output))
        try:
            vectors = tower(**inputs).last_hidden_state[:, 0]
        finally:
            handle.remove()
        if sum(states.nbytes for states in self._kept.values()) + seen[0].nbytes <= self.most_bytes:
            self._kept[key] = seen[0]
        return vectors


def _digest(inputs: dict[str, Tensor | None]) -> str:
    """A name for these inputs."""
    found = hashlib.blake2b()
    for name, ids in inputs.items():
        if ids is not None:
            found.update(f"{name}{tuple(ids.shape)}".encode())
            found.update(ids.cpu().numpy().tobytes())
    return found.hexdigest()
