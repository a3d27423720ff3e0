"""Weighted sums of several encoders' vectors, each with its own tokenizer: CACSE+UC without distillation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cacse_trainer.encoder_base import BaseEncoder
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
        self.normalizes = False

    def vectors(
        self,
        sentences: Sequence[str],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        description: str = "Encoding",
    ) -> np.ndarray:
        """(len(sentences), dim) float32, the weighted sum."""
        total: Any = 0
        for weight, encoder in zip(self.weights, self.encoders, strict=True):
            part = encoder.vectors(
                sentences,
                batch_size=batch_size,
                show_progress_bar=show_progress_bar,
                description=f"{description} ({Path(encoder.name).name})",
            )
            total = total + np.float32(weight) * part
        return total

    def fingerprint(self) -> str:
        """The encoders' hashes."""
        return "+".join(encoder.fingerprint() for encoder in self.encoders)

    def settings(self) -> dict[str, Any]:
        """Weights, and the encoders' settings."""
        return {"weights": self.weights, "encoders": [encoder.settings() for encoder in self.encoders]}
