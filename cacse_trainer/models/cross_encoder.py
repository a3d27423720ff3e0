"""A cross-encoder of transformers as a function of text pairs: both texts go through the model together."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.models.pretrained import load_config, load_tokenizer, load_weights


class CrossEncoder:
    """A sequence classifier with one label as a function of pairs.

    Args:
        path: folder or hub id, such as ``cross-encoder/ms-marco-MiniLM-L6-v2``.
        device: where it runs.
        batch_size: pairs that are scored together.
        max_length: longer pairs are cut to so many tokens, the longer text of the two first.

    Raises:
        UserError: the model or its tokenizer cannot be loaded, it has another number of labels, or a number is less
            than 1.
    """

    def __init__(
        self, path: str, device: torch.device | str = "cpu", batch_size: int = 64, max_length: int = 512
    ) -> None:
        for what, number in (("batch_size", batch_size), ("max_length", max_length)):
            if number < 1:
                raise UserError(f"{what} is {number}; it must be at least 1")
        with user_errors(f"cross-encoder {path}"):
            config = load_config(path)
            if config.num_labels != 1:
                raise UserError(
                    f"cross-encoder {path}: has {config.num_labels} labels; give one that scores a pair by a single one"
                )
            self.tokenizer = load_tokenizer(path)
            model, _ = load_weights(
                AutoModelForSequenceClassification, path, optional="(?!)", config=config, dtype=torch.float32
            )
        self.model = model.eval().to(device)
        self.batch_size = batch_size
        self.max_length = min(max_length, self.tokenizer.model_max_length)

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """(n,) float32 logits in the order of the pairs; batches are of similar length."""
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
        found = np.empty(len(pairs), dtype=np.float32)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            first, second = ([pairs[i][side] for i in rows] for side in (0, 1))
            inputs = self.tokenizer(
                first, second, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
            ).to(self.model.device)
            with torch.inference_mode():
                found[rows] = self.model(**inputs).logits[:, 0].float().cpu().numpy()
        return found
