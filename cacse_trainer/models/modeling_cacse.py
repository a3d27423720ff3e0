"""CACSE: two encoder towers trained jointly, each by its own contrastive loss and both by the cascade's.

``L = L_A + L_B + λ·L_C``, each an NT-Xent over the two views of B sentences. Inference: h_A + h_B, pooled as in the
losses (published: at the first token); the cascade is not used. Backbones come from `AutoModel`; `CacseBertModel` and
`CacseRobertaModel` are two names of one family.

Source: the CACSE release, and the later papers of its authors, TNCSE (AAAI 2025) and JTCSE (arXiv 2505.02366).
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.roberta.modeling_roberta import RobertaLayer

from cacse_trainer.compute.distributed import shared_rows
from cacse_trainer.compute.encoder_tools import freeze_pooler, loaded_or
from cacse_trainer.compute.packing import layer_vectors, sentence_vectors
from cacse_trainer.compute.pooling import pool
from cacse_trainer.errors import UserError
from cacse_trainer.losses import nt_xent
from cacse_trainer.models.base import Export, Part, PlainEncoder, TowerSum, with_settings
from cacse_trainer.models.cascade import Cascade
from cacse_trainer.models.configuration_cacse import CacseConfig
from cacse_trainer.models.configuration_sentence_embedding import set_encoder_dropout
from cacse_trainer.models.modeling_ensemble import EnsembleModel
from cacse_trainer.models.outputs import CacseOutput
from cacse_trainer.models.pretrained import build_encoder, load_config, load_encoder_model

LAYER_CLASSES = {"bert": BertLayer, "roberta": RobertaLayer}


def load_tower(path: str, config: Any, dtype: torch.dtype, attn_implementation: str | None) -> PreTrainedModel:
    """A pretrained encoder, without the name of this machine's folder; raises as `load_encoder_model` does."""
    tower, _ = load_encoder_model(path, config=config, dtype=dtype, attn_implementation=attn_implementation)
    if Path(path).exists():
        tower.config.name_or_path = ""
    return tower


