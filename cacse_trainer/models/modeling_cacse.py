"""CACSE: two encoder towers trained jointly, each by its own contrastive loss and both by the cascade's.

``L = L_A + L_B + λ·L_C``, each an NT-Xent over the two views of B sentences. Inference: h_A + h_B, pooled as in the
losses (published: at the first token); the cascade is not used. Backbones come from `AutoModel`; `CacseBertModel` and
`CacseRobertaModel` are the family's names for the published kinds, `CacseModel` is of every other in `KINDS`.

Source: the CACSE release, and the later papers of its authors, TNCSE (AAAI 2025) and JTCSE (arXiv 2505.02366).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from cacse_trainer.compute.distributed import shared_rows
from cacse_trainer.compute.encoder_tools import freeze_pooler, loaded_or, run_encoder
from cacse_trainer.compute.pooling import pool
from cacse_trainer.compute.reading import layer_vectors
from cacse_trainer.losses import nt_xent
from cacse_trainer.models.cascade import Cascade
from cacse_trainer.models.configuration_cacse import CacseConfig
from cacse_trainer.models.layers import KINDS, fresh_layers, kind_of, last_layers, layers_in
from cacse_trainer.models.modeling_two_towers import TwoTowersModel, load_tower
from cacse_trainer.models.outputs import CacseOutput, Layers, joined, layers_of


class CacseModel(TwoTowersModel):
    """CACSE with two towers of any kind in `KINDS`; of BERT's and RoBERTa's `CacseBertModel` and `CacseRobertaModel`.

    Args:
        config: a `CacseConfig` whose towers are of this class's kind.
        tower_a, tower_b: loaded towers; built with random weights from the config when not given.
        constraint_layers: loaded constraint layers; likewise.

    Raises:
        ValueError: the towers are of another kind than the class, or of one whose layers are not known.
    """

    config_class = CacseConfig
    output_class = CacseOutput
    _no_split_modules = [*(kind.name for kind in KINDS.values()), "CascadeBlock"]  # noqa: RUF012 - transformers' convention

    def __init__(
        self,
        config: CacseConfig,
        tower_a: PreTrainedModel | None = None,
        tower_b: PreTrainedModel | None = None,
        constraint_layers: nn.ModuleList | None = None,
    ):
        kind = config.tower_a_config.model_type
        kind_of(config.tower_a_config)
        if self.tower_kind not in (None, kind):
            raise ValueError(f"{type(self).__name__} is made of {self.tower_kind} towers, got {kind} towers")
        super().__init__(config, tower_a, tower_b)
        # The towers resolve their own; bare layers read their config's.
        config.constraint_config._attn_implementation = config._attn_implementation
        constraint_layers = loaded_or(
            constraint_layers, lambda: fresh_layers(config.constraint_config, config.constraint_layers)
        )
        for module in constraint_layers.modules():
            if "config" in vars(module):  # loaded layers come with a copy, which would not hear of later changes
                module.config = config.constraint_config  # type: ignore[assignment]
        self.cascade = Cascade(
            blocks=config.tower_a_config.num_hidden_layers - config.cascade_start_layer + 1,
            hidden_size=config.hidden_size,
            dropout=config.cascade_dropout,
            constraint_layers=constraint_layers,
            constraint_config=config.constraint_config,
            constraint_attention=config.constraint_attention,
        )
        self.post_init()
        self.freeze()

    @classmethod
    def from_towers(
        cls,
        tower_a: str,
        tower_b: str,
        constraint: str | None = None,
        *,
        tower_dropout: list[float] | None = None,
        constraint_dropout: float | None = 0.1,
        attn_implementation: str | None = None,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> "CacseModel":
        """Two pretrained towers, the last layers of a third model, and a fresh cascade.

        Args:
            tower_a, tower_b: folder or hub id of two encoders of this class's kind, equal in depth, width, vocabulary.
            constraint: folder or hub id of the model that gives the constraint layers, its last ones. Default:
                tower A.
            tower_dropout: dropout of tower A and tower B; None keeps what their configs say (paper: BERT
                ``[0.15, 0.15]``, RoBERTa ``[0.10, 0.15]``).
            constraint_dropout: dropout of the constraint layers; None keeps what their config says.
            attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``; default: transformers' choice.
            dtype: of the weights; float32 for training.
            settings: those of `CacseConfig`.

        Raises:
            ValueError: what does not fit, with the values.
            OSError: a folder or hub id cannot be read.
        """
        constraint = constraint if constraint is not None else tower_a
        paths = tower_a, tower_b, constraint
        config = cls.configure(paths, tower_dropout, constraint_dropout, dtype=dtype, **settings)
        towers = [
            load_tower(path, tower_config, dtype, attn_implementation)[0]
            for path, tower_config in zip(paths, (config.tower_a_config, config.tower_b_config), strict=False)
        ]
        layers = nn.ModuleList()
        if config.constraint_layers > 0:
            whole: Any = load_tower(constraint, config.constraint_config, dtype, attn_implementation)[0]
            layers = last_layers(whole, config.constraint_layers)
        config._attn_implementation = towers[0].config._attn_implementation
        return cls(config, tower_a=towers[0], tower_b=towers[1], constraint_layers=layers)

    @classmethod
    def configure(
        cls,
        paths: Sequence[str],
        tower_dropout: list[float] | None = None,
        constraint_dropout: float | None = 0.1,
        dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> CacseConfig:
        """The config of tower A, tower B and the constraint model at these paths; the arguments are `from_towers`'.

        No machine's folder stands in what is saved of it.
        """
        CacseConfig.check_names(settings)
        configs, original = cls.part_configs(paths, tower_dropout, constraint_dropout)
        return CacseConfig(configs[0], configs[1], configs[2], original_dropout=original, dtype=dtype, **settings)

    def freeze(self) -> None:
        """Freeze the encoder layers below k0, the unused poolers and, if asked for, the embeddings.

        Frozen layers keep their dropout, as in the reference. Poolers never get a gradient; frozen, they spare DDP the
        search for unused parameters.
        """
        for tower in (self.tower_a, self.tower_b):
            freeze_pooler(tower)
            layers_in(tower)[: self.config.cascade_start_layer].requires_grad_(False)
            if self.config.freeze_embeddings:
                dict(tower.named_children()).get("embeddings", tower.get_input_embeddings()).requires_grad_(False)
        if self.config.cascade_loss_weight == 0:
            self.cascade.requires_grad_(False)

    def _layer_vectors(
        self, tower: PreTrainedModel, inputs: dict[str, Tensor], batch: int, asked: dict[str, Any]
    ) -> tuple[Tensor, Layers]:
        """Pooled states of the layers k0..last, (2B, L) inputs → (B, 2, K, H); and the tower's layers, as asked."""
        start, pooling = self.config.cascade_start_layer, self.config.pooling

        def encode(output: Any, mask: Tensor | None) -> Tensor:
            hidden = *output.hidden_states[start:-1], output.last_hidden_state  # a last norm is not in the former
            return torch.stack([pool(pooling, states, attention_mask=mask) for states in hidden], dim=1)

        def padded(**bucket: Tensor) -> Tensor:
            return encode(run_encoder(tower, bucket, output_hidden_states=True), bucket.get("attention_mask"))

        if asked:
            output = run_encoder(tower, inputs, **{**asked, "output_hidden_states": True})
            vectors = encode(output, inputs.get("attention_mask"))
            return vectors.unflatten(0, (batch, 2)), layers_of(output, asked, batch)
        vectors = self.compute.packed_or(tower, inputs, partial(layer_vectors, tower, start, pooling), padded)
        return vectors.unflatten(0, (batch, 2)), {}

    def _losses(
        self, inputs: dict[str, Tensor], batch: int, text_ids: Tensor | None, asked: dict[str, Any]
    ) -> CacseOutput:
        states_a, layers_a = self._layer_vectors(self.tower_a, inputs, batch, asked)  # (B, 2, K, H)
        states_b, layers_b = self._layer_vectors(self.tower_b, inputs, batch, asked)
        vectors_a, vectors_b = states_a[:, :, -1], states_b[:, :, -1]  # (B, 2, H)

        # Every process sees the whole global batch, the cascade's constraint layers included: they attend across it.
        negatives = self.compute.negatives
        all_a, all_b = shared_rows(vectors_a, negatives), shared_rows(vectors_b, negatives)
        texts = shared_rows(text_ids, negatives) if text_ids is not None else None
        temperature = self.config.contrastive_temperature
        loss_a = nt_xent(all_a[:, 0], all_a[:, 1], temperature, texts)
        loss_b = nt_xent(all_b[:, 0], all_b[:, 1], temperature, texts)
        loss = loss_a + loss_b
        losses = {"tower_a": loss_a.detach(), "tower_b": loss_b.detach()}
        cascaded = None
        if self.config.cascade_loss_weight != 0 or not self.training:
            cascaded = self.cascade(shared_rows(states_a + states_b, negatives))  # (global B, 2, H)
            loss_c = nt_xent(cascaded[:, 0], cascaded[:, 1], temperature, texts)
            loss = loss + self.config.cascade_loss_weight * loss_c
            losses["cascade"] = loss_c.detach()
        return CacseOutput(
            loss=loss,
            losses=losses,
            tower_a_embeddings=vectors_a,
            tower_b_embeddings=vectors_b,
            cascade_embeddings=cascaded,
            **joined([layers_a, layers_b]),
        )


class CacseBertModel(CacseModel):
    """CACSE with two BERT towers; see `CacseModel`."""

    tower_kind = "bert"


class CacseRobertaModel(CacseModel):
    """CACSE with two RoBERTa towers; see `CacseModel`."""

    tower_kind = "roberta"


def cacse_class(config: Any) -> type[CacseModel]:
    """The CACSE class for towers of this config's kind.

    Raises:
        ValueError: the layers of such towers are not known.
    """
    kind_of(config)
    named: dict[str, type[CacseModel]] = {"bert": CacseBertModel, "roberta": CacseRobertaModel}
    return named.get(config.model_type, CacseModel)


AutoConfig.register("cacse", CacseConfig)
# One registration for all: a second would replace the first, and a saved CacseBertModel would come back as RoBERTa.
AutoModel.register(CacseConfig, (CacseBertModel, CacseRobertaModel, CacseModel))
