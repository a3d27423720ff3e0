"""A static table: a vector for each token, and a sentence's vector the mean of those of its tokens; no transformer."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.models.pretrained import STATIC, damage_named, find_file

POOLING = "static"
"""What is told for the pooling."""
WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"
LONGEST = 1_000_000
"""Tokens of a text: as good as no limit."""
OURS, LIBRARY = "embeddings", "embedding.weight"
"""What the table is called by model2vec, whose form is written, and by sentence-transformers."""


class StaticTable(nn.Module):
    """One row a token.

    Args:
        table: (vocabulary, dim) float32; a row of zeros for a token that says nothing.
    """

    def __init__(self, table: Tensor):
        super().__init__()
        self.weight = nn.Parameter(table, requires_grad=False)

    def get_input_embeddings(self) -> "StaticTable":
        """The table itself, as every model of transformers gives its own."""
        return self

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self.weight.device

    def embed(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """(N, L) → (N, dim): the mean over the tokens; zeros for a row without any."""
        mask = attention_mask.unsqueeze(-1).to(self.weight.dtype)  # (N, L, 1)
        return (self.weight[input_ids] * mask).sum(1) / mask.sum(1).clamp(min=1)

    @classmethod
    def from_folder(cls, path: str, subfolder: str = "") -> "StaticTable":
        """The table of a folder or hub id, as model2vec or sentence-transformers saved it.

        Raises:
            UserError: there is none, or it is damaged.
        """
        name = _inside(subfolder, WEIGHTS)
        file = _found(path, name)
        with user_errors(f"model {path}"), damage_named(path, {"subfolder": subfolder, "file": WEIGHTS}):
            tensors = load_file(file)
        known = [key for key in (OURS, LIBRARY) if key in tensors]
        if not known:
            raise UserError(f"model {path}: {name} holds {', '.join(sorted(tensors))}, and no {OURS}; download it anew")
        table = tensors[known[0]].float()
        if "mapping" in tensors:  # tokens that share a row
            table = table[tensors["mapping"].long()]
        if "weights" in tensors:
            table = table * tensors["weights"].float()[:, None]
        return cls(table)


def load_static_tokenizer(path: str, subfolder: str = "") -> PreTrainedTokenizerFast:
    """The tokenizer of a static table: it puts no special tokens around a text.

    Raises:
        UserError: there is none, or it is damaged.
    """
    file = _found(path, _inside(subfolder, TOKENIZER))
    with user_errors(f"model {path}"), damage_named(path, {"subfolder": subfolder, "file": TOKENIZER}):
        state = json.loads(file.read_text(encoding="utf-8"))
        backend = Tokenizer.from_str(json.dumps({**state, "post_processor": None, "truncation": None, "padding": None}))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=LONGEST)
    kind = state["model"]
    unknown = kind.get("unk_token") or (kind["vocab"][kind["unk_id"]][0] if kind.get("unk_id") is not None else None)
    if unknown is not None:
        tokenizer.unk_token = unknown
    tokenizer.pad_token_id = 0  # any token: those of the padding are not read
    return tokenizer


def _inside(subfolder: str, file: str) -> str:
    return file if subfolder in ("", ".") else f"{subfolder}/{file}"


def _found(path: str, name: str) -> Path:
    file = find_file(path, name)
    if file is None:
        raise UserError(f"model {path}: modules.json names a {STATIC} module, but there is no {name}; download it anew")
    return file
