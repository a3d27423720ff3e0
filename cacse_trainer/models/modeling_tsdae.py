"""TSDAE: the sentence vector of a damaged sentence must hold enough for a decoder to rebuild the whole one.

Most of a sentence's words are deleted; the encoder reads the rest, and a decoder of a few layers, which sees nothing of
it but the one pooled vector by cross-attention, predicts each token of the whole sentence from those before it:
``L = mean over the tokens of CE(decoder(t_<i, vector), t_i)``. No sentence is compared with another.

The decoder is of the encoder's kind: its layers and positions start as the encoder's first ones, its word embeddings,
below and in the scores above it, are the encoder's own. The release ties the layers, too.

Source: Wang, Reimers and Gurevych 2021 (arXiv 2104.06979); sentence-transformers' DenoisingAutoEncoderLoss.
"""

import copy
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from cacse_trainer.compute.encoder_tools import freeze_pooler, global_mean, known_inputs
from cacse_trainer.compute.fast_paths import switch_paths
from cacse_trainer.errors import UserError
from cacse_trainer.losses.contrastive import full_precision
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.models.configuration_sentence_embedding import SentenceEmbeddingConfig
from cacse_trainer.models.configuration_tsdae import TsdaeConfig
from cacse_trainer.models.heads import FreshLinear
from cacse_trainer.models.modeling_sentence_embedding import SentenceEmbeddingModel
from cacse_trainer.models.outputs import EmbeddingOutput
from cacse_trainer.models.pretrained import build_encoder


def decoder_config(config: TsdaeConfig) -> PretrainedConfig:
    """The encoder's config with cross-attention and the decoder's number of layers; its own word table stays unused."""
    own = copy.deepcopy(config.encoder_config)
    size = (own.pad_token_id or 0) + 1
    own.update(
        {
            "is_decoder": True,
            "add_cross_attention": True,
            "num_hidden_layers": config.tsdae_layers,
            "vocab_size": size,
            "use_cache": False,
        }
    )
    return own


