"""DiffCSE: SimCSE whose sentence vector must also tell what was changed in an edited copy of its sentence.

A frozen masked language model, the generator, fills masked copies by its best guess at every position. The
discriminator, a second encoder, reads the filled copy with the sentence vector z in the first token's place and says
of each token whether it was replaced: ``L = L_contrastive + λ·CE(W·disc(filled, z) + b, filled ≠ original)``. The
gradient of the second part reaches the encoder through z. At inference the encoder alone is left.

The generator is in eval mode always (the release leaves it in train mode, with dropout), and first token and padding
keep the ids they have in the input (the release writes the ids of BERT's vocabulary into RoBERTa's inputs).

Source: Chuang et al. 2022 (arXiv 2204.10298), and the DiffCSE release.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedModel

from cacse_trainer.compute.distributed import gather_rows
from cacse_trainer.compute.encoder_tools import freeze_pooler, global_mean, known_inputs, loaded_or
from cacse_trainer.compute.pooling import first_token
from cacse_trainer.compute.reading import packed_tokens
from cacse_trainer.losses.contrastive import full_precision
from cacse_trainer.models.conditioning import condition_on
from cacse_trainer.models.configuration_diffcse import DiffcseConfig
from cacse_trainer.models.configuration_sentence_embedding import SentenceEmbeddingConfig, set_encoder_dropout
from cacse_trainer.models.heads import FreshLinear
from cacse_trainer.models.modeling_sentence_embedding import SentenceEmbeddingModel
from cacse_trainer.models.pretrained import ANY, build_encoder, load_config, load_encoder_model, load_weights

WORDS_AT_ONCE = 1024
"""Tokens for which the generator's vocabulary is read at once: of 30 522 words 125 MB in float32."""


