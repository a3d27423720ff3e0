"""Copies of sentences with most of their words deleted: what TSDAE's encoder reads."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cacse_trainer.data.collator import ContrastiveCollator, text_id
from cacse_trainer.data.tokens import pad_rows, tokenise
from cacse_trainer.errors import UserError

RAW = "raw_text"
DAMAGED = "damaged_"
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
"""What stands between spaces; where words are written without any, a character."""


def delete_words(text: str, ratio: float, random: np.random.Generator) -> str:
    """The text without so large a share of its words, each drawn by itself; at least one of them stays.

    Source: Wang et al. 2021 (arXiv 2104.06979), whose best share is 0.6.
    """
    words = _WORD.findall(text)
    if not words:
        return text
    stays = random.random(len(words)) >= ratio
    stays[random.integers(len(words))] |= not stays.any()
    return " ".join(word for word, kept in zip(words, stays, strict=True) if kept)


class RawCollator(ContrastiveCollator):
    """As `ContrastiveCollator` on rows of ``text``, each seen once, with the texts themselves in ``raw_text``.

    Returns:
        On a call with B rows: ``input_ids`` (B, L) and so on, ``text_ids`` (B,), and ``raw_text``, B strings.

    Raises:
        UserError: rows without ``text``.
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if "text" not in rows[0]:
            raise UserError(
                f"TSDAE reads single sentences (a column text), a row has {', '.join(rows[0])}; name one column with "
                "text_columns"
            )
        batch = super().__call__([{"text": row["text"]} for row in rows])
        return {**{name: tensor[:, 0] for name, tensor in batch.items()}, RAW: [row["text"] for row in rows]}


class Deletion:
    """A damaged copy of each text of a batch, drawn anew at each step from the step's numbers and the text alone.

    Args:
        tokenizer, max_seq_length: as for the collator.
        ratio: share of the words that are deleted.

    Returns:
        On a call with a batch of `RawCollator` and numbers (a seed, the step, …): the batch without ``raw_text``, with
        ``damaged_input_ids`` (B, L') and so on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_seq_length: int, ratio: float) -> None:
        self.tokenizer, self.max_seq_length, self.ratio = tokenizer, max_seq_length, ratio

    def __call__(self, batch: Mapping[str, Any], *numbers: int) -> dict[str, Any]:
        texts = [delete_words(text, self.ratio, _random(text, numbers)) for text in batch[RAW]]
        found = pad_rows(self.tokenizer, tokenise(self.tokenizer, texts, self.max_seq_length))
        device = batch["input_ids"].device
        damaged: dict[str, Tensor] = {f"{DAMAGED}{name}": ids.to(device) for name, ids in found.items()}
        return {**{name: value for name, value in batch.items() if name != RAW}, **damaged}


def _random(text: str, numbers: tuple[int, ...]) -> np.random.Generator:
    digest = hashlib.blake2b(repr((*numbers, text_id(text))).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