class CacseModel(TowerSum):
    """The family behind `CacseBertModel` and `CacseRobertaModel`; use those.

    Args:
        config: a `CacseConfig` whose towers are of this class's kind.
        tower_a, tower_b: loaded towers; built with random weights from the config when not given.
        constraint_layers: loaded constraint layers; likewise.

    Raises:
        ValueError: the towers are of another kind than the class.
    """

    config_class = CacseConfig
    _no_split_modules = ["BertLayer", "RobertaLayer", "CascadeBlock"]  # noqa: RUF012 - transformers' convention
    tower_kind = "bert"

    def __init__(
        self,
        config: CacseConfig,
        tower_a: PreTrainedModel | None = None,
        tower_b: PreTrainedModel | None = None,
        constraint_layers: nn.ModuleList | None = None,
    ):
        kind = config.tower_a_config.model_type
        if kind != self.tower_kind:
            raise ValueError(f"{type(self).__name__} is made of {self.tower_kind} towers, got {kind} towers")
        super().__init__(config)
        # The towers resolve their own; bare layers read their config's.
        config.constraint_config._attn_implementation = config._attn_implementation
        dtype = torch.get_default_dtype()  # a sub-config may name another, which from_config would obey
        self.tower_a = loaded_or(tower_a, lambda: build_encoder(config.tower_a_config, dtype=dtype))
        self.tower_b = loaded_or(tower_b, lambda: build_encoder(config.tower_b_config, dtype=dtype))
        layers = range(config.constraint_layers)
        constraint_layers = loaded_or(
            constraint_layers,
            lambda: nn.ModuleList(LAYER_CLASSES[kind](config.constraint_config, layer_idx=i) for i in layers),
        )
        for module in constraint_layers.modules():
            if "config" in vars(module):  # loaded layers come with a copy, which would not hear of later changes
                module.config = config.constraint_config  # type: ignore[assignment]
        self.cascade = Cascade(
            blocks=config.tower_a_config.num_hidden_layers - config.cascade_start_layer + 1,
            hidden_size=config.hidden_size,
            dropout=config.cascade_dropout,
            constraint_layers=constraint_layers,
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
            load_tower(path, tower_config, dtype, attn_implementation)
            for path, tower_config in zip(paths, (config.tower_a_config, config.tower_b_config), strict=False)
        ]
        layers = nn.ModuleList()
        if config.constraint_layers > 0:
            whole: Any = load_tower(constraint, config.constraint_config, dtype, attn_implementation)
            layers = nn.ModuleList(whole.encoder.layer[-config.constraint_layers :])
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
        if tower_dropout is not None and len(tower_dropout) != 2:
            raise ValueError(f"tower_dropout takes two numbers, for tower A and tower B, got {tower_dropout}")
        configs = [load_config(path) for path in paths]
        dropouts = (*(tower_dropout or (None, None)), constraint_dropout)
        had = []
        for path, config, dropout in zip(paths, configs, dropouts, strict=True):
            if config.model_type != cls.tower_kind:
                raise ValueError(
                    f"{cls.__name__} is made of {cls.tower_kind} towers, got {config.model_type} towers ({path})"
                )
            if Path(path).exists():
                config.name_or_path = ""
            had.append(list(set_encoder_dropout(config, dropout).values()))
        original = {"tower_a": had[0], "tower_b": had[1]}
        return CacseConfig(configs[0], configs[1], configs[2], original_dropout=original, dtype=dtype, **settings)

    def freeze(self) -> None:
        """Freeze the encoder layers below k0, the unused poolers and, if asked for, the embeddings.

        Frozen layers keep their dropout, as in the reference. Poolers never get a gradient; frozen, they spare DDP the
        search for unused parameters.
        """
        for tower in (self.tower_a, self.tower_b):
            freeze_pooler(tower)
            tower.encoder.layer[: self.config.cascade_start_layer].requires_grad_(False)
            if self.config.freeze_embeddings:
                tower.embeddings.requires_grad_(False)
        if self.config.cascade_loss_weight == 0:
            self.cascade.requires_grad_(False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> CacseOutput | tuple[Tensor, ...]:
        """(B, 2, L) → the losses and the embeddings they compare; (N, L) → the sentence embedding.

        The arguments are those that `SentenceModel` names; the views are the two of each sentence.

        Raises:
            ValueError: another number of dimensions or views.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        if input_ids.dim() == 3:
            output = self._losses(inputs, text_ids)
        elif input_ids.dim() == 2:
            hidden = self.tower_a(**inputs).last_hidden_state + self.tower_b(**inputs).last_hidden_state  # (N, L, H)
            vectors = pool(self.config.pooling, hidden, attention_mask=attention_mask)
            output = CacseOutput(last_hidden_state=hidden, sentence_embedding=vectors)
        else:
            raise ValueError(f"input_ids must be (batch, 2, length) or (rows, length), got {tuple(input_ids.shape)}")
        return output if return_dict is not False else output.to_tuple()

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """(N, L) → (N, H), h_A + h_B, pooled."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        pooling = self.config.pooling
        return sentence_vectors(self.tower_a, pooling, inputs) + sentence_vectors(self.tower_b, pooling, inputs)

    @property
    def stated_pooling(self) -> str:
        """Of both towers."""
        return self.config.pooling

    def effective_negatives(self, batch_size: int) -> int:
        """Negatives of each view in a global batch: every other view but its partner."""
        return 2 * batch_size - 2

    def check_rows(self, columns: Sequence[str], labels: Iterable[float] | None) -> None:
        """Refuse more than two columns, and labels."""
        if len(columns) > 2 or labels is not None:
            raise UserError(
                f"CACSE compares two views of a row, got the columns {', '.join(columns)}; "
                "choose one or two with text_columns"
            )

    def parts(self) -> list[Part]:
        """The two towers."""
        return [Part(self.tower_a, self.config.pooling), Part(self.tower_b, self.config.pooling)]

    def exports(self, title: str) -> list[Export]:
        """``tower_a``, ``tower_b``, and ``ensemble``, their sum; the cascade is left behind."""
        names, found, towers = ("hidden_dropout_prob", "attention_probs_dropout_prob"), [], []
        pooling = self.config.pooling
        for letter, tower in (("a", self.tower_a), ("b", self.tower_b)):
            name, embed = f"tower_{letter}", PlainEncoder(tower).embed_as(pooling)
            had = dict(zip(names, self.config.original_dropout.get(name, ()), strict=False))
            towers.append(with_settings(tower, had))
            what = f"Tower {letter.upper()} of {title}: a plain encoder."
            found.append(Export(name, f"{title} {name}", what, towers[-1], embed, pooling))
        what = f"Both towers of {title}: the sum of their vectors."
        both = EnsembleModel.from_encoders(towers, poolings=[pooling, pooling])
        found.append(Export("ensemble", f"{title} ensemble", what, both, self.embed, pooling, needs_package=True))
        return found

    def _layer_vectors(self, tower: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
        """Pooled states of the layers k0..last: (N, L) inputs → (N, K, H)."""
        start, pooling = self.config.cascade_start_layer, self.config.pooling

        def encode(**bucket: Tensor) -> Tensor:
            hidden, mask = tower(**bucket, output_hidden_states=True).hidden_states, bucket.get("attention_mask")
            return torch.stack([pool(pooling, states, attention_mask=mask) for states in hidden[start:]], dim=1)

        return self.compute.packed_or(tower, inputs, partial(layer_vectors, tower, start, pooling), encode)

    def _losses(self, given: dict[str, Tensor | None], text_ids: Tensor | None) -> CacseOutput:
        rows = {name: tensor for name, tensor in given.items() if tensor is not None}
        batch, views, _ = rows["input_ids"].shape
        if views != 2:
            raise ValueError(f"CACSE compares two views of each row, got {views}: give one text column, or two")
        inputs = {name: tensor.flatten(0, 1) for name, tensor in rows.items()}  # (2B, L)
        states_a = self._layer_vectors(self.tower_a, inputs).unflatten(0, (batch, views))  # (B, 2, K, H)
        states_b = self._layer_vectors(self.tower_b, inputs).unflatten(0, (batch, views))
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
        ValueError: no CACSE class has such towers.
    """
    classes = {"bert": CacseBertModel, "roberta": CacseRobertaModel}
    if config.model_type not in classes:
        raise ValueError(f"CACSE towers are of kind {sorted(classes)}, got {config.model_type!r}")
    return classes[config.model_type]


AutoConfig.register("cacse", CacseConfig)
# One registration for both: a second would replace the first, and a saved CacseBertModel would come back as RoBERTa.
AutoModel.register(CacseConfig, (CacseBertModel, CacseRobertaModel))
