"""A translation model of transformers as a function of sentences."""

from collections.abc import Sequence

import torch
from transformers import AutoModelForSeq2SeqLM

from cacse_trainer.errors import UserError, one_line, user_errors
from cacse_trainer.models.pretrained import load_tokenizer, load_weights


class Translator:
    """A translation model as a function of sentences.

    Args:
        path: folder or hub id of a sequence-to-sequence model, such as ``Helsinki-NLP/opus-mt-en-fr``.
        device: where it runs.
        batch_size: sentences translated together.
        num_beams: of beam search; 1 is greedy.
        max_length: longer sentences are cut to so many tokens, and no more are generated.

    Raises:
        UserError: the model or its tokenizer cannot be loaded, or a number is less than 1.
    """

    def __init__(
        self, path: str, device: str = "cpu", batch_size: int = 32, num_beams: int = 1, max_length: int = 128
    ) -> None:
        for what, number in (("batch_size", batch_size), ("num_beams", num_beams), ("max_length", max_length)):
            if number < 1:
                raise UserError(f"{what} is {number}; it must be at least 1")
        try:
            with user_errors(f"translation model {path}"):
                self.tokenizer = load_tokenizer(path)
                model, _ = load_weights(AutoModelForSeq2SeqLM, path, dtype=torch.float32)
                self.model = model.eval().to(device)
        except ImportError as error:
            raise UserError(
                f"translation model {path}: a library is missing; pip install 'cacse-trainer[translation]' "
                f"({one_line(error)[:120]})"
            ) from error
        self.batch_size, self.num_beams, self.max_length = batch_size, num_beams, max_length

    def __call__(self, sentences: Sequence[str]) -> list[str]:
        """Translations in the order of the sentences; batches are of similar length."""
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        found = [""] * len(sentences)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            texts = [sentences[i] for i in rows]
            encoded = self.tokenizer(
                texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
            )
            inputs = {name: encoded[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
            with torch.inference_mode():
                ids = self.model.generate(
                    **inputs, num_beams=self.num_beams, max_new_tokens=self.max_length, do_sample=False
                )
            for i, text in zip(rows, self.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
                found[i] = " ".join(text.split())
        return found
