"""The tokenizers of an ensemble's encoders as one: each sentence's tokens side by side, marked by encoder.

``input_ids`` = tokens of tokenizer 0, then of tokenizer 1, …; ``encoder_ids`` says whose each is. A row of this form
passes through everything that handles rows of tokens (sorting by length, padding, batches by token budget).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from cacse_trainer.models.configuration_ensemble import EnsembleConfig
from cacse_trainer.models.pretrained import load_tokenizer

FOLDER = "tokenizer_{}"


class TokenizerBundle:
    """Several tokenizers behind the few calls that embedding needs.

    Args:
        tokenizers: one an encoder, in the encoders' order.
    """

    pad_token_id = 0  # each encoder's own padding is put in when its tokens are taken out of the row
    pad_token_type_id = 0
    is_fast = False
    model_input_names = ("input_ids", "attention_mask", "encoder_ids")

    def __init__(self, tokenizers: Sequence[PreTrainedTokenizerBase]):
        self.tokenizers = list(tokenizers)

    @property
    def model_max_length(self) -> int:
        """The longest of the tokenizers' limits; each of them is cut to its own."""
        return max(tokenizer.model_max_length for tokenizer in self.tokenizers)

    @property
    def truncation_side(self) -> str:
        """Which end of a text is cut off."""
        return self.tokenizers[0].truncation_side

    def num_special_tokens_to_add(self) -> int:
        """The most special tokens that one of them puts around a text."""
        return max(tokenizer.num_special_tokens_to_add() for tokenizer in self.tokenizers)

    def __call__(
        self,
        text: str | Sequence[str],
        truncation: bool = False,
        max_length: int | None = None,
        padding: bool | str = False,
        return_tensors: str | None = None,
    ) -> dict:
        """Sentences → ``input_ids``, ``attention_mask``, ``encoder_ids``: a list of ids a sentence, or (N, L) tensors.

        Args:
            text: sentences, or one (which gives one row).
            truncation, max_length: cut each tokenizer's tokens to ``max_length``, or to its own limit.
            padding: true or ``longest`` pads the rows to the longest; needed for tensors.
            return_tensors: ``pt`` or None.
        """
        sentences = [text] if isinstance(text, str) else list(text)
        rows: list[list[int]] = [[] for _ in sentences]
        owners: list[list[int]] = [[] for _ in sentences]
        for i, tokenizer in enumerate(self.tokenizers):
            limit = min(max_length or tokenizer.model_max_length, tokenizer.model_max_length)
            found = tokenizer(sentences, truncation=truncation, max_length=limit)["input_ids"]
            for row, owner, ids in zip(rows, owners, found, strict=True):
                row.extend(ids)
                owner.extend([i] * len(ids))
        encoded: dict[str, list[list[int]]] = {
            "input_ids": rows,
            "attention_mask": [[1] * len(row) for row in rows],
            "encoder_ids": owners,
        }
        if padding:
            longest = max(map(len, rows), default=0)
            encoded = {name: [row + [0] * (longest - len(row)) for row in table] for name, table in encoded.items()}
        if return_tensors == "pt":
            return {name: torch.tensor(table, dtype=torch.long) for name, table in encoded.items()}
        return {name: table[0] for name, table in encoded.items()} if isinstance(text, str) else encoded

    def save_pretrained(self, folder: str | Path) -> None:
        """Each tokenizer to its own subfolder ``tokenizer_0``, ``tokenizer_1``, …"""
        for i, tokenizer in enumerate(self.tokenizers):
            tokenizer.save_pretrained(Path(folder) / FOLDER.format(i))

    @classmethod
    def from_pretrained(cls, path: str | Path, count: int, revision: str | None = None) -> "TokenizerBundle":
        """The ``count`` tokenizers of a folder or hub id."""
        return cls([load_tokenizer(path, subfolder=FOLDER.format(i), revision=revision) for i in range(count)])


def tokenizers_of(tokenizer: Any) -> list[PreTrainedTokenizerBase]:
    """The tokenizers that it is made of: a bundle's, else the one."""
    return tokenizer.tokenizers if isinstance(tokenizer, TokenizerBundle) else [tokenizer]


def load_tokenizer_of(path: str | Path, config: Any, **where: Any) -> Any:
    """The tokenizer of a folder or hub id, or the bundle of an ensemble whose encoders have their own.

    Args:
        path: folder or hub id.
        config: the model's config.
        where: ``subfolder``, ``revision``, … as for `load_tokenizer`.
    """
    if config.model_type == EnsembleConfig.model_type and config.own_tokenizers:
        return TokenizerBundle.from_pretrained(path, len(config.encoder_configs), where.get("revision"))
    return load_tokenizer(path, **where)


def unbound(backend: Tokenizer) -> Tokenizer:
    """A copy of a fast tokenizer without the truncation and the padding of its last call."""
    copied = Tokenizer.from_str(backend.to_str())
    copied.no_truncation()
    copied.no_padding()
    return copied


def clean_state(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a tokenizer does, as text; the truncation and padding of its last call left out."""
    if not tokenizer.is_fast:
        return str(sorted(tokenizer.get_vocab().items()))
    return unbound(tokenizer.backend_tokenizer).to_str()


def same_tokens(tokenizers: Sequence[PreTrainedTokenizerBase], max_length: float = math.inf) -> bool:
    """Whether all of them turn any sentence into the same tokens; cut at their own limits, or at ``max_length``."""
    return len({(clean_state(own), min(own.model_max_length, max_length)) for own in tokenizers}) == 1


def bundle(tokenizers: Sequence[PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase | TokenizerBundle:
    """One tokenizer where all do the same, else a bundle of them."""
    return tokenizers[0] if same_tokens(tokenizers) else TokenizerBundle(tokenizers)
