"""An exported folder's graph as an encoder: another engine than torch on the CPU, in float32 or with int8 weights."""

import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.embedder import Embed, length_limit
from cacse_trainer.encoding.sentence_transformers import read_modules
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.files import sha256_of
from cacse_trainer.models.pretrained import load_config, load_tokenizer
from cacse_trainer.settings.resources import resolve_resource

OUTPUT = "sentence_embedding"
"""The graphs' output that is the vector."""


class GraphEncoder(BaseEncoder):
    """The graphs that ``cacse-trainer export --format …`` writes into a folder; pooling and layers are inside.

    Args:
        path: the exported folder, with the format's folder in it.
        backend: one of `graphs`; default: the first, float32.
        device: cpu; there is no other.
        max_seq_length, tokens_per_batch, truncate_dim: as for `SentenceEncoder`.

    Raises:
        UserError: the engine is not installed, there is no such graph or it is damaged, or another device.
    """

    format: ClassVar[str]
    """The name of the flag's value, of the folder and of the extra."""
    graphs: ClassVar[Mapping[str, str]]
    """The graphs' files by backend, float32 first."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        backend: str | None = None,
        device: torch.device | str | None = None,
        *,
        max_seq_length: int | None = None,
        tokens_per_batch: int | None = None,
        truncate_dim: int | None = None,
    ):
        super().__init__(locals())
        self.name, self.backend = str(path), next(iter(self.graphs)) if backend is None else backend
        self.tokens_per_batch, self.truncate_dim = tokens_per_batch, truncate_dim
        if self.backend not in self.graphs:
            raise UserError(f"backend {backend!r} is none of torch, {', '.join(self.graphs)}")
        folder = Path(resolve_resource(self.name))
        self._graph = folder / self.format / self.graphs[self.backend]
        for file in self._files():
            if not file.is_file():
                raise UserError(
                    f"model {path}: no {self.format}/{file.name} in it; make it with "
                    f"cacse-trainer export --folder {path} --format {self.format}"
                )
        if device is not None:
            self.to(device)
        with user_errors(f"model {path}: {self.format}/{self._graph.name} cannot be read"):
            self._embed, self._cores = self.opened(self._graph), 1  # the engine has threads of its own
        stated = read_modules(str(folder))
        self.tokenizer = load_tokenizer(folder)
        self.pooling, self.normalizes = str(stated.pooling), stated.normalizes
        self._prepare = stated.prepare
        self._take_prompts(stated)
        self._longest = length_limit(self.tokenizer, load_config(folder))
        self.max_seq_length = stated.length(self._longest) if max_seq_length is None else max_seq_length

    @classmethod
    @abstractmethod
    def opened(cls, graph: Path) -> Embed:
        """A graph as a function of tensors, on as many threads as torch has.

        Raises:
            UserError: the engine is not installed.
        """

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def to(self, device: torch.device | str) -> "GraphEncoder":
        """Stay where it is; refuse anything but the CPU."""
        if torch.device(device).type != "cpu":
            raise UserError(f"backend {self.backend} runs on the CPU, not on {device}; use backend torch there")
        return self

    def fingerprint(self) -> str:
        """A hash of the graph."""
        return "".join(sha256_of(file)[:16] for file in self._files())

    def settings(self) -> dict[str, Any]:
        """Length limit and graph."""
        return {"max_seq_length": self.max_seq_length, "backend": self.backend, "truncate_dim": self.truncate_dim}

    def _files(self) -> list[Path]:
        """What the graph consists of."""
        return [self._graph]