class TsdaeModel(SentenceEmbeddingModel):
    """A single tower trained with TSDAE's loss.

    Args:
        config: a `TsdaeConfig`.
        encoder: a loaded encoder, from which the decoder starts, too; built with random weights when not given.

    Raises:
        ValueError: the encoder's kind has no decoder with cross-attention.
    """

    config_class: type[SentenceEmbeddingConfig] = TsdaeConfig

    def __init__(self, config: TsdaeConfig, encoder: PreTrainedModel | None = None, lm_head: None = None):
        super().__init__(config, encoder)
        kind = config.encoder_config.model_type
        self.decoder = build_encoder(decoder_config(config))
        if "encoder_hidden_states" not in inspect.signature(self.decoder.forward).parameters:
            raise ValueError(f"TSDAE needs a decoder with cross-attention, which {kind} has not; BERT and RoBERTa have")
        self.transform = FreshLinear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.word_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.post_init()
        if encoder is not None:
            start, state = encoder.state_dict(), self.decoder.state_dict()
            fitting = {
                name: start[name] for name, own in state.items() if name in start and start[name].shape == own.shape
            }
            self.decoder.load_state_dict(fitting, strict=False)
        self.freeze()

    @property
    def deletion(self) -> float:
        """Share of the words that are deleted of the copy that is encoded; the trainer makes it (`data.deletion`)."""
        return self.config.tsdae_deletion

    def freeze(self) -> None:
        """Freeze what never gets a gradient: poolers, and the decoder's own word table, which stays unread."""
        super().freeze()
        freeze_pooler(self.decoder)
        self.decoder.get_input_embeddings().requires_grad_(False)

    def readers(self) -> list[Any]:
        """The encoder: the decoder's own word table is unread."""
        return [self.encoder]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As `SentenceModel.resize_token_embeddings`; new words have a bias of 0, as all had."""
        table = super().resize_token_embeddings(*args, **kwargs)
        more = table.num_embeddings - len(self.word_bias)
        if more != 0:
            self.word_bias = nn.Parameter(F.pad(self.word_bias.detach(), (0, more)))
        return table

    def use(self, compute: ComputeSettings) -> None:
        """As `SentenceModel.use`; the fast paths are the encoder's, they know no causal attention."""
        self.compute = compute
        switch_paths(self.encoder, compute.fast_paths)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        damaged_input_ids: Tensor | None = None,
        damaged_attention_mask: Tensor | None = None,
        damaged_token_type_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> EmbeddingOutput | tuple[Any, ...]:
        """(B, L) whole sentences and (B, L') damaged ones → the loss; whole ones alone → their embedding.

        Args:
            input_ids, attention_mask, token_type_ids: of the whole sentences.
            damaged_input_ids, damaged_attention_mask, damaged_token_type_ids: of their damaged copies.
            output_hidden_states, output_attentions: of the encoder, for the rows that it reads; see `SentenceModel`.
            return_dict: see `SentenceModel`.
        """
        whole = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        asked = self.asked(output_hidden_states, output_attentions)
        if damaged_input_ids is None:
            output = self._embedding(whole, asked)
        else:
            damaged = {
                "input_ids": damaged_input_ids,
                "attention_mask": damaged_attention_mask,
                "token_type_ids": damaged_token_type_ids,
            }
            vectors, layers = self.compute.pooled(self.encoder, self.config.pooling, damaged, asked)
            loss = self._rebuild(vectors, {name: rows for name, rows in whole.items() if rows is not None})
            output = EmbeddingOutput(loss=loss, losses={"rebuilding": loss.detach()}, embeddings=vectors, **layers)
        return self.returned(output, return_dict)

    def _rebuild(self, vectors: Tensor, whole: dict[str, Tensor]) -> Tensor:
        """(B, H) vectors and (B, L) inputs → the mean cross-entropy of the tokens after the first, of all processes."""
        whole.setdefault("attention_mask", torch.ones_like(whole["input_ids"]))
        words = self.encoder.get_input_embeddings()

        def score(vectors: Tensor, input_ids: Tensor, attention_mask: Tensor, **bucket: Tensor) -> Tensor:
            """(n, 1, H), (n, l) → (n, 2): sum of the cross-entropies of each row's tokens, and their number."""
            before = {name: rows[:, :-1] for name, rows in bucket.items()}
            states = self.decoder(
                inputs_embeds=words(input_ids[:, :-1]),
                attention_mask=attention_mask[:, :-1],
                encoder_hidden_states=vectors,
                **before,
            ).last_hidden_state
            chosen = attention_mask[:, 1:].bool()
            places = chosen.nonzero(as_tuple=True)  # found once: a device is waited for each time
            hidden = self.norm(F.gelu(self.transform(states[places])))
            logits = full_precision(F.linear(hidden, words.weight, self.word_bias))  # (m, vocabulary)
            entropies = F.cross_entropy(logits, input_ids[:, 1:][places], reduction="none")
            per_row = entropies.new_zeros(len(chosen)).index_add(0, places[0], entropies)
            return torch.stack([per_row, chosen.sum(dim=1).to(per_row.dtype)], dim=1)

        inputs = {**known_inputs(self.decoder, whole), "vectors": vectors[:, None]}
        total, count = self.compute.in_parts(score, inputs).sum(dim=0).unbind()
        return global_mean(total, count.detach())

    def effective_negatives(self, batch_size: int) -> int:
        """None: no sentence is compared with another."""
        return 0

    def check_rows(self, columns: Sequence[str], labels: Iterable[float] | None) -> None:
        """Refuse anything but single sentences."""
        if labels is not None or len(columns) != 1:
            raise UserError(
                f"training text: TSDAE rebuilds single sentences, got {', '.join(columns)}; name one column"
            )


AutoConfig.register("tsdae", TsdaeConfig)
AutoModel.register(TsdaeConfig, TsdaeModel)