class DiffcseModel(SentenceEmbeddingModel):
    """A single tower trained with DiffCSE's loss.

    Args:
        config: a `DiffcseConfig`.
        encoder, discriminator: loaded encoders of the same config; built with random weights when not given.
        generator: a loaded masked language model; likewise.
    """

    config_class: type[SentenceEmbeddingConfig] = DiffcseConfig

    def __init__(
        self,
        config: DiffcseConfig,
        encoder: PreTrainedModel | None = None,
        discriminator: PreTrainedModel | None = None,
        generator: PreTrainedModel | None = None,
    ):
        super().__init__(config, encoder)
        self.discriminator = loaded_or(discriminator, lambda: build_encoder(config.encoder_config))
        self.generator = loaded_or(generator, lambda: build_encoder(config.generator_config, AutoModelForMaskedLM))
        self.rtd_head = FreshLinear(config.hidden_size, 2)  # kept or replaced: the release's ``electra_head``
        self.post_init()
        self.freeze()
        self.generator.eval()

    @classmethod
    def from_pretrained_parts(
        cls,
        encoder: str,
        generator: str,
        *,
        dropout: float | None = None,
        attn_implementation: str | None = None,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> "DiffcseModel":
        """A pretrained encoder twice, as encoder and as discriminator, and a pretrained generator.

        Args:
            encoder: folder or hub id of an encoder that keeps its embeddings in a module called ``embeddings``.
            generator: folder or hub id of a masked language model of the same vocabulary (the release:
                ``distilbert-base-uncased``, ``distilroberta-base``).
            dropout: every dropout of encoder and discriminator; None keeps what the config says.
            attn_implementation, dtype: as for `SentenceEmbeddingModel.from_encoder`.
            settings: those of `DiffcseConfig`.

        Raises:
            ValueError: a setting is unknown or out of range, the vocabularies differ, or the generator's checkpoint has
                no masked language model head.
            OSError: a folder or hub id cannot be read.
        """
        DiffcseConfig.check_names(settings)
        encoder_config = load_config(encoder)
        original_dropout = set_encoder_dropout(encoder_config, dropout)
        generator_config = load_config(generator)
        set_encoder_dropout(generator_config, 0.0)  # never in train mode; so that nothing else is reported
        config = DiffcseConfig(
            encoder_config, generator_config, original_dropout=original_dropout, dtype=dtype, **settings
        )
        loading: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
        towers = [load_encoder_model(encoder, config=encoder_config, **loading)[0] for _ in range(2)]
        masked_lm, drawn = load_weights(
            AutoModelForMaskedLM, generator, optional=ANY, config=generator_config, **loading
        )
        if drawn:
            raise ValueError(
                f"generator {generator} lacks weights of a masked language model: {sorted(drawn)}; "
                "choose one that was trained to fill masks, such as distilbert-base-uncased"
            )
        return cls(config, towers[0], towers[1], masked_lm)

    @property
    def needs_masked_copies(self) -> bool:
        """Whether the loss reads ``mlm_input_ids``: `data.Masking` adds it, in training the trainer."""
        return self.config.rtd_loss_weight > 0

    def freeze(self) -> None:
        """Freeze the generator and what never gets a gradient."""
        super().freeze()
        freeze_pooler(self.discriminator)
        self.generator.requires_grad_(False)
        if self.config.rtd_loss_weight == 0:
            self.discriminator.requires_grad_(False)
            self.rtd_head.requires_grad_(False)

    def train(self, mode: bool = True) -> "DiffcseModel":
        """As everywhere; the generator stays in eval mode."""
        super().train(mode)
        self.generator.eval()
        return self

    def _auxiliary_loss(
        self, rows: dict[str, Tensor], pooled: Tensor, vectors: Tensor
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """λ·L_RTD; its parts are the loss and the accuracy on replaced and on kept tokens, over all processes."""
        if self.config.rtd_loss_weight == 0 or ("mlm_input_ids" not in rows and not self.training):
            return None, {}
        if "mlm_input_ids" not in rows:
            raise ValueError("DiffCSE edits masked copies, but the batch has no mlm_input_ids: use data.Masking")
        mask = rows["attention_mask"] if "attention_mask" in rows else torch.ones_like(rows["input_ids"])
        filled, replaced = self._edit({**rows, "attention_mask": mask})
        condition = vectors if self.config.condition == "projected" else pooled

        def detect(packed: bool, row: Tensor, replaced: Tensor, **bucket: Tensor) -> Tensor:
            """(n, l) → (n, 6): a row's entropy, positions, replaced ones found, in all, kept ones found, in all."""
            tokens, vectors = bucket["attention_mask"], condition[row[:, 0]]
            if packed:
                logits = packed_tokens(self.discriminator, self.rtd_head, vectors, **bucket)
            else:
                with condition_on(self.discriminator, vectors, tokens):
                    logits = self.rtd_head(self.discriminator(**bucket).last_hidden_state)
            logits = full_precision(logits)  # (n, l, 2)
            counted = tokens if self.config.rtd_positions == "tokens" else torch.ones_like(tokens)
            entropy = F.cross_entropy(logits.transpose(1, 2), replaced, reduction="none") * counted  # (n, l)
            right = logits.argmax(dim=-1) == replaced
            kept = (tokens != 0) & (replaced == 0)
            columns = [entropy, counted, right * replaced, replaced, right & kept, kept]
            return torch.stack([column.sum(dim=1).to(entropy.dtype) for column in columns], dim=1)

        inputs = {**rows, "input_ids": filled, "attention_mask": mask}
        # Numbers of the rows, cut with their tokens.
        numbers = torch.arange(len(filled), device=filled.device)[:, None].expand_as(filled)
        inputs = {**known_inputs(self.discriminator, inputs), "row": numbers, "replaced": replaced}
        padded = partial(detect, False)
        if self.config.rtd_positions == "tokens":
            sums = self.compute.packed_or(self.discriminator, inputs, partial(detect, True), padded).sum(dim=0)  # (6,)
        else:  # padding is counted
            sums = self.compute.in_parts(padded, inputs, trim=False).sum(dim=0)
        loss = global_mean(sums[0], sums[1].detach())
        _, _, found, changed, confirmed, kept = gather_rows(sums.detach()[None]).sum(dim=0).unbind()
        parts = {
            "rtd": loss.detach(),
            "rtd_accuracy_replaced": found / changed.clamp(min=1),
            "rtd_accuracy_kept": confirmed / kept.clamp(min=1),
        }
        return self.config.rtd_loss_weight * loss, parts

    @torch.no_grad()
    def _edit(self, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Fill the masked copies: → ids (N, L) and whether each differs from the original, 0 or 1, (N, L)."""
        original, mask = rows["input_ids"], rows["attention_mask"]
        length, reader = original.shape[1], self.generator.base_model

        def best_of(states: Tensor) -> Tensor:
            head = self.generator.cls if hasattr(self.generator, "cls") else self.generator.lm_head
            # on a CPU argmax takes twice the time of max
            return torch.cat([head(part).max(dim=-1, keepdim=True).indices for part in states.split(WORDS_AT_ONCE)])

        def packed(**bucket: Tensor) -> Tensor:
            return widened(packed_tokens(reader, best_of, **bucket)[..., 0])

        def padded(**bucket: Tensor) -> Tensor:
            return widened(self.generator(**bucket).logits.argmax(dim=-1))

        def widened(best: Tensor) -> Tensor:
            return F.pad(best, (0, length - best.shape[1]))  # (n, l) → (n, L)

        masked = {"input_ids": rows["mlm_input_ids"], "attention_mask": mask}
        best = self.compute.packed_or(reader, masked, packed, padded)  # (N, L)
        first = torch.arange(length, device=mask.device) == first_token(mask)[:, None]
        filled = torch.where((mask != 0) & ~first, best, original)
        replaced = (filled != original).long()
        if self.config.reference_padding:
            filled = filled * mask
        return filled, replaced


AutoConfig.register("diffcse", DiffcseConfig)
AutoModel.register(DiffcseConfig, DiffcseModel)
