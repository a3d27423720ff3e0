"""Weighted sums of several encoders' vectors, each with its own tokenizer: CACSE+UC without distillation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.embedder import Advance
from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.encoding.vectors.precision import normalized
from cacse_trainer.errors import UserError


class WeightedEncoders(BaseEncoder):
    """``Σ_i w_i · v_i``, the weighted sum of several encoders' vectors; each has its own tokenizer.

    The vectors are those that each encoder's folder states: of length 1 where it scales them.

    Args:
        encoders: of one width.
        weights: one number each; default: 1 each, the plain sum.

    Raises:
        UserError: another number of weights, or different widths.
    """

    def __init__(self, encoders: Sequence[BaseEncoder], weights: Sequence[float] | None = None):
        super().__init__({})
        self.encoders = list(encoders)
        self.weights = list(weights) if weights is not None else [1.0] * len(self.encoders)
        if len(self.weights) != len(self.encoders):
            raise UserError(f"weights: {len(self.weights)} for {len(self.encoders)} models; give one number a model")
        widths = [encoder.vectors(["a"]).shape[1] for encoder in self.encoders]
        if len(set(widths)) > 1:
            named = ", ".join(f"{encoder.name} {width}" for encoder, width in zip(self.encoders, widths, strict=True))
            raise UserError(f"the models' vectors differ in width and cannot be summed: {named}")
        self.name = " + ".join(f"{w:g}·{e.name}" for w, e in zip(self.weights, self.encoders, strict=True))
        self.pooling = " + ".join(encoder.pooling for encoder in self.encoders)
        self.pooling_guessed = any(encoder.pooling_guessed for encoder in self.encoders)
        self.normalizes = False

    @property
    def query_prompt(self) -> str | None:
        """The encoders' own; None where each has its default one.

        Raises:
            UserError: they differ.
        """
        return self._shared([encoder.query_prompt for encoder in self.encoders])

    @property
    def document_prompt(self) -> str | None:
        """As `query_prompt`.

        Raises:
            UserError: they differ.
        """
        return self._shared([encoder.document_prompt for encoder in self.encoders])

    def _shared(self, prompts: list[str | None]) -> str | None:
        if not any(encoder.prompt_facts(own) for encoder, own in zip(self.encoders, prompts, strict=True)):
            return None
        if len(set(prompts)) > 1:
            raise UserError(f"{self.name}: the models' prompts differ, and their sum has none; take one of them")
        return prompts[0]

    @property
    def max_seq_length(self) -> int:
        """The smallest of the encoders' limits; what is set holds for each of them."""
        return min(encoder.max_seq_length for encoder in self.encoders)

    @max_seq_length.setter
    def max_seq_length(self, tokens: int) -> None:
        for encoder in self.encoders:
            encoder.max_seq_length = tokens
        self.close()

    @property
    def device(self) -> torch.device:
        """Where the first encoder is."""
        return self.encoders[0].device

    def to(self, device: torch.device | str) -> "WeightedEncoders":
        """Move all encoders."""
        for encoder in self.encoders:
            encoder.to(device)
        return self

    def recipe(self) -> Callable[..., "WeightedEncoders"]:
        """A function of ``device`` that loads the same encoders in another process."""
        return partial(_load_sum, [encoder.recipe() for encoder in self.encoders], self.weights)

    def begin(self, sentences: Sequence[str], **settings: Any) -> Callable[[Advance], np.ndarray]:
        """As `BaseEncoder.begin`, for each encoder; the weighted sum."""
        parts = [encoder.begin(sentences, **settings) for encoder in self.encoders]

        def embed(advance: Advance) -> np.ndarray:
            total: Any = 0
            for encoder, weight, part in zip(self.encoders, self.weights, parts, strict=True):
                vectors = part(lambda count: None)
                total = total + np.float32(weight) * (normalized(vectors) if encoder.normalizes else vectors)
            advance(len(sentences))
            return total

        return embed

    def fingerprint(self) -> str:
        """The encoders' hashes."""
        return "+".join(encoder.fingerprint() for encoder in self.encoders)

    def settings(self) -> dict[str, Any]:
        """Weights, and the encoders' settings."""
        return {"weights": self.weights, "encoders": [encoder.settings() for encoder in self.encoders]}

    def identity(self) -> dict[str, Any]:
        """Weights, and the encoders' own."""
        return {"weights": self.weights, "encoders": [encoder.identity() for encoder in self.encoders]}


def open_encoders(
    models: Sequence[str],
    poolings: Sequence[str | None] | None = None,
    weights: Sequence[float] | None = None,
    *,
    adapter: str | None = None,
    **options: Any,
) -> BaseEncoder:
    """A model, or the weighted sum of several.

    Args:
        models: folders or hub ids.
        poolings: one, or one a model; None: what the folders state.
        weights: one number a model; None: the one model itself, or the plain sum.
        adapter: of a single model.
        options: more arguments of `SentenceEncoder`, the same for all.

    Raises:
        UserError: another number of weights or poolings than models; or see `SentenceEncoder`.
    """
    poolings = list(poolings or [None])
    if len(poolings) == 1:
        poolings = poolings * len(models)
    if len(poolings) != len(models):
        raise UserError(f"pooling: {len(poolings)} for {len(models)} models; give one, or one a model")
    if adapter is not None and len(models) > 1:
        raise UserError("adapter: belongs to one model; merge it first to use it in a sum")
    encoders = [
        SentenceEncoder(model, pooling, adapter=adapter, **options)
        for model, pooling in zip(models, poolings, strict=True)
    ]
    return encoders[0] if len(encoders) == 1 and weights is None else WeightedEncoders(encoders, weights)


def _load_sum(recipes: Sequence[Callable[..., Any]], weights: Sequence[float], device: Any) -> WeightedEncoders:
    return WeightedEncoders([recipe(device=device) for recipe in recipes], weights)
