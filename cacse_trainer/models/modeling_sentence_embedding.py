"""One encoder trained contrastively: SimCSE, and whatever else is an objective over the views of a batch.

``L = objective(z; τ) + mlm_weight·L_MLM`` with z = projection(pool(encoder(x))). The encoder is any that `AutoModel`
knows. Several processes compute the objective of the global batch, so that training with them is training with one;
the SimCSE release gathers the negatives too, but lets the gradient of the own rows alone pass.

Source: Gao et al. 2021 (arXiv 2104.08821), and the SimCSE release.
"""

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from cacse_trainer.compute.bucketing import encode_in_buckets
from cacse_trainer.compute.distributed import gather_rows, rank, shared_rows
from cacse_trainer.compute.encoder_tools import freeze_pooler, global_mean, known_inputs, mark_loaded, run_encoder
from cacse_trainer.compute.packing import can_pack, pool_packed, sentence_vectors
from cacse_trainer.compute.pooling import LAYER_POOLINGS, pool
from cacse_trainer.losses.contrastive import full_precision
from cacse_trainer.models.adapters import CONFIG_FILE as ADAPTER_CONFIG
from cacse_trainer.models.adapters import (
    LoraSettings,
    add_lora,
    base_model_of,
    has_adapter,
    load_adapter,
    load_adapter_weights,
    quantization,
    save_adapter,
)
from cacse_trainer.models.bidirectional import make_bidirectional
from cacse_trainer.models.configuration_sentence_embedding import SentenceEmbeddingConfig, set_encoder_dropout
from cacse_trainer.models.heads import PROJECTIONS, DetectionHead, MaskedLmHead, empty_masked_lm_head
from cacse_trainer.models.objectives import OBJECTIVES, compute
from cacse_trainer.models.outputs import EmbeddingOutput

IGNORED_LABEL = -100


