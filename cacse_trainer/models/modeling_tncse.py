"""TNCSE: two encoder towers that learn from each other, in direction and in norm, without a cascade.

With a, b (2B, H) the towers' pooled states of the two views of B sentences, pa, pb what their poolers make of these:
``L = NT(a) + NT(b) + v·X(a, b) + w·(T(a, b, pa, pb) + T(b, a, pb, pa))``, NT being `nt_xent`, X `cross_nt_xent`,
T `norm_constraint`; published v = w = 1. Inference: a + b. No layer is frozen.

Source: TNCSE (AAAI 2025) and its release.
"""

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from cacse_trainer.compute.distributed import shared_rows
from cacse_trainer.losses import cross_nt_xent, norm_constraint, nt_xent
from cacse_trainer.models.configuration_tncse import TncseConfig
from cacse_trainer.models.heads import TanhProjection
from cacse_trainer.models.modeling_two_towers import TwoTowersModel, load_tower
from cacse_trainer.models.outputs import Layers, TwoTowersOutput, joined

logger = logging.getLogger(__name__)


class TncseModel(TwoTowersModel):
    """Two towers of one kind and their poolers, which run and are trained here.

    A pooler is dense and tanh: that of BERT's kin is the tower's own and exported with it; a tower whose kind has none
    is given a fresh one, which serves the loss alone.

    Args:
        config: a `TncseConfig`.
        tower_a, tower_b: loaded towers; built with random weights from the config when not given.
    """

    config_class = TncseConfig

    def __init__(
        self, config: TncseConfig, tower_a: PreTrainedModel | None = None, tower_b: PreTrainedModel | None = None
    ):
        super().__init__(config, tower_a, tower_b)
        if own_pooler(self.tower_a) is None:
            self.pooler_a, self.pooler_b = (TanhProjection(config.hidden_size) for _ in range(2))
        self.post_init()
        self.freeze()

    @classmethod
    def from_towers(
        cls,
        tower_a: str,
        tower_b: str,
        *,
        tower_dropout: list[float] | None = None,
        attn_implementation: str | None = None,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> "TncseModel":
        """Two pretrained towers, ready to be trained jointly.

        Args:
            tower_a, tower_b: folder or hub id of two encoders of one kind, equal in depth, width, vocabulary.
            tower_dropout: dropout of tower A and tower B; None keeps what their configs say (published: BERT
                ``[0.00025, 0.00025]``, RoBERTa ``[0.0175, 0.0175]``).
            attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``; default: transformers' choice.
            dtype: of the weights; float32 for training.
            settings: those of `TncseConfig`.

        Raises:
            ValueError: what does not fit, with the values.
            OSError: a folder or hub id cannot be read.
        """
        TncseConfig.check_names(settings)
        paths = tower_a, tower_b
        configs, original = cls.part_configs(paths, tower_dropout)
        config = TncseConfig(configs[0], configs[1], original_dropout=original, dtype=dtype, **settings)
        towers = []
        for path, tower_config in zip(paths, configs, strict=True):
            tower, drawn = load_tower(path, tower_config, dtype, attn_implementation)
            if drawn:
                logger.warning("model %s has no pooler of its own: a fresh one is trained", path)
            towers.append(tower)
        config._attn_implementation = towers[0].config._attn_implementation
        return cls(config, *towers)

    def freeze(self) -> None:
        """Freeze nothing but poolers without effect, at ``norm_constraint_weight`` 0."""
        if self.config.norm_constraint_weight == 0:
            for name in "ab":
                self._pooler(name).requires_grad_(False)

    def _pooler(self, name: str) -> Any:
        """Tower ``a``'s or ``b``'s: a module with a linear layer ``dense``."""
        own = own_pooler(self.get_submodule(f"tower_{name}"))
        return own if own is not None else self.get_submodule(f"pooler_{name}")

    def _vectors(
        self, name: str, inputs: dict[str, Tensor], batch: int, asked: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Layers]:
        """Of a tower its pooled states, what its pooler makes of them, and its layers: (2B, L) inputs → (B, 2, …)."""
        tower: Any = self.get_submodule(f"tower_{name}")
        states, layers = self.compute.pooled(tower, self.config.pooling, inputs, asked, batch)
        pooled = torch.tanh(self._pooler(name).dense(states))
        return states.unflatten(0, (batch, 2)), pooled.unflatten(0, (batch, 2)), layers

    def _losses(
        self, inputs: dict[str, Tensor], batch: int, text_ids: Tensor | None, asked: dict[str, Any]
    ) -> TwoTowersOutput:
        vectors_a, pooled_a, layers_a = self._vectors("a", inputs, batch, asked)
        vectors_b, pooled_b, layers_b = self._vectors("b", inputs, batch, asked)
        negatives, config = self.compute.negatives, self.config
        everywhere = [shared_rows(part, negatives) for part in (vectors_a, vectors_b, pooled_a, pooled_b)]
        a, b, pa, pb = (part.flatten(0, 1) for part in everywhere)  # (2 · global B, H), the views interleaved
        texts = shared_rows(text_ids, negatives) if text_ids is not None else None
        temperature = config.contrastive_temperature
        losses = {
            "tower_a": nt_xent(a[::2], a[1::2], temperature, texts),
            "tower_b": nt_xent(b[::2], b[1::2], temperature, texts),
            "cross": cross_nt_xent(a, b, temperature, texts),
            "norm": norm_constraint(a, b, pa, pb) + norm_constraint(b, a, pb, pa),
        }
        weights = {"cross": config.cross_loss_weight, "norm": config.norm_constraint_weight}
        loss = sum(weights.get(name, 1.0) * part for name, part in losses.items() if weights.get(name) != 0)
        return TwoTowersOutput(
            loss=loss,
            losses={name: part.detach() for name, part in losses.items()},
            tower_a_embeddings=vectors_a,
            tower_b_embeddings=vectors_b,
            **joined([layers_a, layers_b]),
        )


def own_pooler(tower: Any) -> Any:
    """A tower's own pooler where it is dense and tanh, as BERT's; else None."""
    pooler = dict(tower.named_children()).get("pooler")
    return pooler if pooler is not None and set(pooler.state_dict()) == {"dense.weight", "dense.bias"} else None


AutoConfig.register("tncse", TncseConfig)
AutoModel.register(TncseConfig, TncseModel)
