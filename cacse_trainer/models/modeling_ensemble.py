"""Several encoders as one: the weighted sum of their sentence embeddings.

A trained CACSE pair is exported as one (the plain sum), and so is CACSE+UC, ``α·(h_A + h_B) + (1-α)·h_UC``, whose third
encoder may have a tokenizer of its own.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from cacse_trainer.compute.encoder_tools import loaded_or, run_encoder
from cacse_trainer.compute.pooling import pool
from cacse_trainer.compute.reading import sentence_vectors
from cacse_trainer.models.base import Export, Part, TowerSum, as_config
from cacse_trainer.models.configuration_ensemble import EnsembleConfig
from cacse_trainer.models.outputs import EmbeddingOutput, joined, layers_of
from cacse_trainer.models.pretrained import attention_for, build_encoder


def select_tokens(input_ids: Tensor, chosen: Tensor, pad_token_id: int) -> dict[str, Tensor]:
    """The chosen tokens of each row, moved to its left end and padded on the right.

    Args:
        input_ids: (N, L).
        chosen: (N, L), true where a token is taken.
        pad_token_id: fills the shorter rows.

    Returns:
        ``input_ids`` and ``attention_mask``, (N, l), l being the largest number of chosen tokens in a row, at
        least 1.

    >>> select_tokens(torch.tensor([[7, 8, 9]]), torch.tensor([[False, True, True]]), 0)["input_ids"]
    tensor([[8, 9]])
    """
    lengths = chosen.sum(dim=1)  # (N,)
    longest = max(1, int(lengths.max()))
    order = torch.argsort((~chosen).int(), dim=1, stable=True)[:, :longest]  # (N, l)
    mask = torch.arange(longest, device=chosen.device) < lengths[:, None]
    ids = input_ids.gather(1, order).masked_fill(~mask, pad_token_id)
    return {"input_ids": ids, "attention_mask": mask.long()}


def weighed(part: Part, vectors: Tensor) -> Tensor:
    """A part's pooled states, (N, H), as they are summed."""
    return part.weight * (F.normalize(vectors, dim=-1) if part.normalized else vectors)


