"""One encoder trained contrastively: SimCSE, and whatever else is an objective over the views of a batch.

``L = objective(z; τ) + mlm_weight·L_MLM`` with z = projection(pool(encoder(x))). The encoder is any that `AutoModel`
knows. Several processes compute the objective of the global batch, so that training with them is training with one;
the SimCSE release gathers the negatives too, but lets the gradient of the own rows alone pass.

Source: Gao et al. 2021 (arXiv 2104.08821), and the SimCSE release.
"""

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedModel

from cacse_trainer.compute.distributed import gather_rows, rank, shared_rows
from cacse_trainer.compute.encoder_tools import freeze_pooler, known_inputs, loaded_or
from cacse_trainer.compute.pooling import LAYER_POOLINGS
from cacse_trainer.compute.reading import pool_padded, sentence_vectors
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.losses import cosine_drift
from cacse_trainer.models.adapter_model import AdapterModel
from cacse_trainer.models.adapters import (
    LoraSettings,
    add_lora,
    in_full_precision,
    load_adapter,
    merge_adapter,
    quantization,
)
from cacse_trainer.models.base import CLS_WITH_MLP, Embed, Export, Part, PlainEncoder, with_settings
from cacse_trainer.models.bidirectional import make_bidirectional
from cacse_trainer.models.configuration_ensemble import POOLING_NAMES
from cacse_trainer.models.configuration_sentence_embedding import SentenceEmbeddingConfig, set_encoder_dropout
from cacse_trainer.models.heads import PROJECTIONS, MaskedLmHead, empty_masked_lm_head
from cacse_trainer.models.masked_lm import masked_lm_loss
from cacse_trainer.models.objectives import OBJECTIVES, SCORED, check_format, compute, needs_binary_labels
from cacse_trainer.models.outputs import EmbeddingOutput, layers_of
from cacse_trainer.models.pretrained import ANY, build_encoder, load_config, load_encoder_model, load_weights

logger = logging.getLogger(__name__)


