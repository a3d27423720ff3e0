"""Weighted sums of several encoders' vectors, each with its own tokenizer: CACSE+UC without distillation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.embedder import Advance
from cacse_trainer.errors import UserError


class WeightedEncoders(BaseEncoder):
    """``Σ_i w_i · v_i``, the weighted sum of several encoders' vectors; each has its own tokenizer.

    Args:
        encoders: of one width.
        weights: one number each; default: 1 each, the plain sum.

    Raises:
        UserError: another number of weights, or different widths.
    """

    def __init__(self, encoders: Sequence[BaseEncoder], weights: Sequence[float] | None = None):
        super().__init__()
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

    def begin(
        self, sentences: Sequence[str], *, batch_size: int | None = None, max_length: int | None = None
    ) -> Callable[[Advance], np.ndarray]:
        """Tokenise for each; what is returned runs the models: (len(sentences), dim) float32, the weighted sum."""
        parts = [encoder.begin(sentences, batch_size=batch_size, max_length=max_length) for encoder in self.encoders]

        def embed(advance: Advance) -> np.ndarray:
            total: Any = 0
            for weight, part in zip(self.weights, parts, strict=True):
                total = total + np.float32(weight) * part(lambda count: None)
            advance(len(sentences))
            return total

        return embed

    def fingerprint(self) -> str:
        """The encoders' hashes."""
        return "+".join(encoder.fingerprint() for encoder in self.encoders)

    def settings(self) -> dict[str, Any]:
        """Weights, and the encoders' settings."""
        return {"weights": self.weights, "encoders": [encoder.settings() for encoder in self.encoders]}


def _load_sum(recipes: Sequence[Callable[..., Any]], weights: Sequence[float], device: Any) -> WeightedEncoders:
    return WeightedEncoders([recipe(device=device) for recipe in recipes], weights)