class SentenceEmbeddingModel(PreTrainedModel):
    """A sentence embedding model with a single tower.

    Args:
        config: a `SentenceEmbeddingConfig`.
        encoder: a loaded encoder; built with random weights from the config when not given.
        lm_head: a loaded masked language model head, for ``mlm_weight`` > 0; likewise.
    """

    config_class = SentenceEmbeddingConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    length_buckets: int | None = 1
    """Groups of rows of similar length that the encoder runs over, one after the other; 1 is one padded pass, None no
    padding at all (`packing`) or, where that is not to be had, as many as pay for the lengths."""
    mini_batch_size: int | None = None
    """Sentences that are encoded at once in training, with gradient caching (`encode_in_buckets`); None: all."""
    negatives = "global"
    """Whose rows a row is compared with: those of all processes (``global``), or of its own (``local``)."""

    def __init__(
        self,
        config: SentenceEmbeddingConfig,
        encoder: PreTrainedModel | None = None,
        lm_head: MaskedLmHead | None = None,
    ):
        if encoder is not None:  # the base class writes the attention's choice into the encoder's config
            config._attn_implementation = encoder.config._attn_implementation
        super().__init__(config)
        for given in (encoder, lm_head):
            if given is not None:
                mark_loaded(given)
        self.encoder = encoder if encoder is not None else AutoModel.from_config(config.encoder_config)
        if config.bidirectional_start_layer is not None:
            make_bidirectional(self.encoder, config.bidirectional_start_layer)
        if config.has_projection:
            self.projection_head = PROJECTIONS[config.projection](config.hidden_size)
        if config.mlm_weight > 0:
            self.lm_head = lm_head if lm_head is not None else empty_masked_lm_head(config.encoder_config)
        self.post_init()
        freeze_pooler(self.encoder)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, DetectionHead):
            module.draw()
        else:
            super()._init_weights(module)

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
    ) -> "SentenceEmbeddingModel":
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
            settings: those of `SentenceEmbeddingConfig`. With ``mlm_weight`` the checkpoint's masked language model
                head is taken along.

        Raises:
            ValueError: a setting is unknown or out of range; an adapter with a projection or a masked language model
                head, with another adapter, or one that does not fit; quantisation without an adapter or a GPU.
            OSError: the folder or hub id cannot be read.
        """
        unknown = sorted(settings.keys() - inspect.signature(SentenceEmbeddingConfig.__init__).parameters.keys())
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no setting of SentenceEmbeddingConfig")
        if lora is not None and adapter is not None:
            raise ValueError("give either lora, for a new adapter, or adapter, to go on with one")
        quantized = quantization(load_in_4bit, load_in_8bit)
        if quantized is not None and lora is None and adapter is None:
            raise ValueError("quantised weights cannot be trained themselves: give lora_r or adapter, too")
        encoder_config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        original_dropout = set_encoder_dropout(encoder_config, dropout)
        config = SentenceEmbeddingConfig(encoder_config, original_dropout=original_dropout, dtype=dtype, **settings)
        loading: dict[str, Any] = {
            "dtype": dtype,
            "attn_implementation": attn_implementation,
            "trust_remote_code": trust_remote_code,
            **({"quantization_config": quantized} if quantized is not None else {}),
        }
        encoder = AutoModel.from_pretrained(path, config=encoder_config, **loading)
        lm_head = None
        if config.mlm_weight > 0:
            lm_head = MaskedLmHead(AutoModelForMaskedLM.from_pretrained(path, **loading))
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

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained, and saved, instead of the encoder's own weights."""
        return has_adapter(self.encoder)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As `PreTrainedModel.from_pretrained`; the frozen parts are frozen again.

        Of a checkpoint that holds an adapter only, the base model is read from where the adapter names it, or from
        ``base_model``, a folder or hub id.
        """
        path = str(pretrained_model_name_or_path)
        if (Path(path) / ADAPTER_CONFIG).is_file():
            return cls._from_adapter(path, **kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze()
        return loaded

    @classmethod
    def _from_adapter(
        cls, path: str, base_model: str | None = None, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        base = base_model or base_model_of(path)
        if base is None:
            raise ValueError(f"{path}: its {ADAPTER_CONFIG} names no base model; state base_model_name_or_path there")
        config = cls.config_class.from_pretrained(path)
        names = ("attn_implementation", "trust_remote_code", "device_map")
        loading = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        if type(config.encoder_config) is PretrainedConfig:  # its code comes with the base model
            trusted = {"trust_remote_code": kwargs.get("trust_remote_code")}
            config.encoder_config = AutoConfig.from_pretrained(base, **trusted)
        try:  # in the dtype of the training, which rounds the weights, then in the one asked for
            encoder = AutoModel.from_pretrained(base, config=config.encoder_config, dtype=config.dtype, **loading)
            encoder = encoder.to(kwargs.get("dtype") or config.dtype)
        except OSError as error:
            raise OSError(f"{path} is an adapter of {base}, which cannot be read: {error}") from error
        model = cls(config, encoder)
        load_adapter(model.encoder, path, base_model=base)
        model.eval()
        report: dict[str, Any] = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
        return (model, report) if output_loading_info else model

    def save_pretrained(  # type: ignore[override]  # the parent's further arguments pass through
        self, save_directory: Any, is_main_process: bool = True, state_dict: dict | None = None, **kwargs: Any
    ) -> None:
        """As `PreTrainedModel.save_pretrained`; with an adapter the config and the adapter only."""
        if not self.has_adapter:
            super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        elif is_main_process:
            self.config.architectures = [type(self).__name__]
            self.config.save_pretrained(save_directory)
            encoder_state = None
            if state_dict is not None:
                encoder_state = {
                    name.removeprefix("encoder."): tensor
                    for name, tensor in state_dict.items()
                    if name.startswith("encoder.")
                }
            save_adapter(self.encoder, save_directory, encoder_state)

    def load_adapter_checkpoint(self, folder: str) -> None:
        """Read the adapter of a checkpoint into the one that is trained.

        Raises:
            ValueError: it does not fit.
        """
        load_adapter_weights(self.encoder, folder)

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's word embeddings."""
        return self.encoder.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        mlm_input_ids: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        labels: Tensor | None = None,
        text_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> EmbeddingOutput | tuple[Any, ...]:
        """(B, V, L) → the loss and the embeddings it compares; (N, L) → the sentence embedding.

        Args:
            input_ids: (B, V, L), the views of each row (anchor, positive[, hard negative]), or (N, L).
            attention_mask: of the same shape, 1 for tokens, 0 for padding; default: all ones.
            token_type_ids: of the same shape; dropped where the encoder reads none.
            mlm_input_ids: of the same shape, masked copies, for (B, V, L) inputs.
            mlm_labels: of the same shape, the original ids where masked, else -100.
            labels: (B,), similarities of labelled pairs, for the objectives that read them.
            text_ids: (B, V), numbers of the sentences: equal ones are then no negatives of each other.
            return_dict: False gives a tuple, as everywhere in transformers.

        Raises:
            ValueError: another number of dimensions or views, no masked copies where the loss needs them, or rows of
                a format that the objective does not compare.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        if input_ids.dim() == 3:
            output = self._losses(inputs, mlm_input_ids, mlm_labels, labels, text_ids)
        elif input_ids.dim() == 2:
            states, vectors = self._encode(known_inputs(self.encoder, inputs))
            if self.config.projects_at_inference:
                vectors = self.projection_head(vectors)
            output = EmbeddingOutput(last_hidden_state=states, sentence_embedding=vectors)
        else:
            raise ValueError(
                f"input_ids must be (batch, views, length) or (rows, length), got {tuple(input_ids.shape)}"
            )
        return output if return_dict is not False else output.to_tuple()

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """(N, L) → (N, H), the sentence embedding."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        vectors = sentence_vectors(self.encoder, self.config.pooling, inputs)
        return self.projection_head(vectors) if self.config.projects_at_inference else vectors

    @property
    def needs_masked_copies(self) -> bool:
        """Whether the loss reads ``mlm_input_ids``: the batches must then come from `MaskingCollator`."""
        return self.config.mlm_weight > 0

    def effective_negatives(self, batch_size: int) -> int:
        """In-batch negatives of each view in a global batch (hard negatives come on top)."""
        return OBJECTIVES[self.config.objective].negatives(batch_size)

    def _encode(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(N, L) inputs → last hidden state (N, L, H) and pooled states (N, H), before the projection."""
        output = run_encoder(self.encoder, inputs, output_hidden_states=self.config.pooling in LAYER_POOLINGS)
        states = output.last_hidden_state
        return states, pool(self.config.pooling, states, output.hidden_states, inputs.get("attention_mask"))

    def _encode_rows(self, rows: Mapping[str, Tensor | None]) -> Tensor:
        """(N, L) inputs of a training batch → pooled states (N, H), by `length_buckets` and `mini_batch_size`."""
        inputs = known_inputs(self.encoder, rows)
        if self.length_buckets is None and can_pack(self.encoder, inputs):
            packed = partial(pool_packed, self.encoder, self.config.pooling)
            return encode_in_buckets(packed, inputs, 1, self.mini_batch_size)
        return encode_in_buckets(
            lambda **bucket: self._encode(bucket)[1], inputs, self.length_buckets, self.mini_batch_size
        )

    def _losses(
        self,
        given: dict[str, Tensor | None],
        mlm_input_ids: Tensor | None,
        mlm_labels: Tensor | None,
        labels: Tensor | None,
        text_ids: Tensor | None,
    ) -> EmbeddingOutput:
        given = {**given, "mlm_input_ids": mlm_input_ids, "mlm_labels": mlm_labels}
        rows = {name: tensor.flatten(0, 1) for name, tensor in given.items() if tensor is not None}  # (B·V, L)
        batch, views, _ = given["input_ids"].shape  # type: ignore[union-attr]
        pooled = self._encode_rows(rows).unflatten(0, (batch, views))  # (B, V, H)

        # Every process sees the rows of all: as negatives, and in any case in the projection's batch statistics.
        everywhere = gather_rows(pooled)
        if self.config.has_projection:
            everywhere = self.projection_head(everywhere)
        vectors = everywhere[rank() * batch : (rank() + 1) * batch]  # (B, V, H), this process's own
        shared = [shared_rows(part, self.negatives) if part is not None else None for part in (labels, text_ids)]
        loss = compute(everywhere if self.negatives == "global" else vectors, self.config, *shared)
        auxiliary, parts = self._auxiliary_loss(rows, pooled.flatten(0, 1), vectors.flatten(0, 1))
        losses = {"contrastive": loss.detach(), **parts}
        return EmbeddingOutput(loss=loss if auxiliary is None else loss + auxiliary, losses=losses, embeddings=vectors)

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
            raise ValueError(
                "mlm_weight is set, but the batch has no mlm_input_ids and mlm_labels: use MaskingCollator"
            )
        masked = {**rows, "input_ids": rows["mlm_input_ids"]}

        def score(mlm_labels: Tensor, **bucket: Tensor) -> Tensor:
            """(n, l) → (n, 2): sum of the cross-entropies of each row's masked tokens, and their number."""
            chosen = mlm_labels != IGNORED_LABEL
            logits = full_precision(self.lm_head(self.encoder(**bucket).last_hidden_state[chosen]))  # (m, vocabulary)
            entropies = F.cross_entropy(logits, mlm_labels[chosen], reduction="none")
            per_row = entropies.new_zeros(len(chosen)).index_add(0, chosen.nonzero()[:, 0], entropies)
            return torch.stack([per_row, chosen.sum(dim=1).to(per_row.dtype)], dim=1)

        inputs = {**known_inputs(self.encoder, masked), "mlm_labels": rows["mlm_labels"]}
        total, count = encode_in_buckets(score, inputs, self.length_buckets, self.mini_batch_size).sum(dim=0).unbind()
        mlm = global_mean(total, count.detach())
        return self.config.mlm_weight * mlm, {"mlm": mlm.detach()}


AutoConfig.register("sentence_embedding", SentenceEmbeddingConfig)
AutoModel.register(SentenceEmbeddingConfig, SentenceEmbeddingModel)