class SentenceEmbeddingModel(AdapterModel):
    """A sentence embedding model with a single tower.

    Args:
        config: a `SentenceEmbeddingConfig`.
        encoder: a loaded encoder; built with random weights from the config when not given.
        lm_head: a loaded masked language model head, for ``mlm_weight`` > 0; likewise.
    """

    config_class = SentenceEmbeddingConfig
    _supports_flex_attn = True

    def __init__(
        self,
        config: SentenceEmbeddingConfig,
        encoder: PreTrainedModel | None = None,
        lm_head: MaskedLmHead | None = None,
    ):
        if encoder is not None:  # the base class writes the attention's choice into the encoder's config
            config._attn_implementation = encoder.config._attn_implementation
        super().__init__(config)
        self.encoder = loaded_or(encoder, lambda: build_encoder(config.encoder_config))
        if config.bidirectional_start_layer is not None:
            make_bidirectional(self.encoder, config.bidirectional_start_layer)
        if config.has_projection:
            self.projection_head = PROJECTIONS[config.projection](config.hidden_size)
        if config.mlm_weight > 0:
            self.lm_head = loaded_or(lm_head, lambda: empty_masked_lm_head(config.encoder_config))
        self.post_init()
        freeze_pooler(self.encoder)

    @classmethod
    def from_encoder(
        cls,
        path: str,
        *,
        dropout: float | None = None,
        lora: LoraSettings | None = None,
        adapter: str | None = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        attn_implementation: str | None = None,
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
        **settings: Any,
    ) -> Any:
        """A pretrained encoder with a fresh projection, ready to be trained.

        Args:
            path: folder or hub id of any encoder or decoder that `AutoModel` knows.
            dropout: every dropout of the encoder; None keeps what its config says.
            lora: train a new LoRA adapter instead of the encoder's own weights.
            adapter: go on training this adapter, a folder or hub id, instead.
            load_in_4bit, load_in_8bit: hold the frozen weights so, by bitsandbytes; with an adapter only.
            attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``; default: transformers' choice.
            dtype: of the weights; float32 for training, unless an adapter is trained (which always is float32).
            trust_remote_code: run the model code that comes with the checkpoint.
            settings: those of the class's config. With ``mlm_weight`` the checkpoint's masked language model head is
                taken along.

        Raises:
            ValueError: a setting is unknown or out of range; an adapter with a projection or a masked language model
                head, with another adapter, or one that does not fit; quantisation without an adapter or a GPU.
            OSError: the folder or hub id cannot be read.
        """
        cls.config_class.check_names(settings)
        if lora is not None and adapter is not None:
            raise ValueError("give either lora, for a new adapter, or adapter, to go on with one")
        quantized = quantization(load_in_4bit, load_in_8bit)
        if quantized is not None and lora is None and adapter is None:
            raise ValueError("quantised weights cannot be trained themselves: give lora_r or adapter, too")
        encoder_config = load_config(path, trust_remote_code=trust_remote_code)
        original_dropout = set_encoder_dropout(encoder_config, dropout)
        config = cls.config_class(encoder_config, original_dropout=original_dropout, dtype=dtype, **settings)
        loading: dict[str, Any] = {
            "dtype": dtype,
            "attn_implementation": attn_implementation,
            "trust_remote_code": trust_remote_code,
            **({"quantization_config": quantized} if quantized is not None else {}),
        }
        encoder, _ = load_encoder_model(path, config=encoder_config, **loading)
        lm_head = None
        if config.mlm_weight > 0:
            masked_lm, drawn = load_weights(AutoModelForMaskedLM, path, optional=ANY, **loading)
            if drawn:
                logger.warning("model %s has no masked language model head: a fresh one is trained", path)
            lm_head = MaskedLmHead(masked_lm)
        model = cls(config, encoder, lm_head)
        if lora is not None or adapter is not None:
            if config.has_projection or config.mlm_weight > 0:
                raise ValueError(
                    "an adapter is trained without a projection or a masked language model head: choose pooling "
                    "last_token, mean, weighted_mean or cls_before_pooler, and mlm_weight 0"
                )
            if lora is not None:
                add_lora(model.encoder, lora, base_model=path)
            elif adapter is not None:
                load_adapter(model.encoder, adapter, base_model=path)
        return model

    def freeze(self) -> None:
        """Freeze what never gets a gradient."""
        freeze_pooler(self.encoder)

    def get_output_embeddings(self) -> nn.Module | None:
        """The scores of the vocabulary's words, where there is a masked language model head."""
        return self.lm_head.decoder if self.config.mlm_weight > 0 else None

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put a layer in the place of `get_output_embeddings`'."""
        self.lm_head.decoder = new_embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        mlm_input_ids: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        labels: Tensor | None = None,
        text_ids: Tensor | None = None,
        left_out: Tensor | None = None,
        kept: dict[str, Tensor] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> EmbeddingOutput | tuple[Any, ...]:
        """(B, V, L) → the loss and the embeddings it compares; (N, L) → the sentence embedding.

        Args:
            input_ids: (B, V, L), the views of each row (anchor, positive[, hard negatives]), or (N, L).
            attention_mask, token_type_ids, text_ids, output_hidden_states, output_attentions, return_dict: see
                `SentenceModel`.
            mlm_input_ids: of the shape of ``input_ids``, masked copies, for (B, V, L) inputs.
            mlm_labels: of the same shape, the original ids where masked, else -100.
            labels: (B,), similarities of labelled pairs, or (B, K), a teacher's margins, for objectives that read them.
            left_out: candidates of each row of the compared batch that are no negatives of it, see `info_nce`.
            kept: for ``keep_weight``: (n, L) inputs of general sentences, and ``start_vectors`` (n, H), the start's.

        Raises:
            ValueError: another number of dimensions or views, no masked copies where the loss needs them, or rows of
                a format that the objective does not compare.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        asked = self.asked(output_hidden_states, output_attentions)
        if input_ids.dim() == 3:
            given = {**inputs, "mlm_input_ids": mlm_input_ids, "mlm_labels": mlm_labels}
            output = self._losses(given, labels, text_ids, left_out, asked)
            if kept is not None:
                output = self._with_drift(output, kept)
        elif input_ids.dim() == 2:
            output = self._embedding(inputs, asked)
        else:
            raise ValueError(
                f"input_ids must be (batch, views, length) or (rows, length), got {tuple(input_ids.shape)}"
            )
        return self.returned(output, return_dict)

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """(N, L) → (N, H), the sentence embedding."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        vectors = sentence_vectors(self.encoder, self.config.pooling, inputs)
        return self.projection_head(vectors) if self.config.projects_at_inference else vectors

    @property
    def needs_masked_copies(self) -> bool:
        """Whether the loss reads ``mlm_input_ids``: `data.Masking` adds it, in training the trainer."""
        return self.config.mlm_weight > 0

    @property
    def learns_scores(self) -> bool:
        """Whether the objective learns a teacher's scores."""
        return self.config.objective in SCORED

    def effective_negatives(self, batch_size: int) -> int:
        """In-batch negatives of each view in a global batch (hard negatives come on top)."""
        return OBJECTIVES[self.config.objective].negatives(batch_size)

    def check_rows(self, columns: Sequence[str], labels: Iterable[float] | None) -> None:
        """Refuse rows of a format that the objective does not know, and grades where it counts pairs as positive."""
        with user_errors("training text"):
            check_format(self.config.objective, 2 if labels is not None else max(2, len(columns)), labels is not None)
        if labels is None or not needs_binary_labels(self.config):
            return
        graded = next((label for label in labels if label not in (0, 1)), None)
        if graded is not None:
            raise UserError(
                f"training text: the label {graded:g} is graded, and objective angle_combined counts pairs in the "
                "batch as positive or not; set positive_threshold, or ibn_weight 0, or choose objective cosent or angle"
            )

    @property
    def stated_pooling(self) -> str:
        """The pooling of the sentence embedding, by the name that a user would state."""
        if self.config.has_projection:
            return CLS_WITH_MLP if self.config.projects_at_inference else "cls"
        return POOLING_NAMES.get(self.config.pooling, self.config.pooling)

    def embed_as(self, pooling: str | None = None) -> Embed:
        """As `SentenceModel.embed_as`: the encoder takes every pooling, and has the head that it was trained with."""
        if pooling is None:
            return super().embed_as()
        if pooling != CLS_WITH_MLP:
            return PlainEncoder(self.encoder).embed_as(pooling)
        if not self.config.has_projection:
            raise ValueError(f"it has no head: it was trained with pooling {self.config.pooling}")
        return PlainEncoder(self.encoder, [self.projection_head]).embed_as(pooling)

    def parts(self) -> list[Part]:
        """The encoder, unless its vectors pass a head or average layers."""
        config = self.config
        if config.pooling not in POOLING_NAMES:
            raise ValueError(f"its pooling is {config.pooling}, and an ensemble has {', '.join(POOLING_NAMES)}")
        if config.projects_at_inference:
            raise ValueError(
                f"its vectors pass a head ({config.pooling}, {config.projection}), which an ensemble has not; give its "
                "exported folder with a pooling, for the states below the head"
            )
        return [Part(self.encoder, config.pooling)]

    def check_exportable(self) -> None:
        """Refuse a batch norm kept at inference: no encoder folder gives such vectors."""
        if self.config.projects_at_inference and self.config.projection != "tanh":
            raise UserError(
                f"projection {self.config.projection} cannot be part of an exported encoder: set mlp_only_train, or "
                "projection tanh"
            )

    def exports(self, title: str) -> list[Export]:
        """The encoder: an adapter merged into its weights, a head that stays at inference as its pooler and on top.

        Bidirectional layers are no part of any plain model, and an average of layers is no pooling of
        sentence-transformers: the folder then holds a model of this package, which pools by itself. With an
        adapter the encoder is brought to float32, in which it is compared, whatever its weights were held in.
        """
        self.check_exportable()
        config, merged = self.config, ""
        if self.has_adapter:
            self.encoder, merged = in_full_precision(self.encoder), ", its adapter merged into the weights"
        plain = merge_adapter(copy.deepcopy(self.encoder)) if merged else self.encoder
        plain = with_settings(plain, config.original_dropout)
        head = self.projection_head if config.projects_at_inference else None
        if head is not None:
            for name, pooler in plain.named_children():
                if name == "pooler" and pooler.state_dict().keys() == head.state_dict().keys():
                    pooler.load_state_dict(head.state_dict())
        what = f"a plain encoder{merged}" + ("; a dense layer and tanh follow the pooling" if head is not None else "")
        what = f"The encoder of {title}, {what}."
        if config.matryoshka_dims is not None:
            sizes = ", ".join(map(str, config.matryoshka_dims))
            what += f" It was trained so that the first {sizes} coordinates of its vectors serve by themselves."
        exported: PreTrainedModel = plain
        if config.bidirectional_start_layer is not None:
            start = config.bidirectional_start_layer
            what = f"The encoder of {title}{merged}: decoder layers from {start} on (from 0) see both directions."
            exported = with_settings(self, {"encoder_config": plain.config})
            exported._modules = {**self._modules, "encoder": plain}
        pooling: str | None = POOLING_NAMES.get(config.pooling, config.pooling)
        if config.pooling in LAYER_POOLINGS:
            pooling = None
            what += f" Its vectors are the mean of two layers ({config.pooling}): this folder's model pools by itself."
            if exported is plain:  # neither a generator nor a decoder goes along
                own = SentenceEmbeddingConfig(plain.config, pooling=config.pooling)
                exported = SentenceEmbeddingModel(own, plain).eval()
        return [
            Export(
                self.export_name,
                title,
                what,
                exported,
                self.embed,
                pooling,
                dense=cast(nn.Linear, head.dense) if head is not None else None,
                merged=bool(merged),
                needs_package=exported is not plain,
            )
        ]

    def _encode_rows(self, rows: Mapping[str, Tensor | None]) -> Tensor:
        """(N, L) inputs of a training batch → pooled states (N, H), by `compute`."""
        return self.compute.pooled(self.encoder, self.config.pooling, rows, {})[0]

    def _embedding(self, inputs: Mapping[str, Tensor | None], asked: dict[str, Any]) -> EmbeddingOutput:
        """(N, L) inputs → token states, sentence embedding, and the layers that are asked for."""
        encoder = self.encoder
        output, vectors = pool_padded(encoder, self.config.pooling, known_inputs(encoder, inputs), **asked)
        if self.config.projects_at_inference:
            vectors = self.projection_head(vectors)
        states = output.last_hidden_state
        return EmbeddingOutput(last_hidden_state=states, sentence_embedding=vectors, **layers_of(output, asked))

    def _losses(
        self,
        given: dict[str, Tensor | None],
        labels: Tensor | None,
        text_ids: Tensor | None,
        left_out: Tensor | None,
        asked: dict[str, Any],
    ) -> EmbeddingOutput:
        rows = {name: tensor.flatten(0, 1) for name, tensor in given.items() if tensor is not None}  # (B·V, L)
        batch, views, _ = given["input_ids"].shape  # type: ignore[union-attr]
        pooled, layers = self.compute.pooled(self.encoder, self.config.pooling, rows, asked, batch)
        pooled = pooled.unflatten(0, (batch, views))  # (B, V, H)

        # Every process sees the rows of all: as negatives, and in any case in the projection's batch statistics.
        everywhere = gather_rows(pooled)
        if self.config.has_projection:
            everywhere = self.projection_head(everywhere)
        vectors = everywhere[rank() * batch : (rank() + 1) * batch]  # (B, V, H), this process's own
        negatives = self.compute.negatives
        labels, text_ids = (shared_rows(part, negatives) if part is not None else None for part in (labels, text_ids))
        compared = everywhere if negatives == "global" else vectors
        loss = compute(compared, self.config, labels, text_ids, left_out)
        auxiliary, parts = self._auxiliary_loss(rows, pooled.flatten(0, 1), vectors.flatten(0, 1))
        losses = {"contrastive": loss.detach(), **parts}
        loss = loss if auxiliary is None else loss + auxiliary
        return EmbeddingOutput(loss=loss, losses=losses, embeddings=vectors, **layers)

    def _with_drift(self, output: EmbeddingOutput, kept: dict[str, Tensor]) -> EmbeddingOutput:
        """The loss and what the model has forgotten, ``loss + keep_weight·drift``."""
        vectors = self._encode_rows({name: rows for name, rows in kept.items() if name != "start_vectors"})
        if self.config.projects_at_inference:
            vectors = self.projection_head(vectors)
        drift = cosine_drift(*(shared_rows(r, self.compute.negatives) for r in (vectors, kept["start_vectors"])))
        output["loss"] = output.loss + self.config.keep_weight * drift
        output["losses"] = {**(output.losses or {}), "drift": drift.detach()}
        return output

    def _auxiliary_loss(
        self, rows: dict[str, Tensor], pooled: Tensor, vectors: Tensor
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """What is added to the contrastive loss, weighted, and its parts for the log.

        ``rows`` are the inputs by name, (N, L) each; ``pooled`` and ``vectors`` (N, H) are before and after the
        projection.
        """
        if self.config.mlm_weight == 0 or ("mlm_input_ids" not in rows and not self.training):
            return None, {}
        if "mlm_input_ids" not in rows or "mlm_labels" not in rows:
            raise ValueError("mlm_weight is set, but the batch has no mlm_input_ids and mlm_labels: use data.Masking")
        mlm = masked_lm_loss(self.encoder, self.lm_head, rows, self.compute)
        return self.config.mlm_weight * mlm, {"mlm": mlm.detach()}


AutoConfig.register("sentence_embedding", SentenceEmbeddingConfig)
AutoModel.register(SentenceEmbeddingConfig, SentenceEmbeddingModel)
