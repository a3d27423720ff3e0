"""A weighted sum of encoders, each with its own tokenizer and pooling, as one sentence-transformers module.

This file is copied into an exported ensemble's folder, where sentence-transformers loads it with
``trust_remote_code=True``.
It needs torch, transformers and safetensors only.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

ENCODER_HALVES = ("t5", "mt5", "umt5")
"""Encoder-decoders whose encoder is a model of its own."""


class WeightedEncoders(nn.Module):
    """``embedding = Σ_i w_i · pool_i(encoder_i(tokens_i))``, read from a folder's config.json and model.safetensors."""

    def __init__(self, folder: str):
        super().__init__()
        path = Path(folder)
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        limits = json.loads((path / "sentence_bert_config.json").read_text(encoding="utf-8"))
        self.folder = folder
        self.weights, self.poolings = config["weights"], config["poolings"]
        self.normalized = config.get("normalized") or [False] * len(self.weights)
        self.max_seq_length: int = limits["max_seq_length"]
        encoders: list[Any] = []
        for fields in config["encoder_configs"]:
            kind = fields.pop("model_type")
            auto = AutoModelForTextEncoding if kind in ENCODER_HALVES else AutoModel
            encoders.append(auto.from_config(AutoConfig.for_model(kind, **fields), dtype=torch.float32))
        self.encoders = nn.ModuleList(encoders)
        load_model(self, path / "model.safetensors")  # a tied weight stands there once
        count = len(self.encoders)
        if config["own_tokenizers"]:
            self.tokenizers = [AutoTokenizer.from_pretrained(path / f"tokenizer_{i}") for i in range(count)]
        else:
            self.tokenizers = [AutoTokenizer.from_pretrained(path)] * count
        self.tokenizer = self.tokenizers[0]
        self.width: int = encoders[0].config.hidden_size

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Sentences → ``input_ids_0``, ``attention_mask_0``, ``input_ids_1``, …, (N, L_i) each."""
        sentences = [(prompt or "") + sentence for sentence in inputs]
        features = {}
        for i, tokenizer in enumerate(self.tokenizers):
            encoded = tokenizer(
                sentences,
                truncation=True,
                max_length=min(self.max_seq_length, tokenizer.model_max_length),
                padding=True,
                return_tensors="pt",
            )
            for name in ("input_ids", "attention_mask"):
                ids = encoded[name]
                blank = torch.zeros(len(sentences), 1, dtype=torch.long)  # a column of padding where nobody has a token
                features[f"{name}_{i}"] = ids if ids.shape[1] > 0 else blank
        return features

    def tokenize(self, texts: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What older versions of sentence-transformers call instead of `preprocess`."""
        return self.preprocess(texts)

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Adds ``sentence_embedding`` (N, H)."""
        total: Any = 0
        parts = zip(self.encoders, self.weights, self.poolings, self.normalized, strict=True)
        for i, (encoder, weight, pooling, scaled) in enumerate(parts):
            mask = features[f"attention_mask_{i}"]
            states = encoder(input_ids=features[f"input_ids_{i}"], attention_mask=mask).last_hidden_state
            vectors = pooled(pooling, states, mask).masked_fill(~mask.bool().any(dim=1, keepdim=True), 0.0)
            total = total + weight * (torch.nn.functional.normalize(vectors, dim=-1) if scaled else vectors)
        return {**features, "sentence_embedding": total}

    def get_sentence_embedding_dimension(self) -> int:
        """H."""
        return self.width

    get_embedding_dimension = get_word_embedding_dimension = get_sentence_embedding_dimension

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Refused: the folder that this was loaded from is the saved form."""
        raise NotImplementedError(f"copy the folder {self.folder} instead")

    @staticmethod
    def load(folder: str) -> "WeightedEncoders":
        """Read a folder."""
        return WeightedEncoders(folder)


def pooled(name: str, states: Tensor, mask: Tensor) -> Tensor:
    """(N, L, H), (N, L) → (N, H); of a row without tokens it is left open."""
    rows = torch.arange(len(states), device=states.device)
    if name == "cls":
        return states[rows, mask.argmax(dim=1)]
    if name == "last_token":
        return states[rows, mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)]
    if name == "max":
        return states.masked_fill(mask[:, :, None] == 0, torch.finfo(states.dtype).min).amax(dim=1)
    weights = mask[:, :, None].to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