class EnsembleModel(TowerSum):
    """``embedding = Σ_i w_i · pool_i(h_i)`` over the encoders i, pooled states scaled to length 1 where so configured.

    Encoders with one tokenizer read the same tokens. With tokenizers of their own, a row holds the tokens of all of
    them side by side, and ``encoder_ids`` says whose each token is; `TokenizerBundle` makes such rows.

    Args:
        config: an `EnsembleConfig`.
        encoders: loaded encoders; built with random weights from the config when not given.
    """

    config_class = EnsembleConfig
    export_name = "ensemble"

    def __init__(self, config: EnsembleConfig, encoders: Sequence[PreTrainedModel] | None = None):
        super().__init__(config)
        configs = [as_config(fields) for fields in config.encoder_configs]
        for encoder_config in configs:
            encoder_config._attn_implementation = attention_for(encoder_config, config._attn_implementation)
        given: Sequence[Any] = [None] * len(configs) if encoders is None else encoders
        built = [partial(build_encoder, encoder_config) for encoder_config in configs]
        self.encoders = nn.ModuleList(loaded_or(*pair) for pair in zip(given, built, strict=True))
        self.post_init()
        for i, encoder in enumerate(self.encoders):  # post_init looks for tied weights among the direct children
            tied: Any = encoder.all_tied_weights_keys
            self.all_tied_weights_keys |= {f"encoders.{i}.{one}": f"encoders.{i}.{it}" for one, it in tied.items()}

    @classmethod
    def from_encoders(
        cls,
        encoders: Sequence[PreTrainedModel],
        weights: list[float] | None = None,
        poolings: list[str] | None = None,
        own_tokenizers: bool = False,
        normalized: list[bool] | None = None,
    ) -> "EnsembleModel":
        """An ensemble of models in memory; default weights 1 and pooling cls. See `EnsembleConfig`."""
        configs: list[Any] = [encoder.config for encoder in encoders]
        config = EnsembleConfig(configs, weights, poolings, own_tokenizers, normalized, dtype=encoders[0].dtype)
        return cls(config, encoders)

    def readers(self) -> list[Any]:
        """Its encoders."""
        return list(self.encoders)

    def check_resizable(self) -> None:
        """Refuse it where each encoder has a vocabulary of its own."""
        if self.config.own_tokenizers:
            raise ValueError(
                "the encoders have tokenizers of their own: resize each one's embeddings before they are an ensemble"
            )

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As `SentenceModel.resize_token_embeddings`."""
        table = super().resize_token_embeddings(*args, **kwargs)
        for fields, encoder in zip(self.config.encoder_configs, self.readers(), strict=True):
            fields["vocab_size"] = encoder.config.vocab_size
        return table

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        encoder_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> EmbeddingOutput | tuple[Any, ...]:
        """(N, L) → ``sentence_embedding`` (N, H), and ``last_hidden_state`` (N, L, H) where ``config.sums_tokens``.

        Args:
            input_ids: (N, L).
            attention_mask, return_dict: see `SentenceModel`.
            output_hidden_states, output_attentions: likewise, for ``config.sums_tokens`` and encoders of one depth: the
                sums at each layer, as ``last_hidden_state`` is one; the encoders' heads side by side.
            token_type_ids: (N, L); unused with tokenizers of their own.
            encoder_ids: (N, L), the number of the encoder that reads each token; with tokenizers of their own only.

        Raises:
            ValueError: ``encoder_ids`` are missing, or given where the tokenizer is shared; layers are asked for that
                have no sum.
        """
        asked = self.asked(output_hidden_states, output_attentions)
        if asked:
            self._check_layers()
        vectors: Any = 0
        hidden: Any = 0
        layers = []
        for part, inputs in self._each(input_ids, attention_mask, token_type_ids, encoder_ids):
            shown = run_encoder(part.encoder, inputs, **asked)
            layers.append(layers_of(shown, asked))
            states = shown.last_hidden_state  # (N, l, H)
            vectors = vectors + weighed(part, pool(part.pooling, states, attention_mask=inputs["attention_mask"]))
            if self.config.sums_tokens:
                hidden = hidden + part.weight * states
        output = EmbeddingOutput(
            last_hidden_state=hidden if self.config.sums_tokens else None,
            sentence_embedding=vectors,
            **joined(layers, self.config.weights),
        )
        return self.returned(output, return_dict)

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        encoder_ids: Tensor | None = None,
    ) -> Tensor:
        """(N, L) → (N, H)."""
        vectors: Any = 0
        for part, inputs in self._each(input_ids, attention_mask, token_type_ids, encoder_ids):
            vectors = vectors + weighed(part, sentence_vectors(part.encoder, part.pooling, inputs))
        return vectors

    @property
    def stated_pooling(self) -> str:
        """The encoders' poolings, each named once."""
        return " + ".join(dict.fromkeys(self.config.poolings))

    def parts(self) -> list[Part]:
        """Its encoders."""
        config = self.config
        rows = zip(self.encoders, config.poolings, config.weights, config.scaled, strict=True)
        return [Part(*row) for row in rows]

    def exports(self, title: str) -> list[Export]:
        """Itself; a sum at each token is what sentence-transformers' own modules can express."""
        config = self.config
        names = [f"unit {part.pooling}" if part.normalized else part.pooling for part in self.parts()]
        terms = " + ".join(f"{config.weights[i]:g}·{name}(encoder {i})" for i, name in enumerate(names))
        pooling = config.poolings[0] if config.sums_tokens else ", ".join(config.poolings)
        what, own_module = f"An ensemble: the vector is {terms}.", not config.sums_tokens
        return [
            Export(self.export_name, title, what, self, self.embed, pooling, needs_package=True, own_module=own_module)
        ]

    def _check_layers(self) -> None:
        depths = {encoder.config.num_hidden_layers for encoder in self.readers()}
        if not self.config.sums_tokens or len(depths) > 1:
            raise ValueError(
                "the encoders of this ensemble have no layers in common (depths, tokenizers, poolings): ask one of its "
                "encoders for hidden states and attentions"
            )

    def _each(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        encoder_ids: Tensor | None,
    ) -> Iterator[tuple[Part, dict[str, Tensor | None]]]:
        """Each part with its inputs; raises as `forward` does."""
        if self.config.own_tokenizers != (encoder_ids is not None):
            raise ValueError(
                "encoder_ids are needed: the encoders have tokenizers of their own, tokenise with TokenizerBundle"
                if self.config.own_tokenizers
                else "encoder_ids were given to an ensemble with one tokenizer"
            )
        tokens = attention_mask.bool() if attention_mask is not None else torch.ones_like(input_ids, dtype=torch.bool)
        inputs: Any = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        for i, part in enumerate(self.parts()):
            if encoder_ids is not None:
                inputs = select_tokens(input_ids, tokens & (encoder_ids == i), part.encoder.config.pad_token_id or 0)
            yield part, inputs


AutoConfig.register("cacse_ensemble", EnsembleConfig)
AutoModel.register(EnsembleConfig, EnsembleModel)
