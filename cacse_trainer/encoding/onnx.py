"""An exported folder's ONNX graph as an encoder: onnxruntime on the CPU, in float32 or int8 (extra ``onnx``)."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.embedder import Embed, length_limit
from cacse_trainer.encoding.sentence_transformers import read_modules
from cacse_trainer.errors import UserError, extra_needed
from cacse_trainer.files import sha256_of
from cacse_trainer.models.pretrained import load_config, load_tokenizer
from cacse_trainer.settings.resources import resolve_resource

FOLDER = "onnx"
OUTPUT = "sentence_embedding"
GRAPHS = {"onnx": "model.onnx", "onnx_int8": "model_int8.onnx"}


class OnnxEncoder(BaseEncoder):
    """The graphs that ``cacse-trainer export --format onnx`` writes into a folder; pooling and layers are inside.

    Args:
        path: the exported folder, with ``onnx/`` in it.
        backend: ``onnx`` (float32) or ``onnx_int8`` (weights quantised).
        device: cpu; there is no other.
        max_seq_length, tokens_per_batch, truncate_dim: as for `SentenceEncoder`.

    Raises:
        UserError: onnxruntime is not installed, there is no such graph, or another device.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        backend: str = "onnx",
        device: torch.device | str | None = None,
        *,
        max_seq_length: int | None = None,
        tokens_per_batch: int | None = None,
        truncate_dim: int | None = None,
    ):
        super().__init__(locals())
        self.name, self.backend = str(path), backend
        self.tokens_per_batch, self.truncate_dim = tokens_per_batch, truncate_dim
        if backend not in GRAPHS:
            raise UserError(f"backend {backend!r} is none of torch, {', '.join(GRAPHS)}")
        folder = Path(resolve_resource(self.name))
        self._graph = folder / FOLDER / GRAPHS[backend]
        if not self._graph.is_file():
            raise UserError(
                f"model {path}: no {FOLDER}/{GRAPHS[backend]} in it; make it with "
                f"cacse-trainer export --folder {path} --format onnx"
            )
        with extra_needed("onnx", f"backend {backend} needs onnxruntime"):
            import onnxruntime
        if device is not None:
            self.to(device)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(self._graph), options, providers=["CPUExecutionProvider"])
        self._embed, self._cores = session_function(session), 1  # the session has threads of its own
        stated = read_modules(str(folder))
        self.tokenizer = load_tokenizer(folder)
        self.pooling, self.normalizes = str(stated.pooling), stated.normalizes
        self._prepare = stated.prepare
        self._take_prompts(stated)
        self._longest = length_limit(self.tokenizer, load_config(folder))
        self.max_seq_length = stated.length(self._longest) if max_seq_length is None else max_seq_length

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def to(self, device: torch.device | str) -> "OnnxEncoder":
        """Stay where it is; refuse anything but the CPU."""
        if torch.device(device).type != "cpu":
            raise UserError(f"backend {self.backend} runs on the CPU, not on {device}; use backend torch there")
        return self

    def fingerprint(self) -> str:
        """A hash of the graph."""
        return sha256_of(self._graph)[:16]

    def settings(self) -> dict[str, Any]:
        """Length limit and graph."""
        return {"max_seq_length": self.max_seq_length, "backend": self.backend, "truncate_dim": self.truncate_dim}


def session_function(session: Any) -> Embed:
    """A session as a function of tensors."""
    names = [entry.name for entry in session.get_inputs()]

    def embed(**inputs: Tensor) -> Tensor:
        given = {name: inputs[name].numpy() for name in names}
        return torch.from_numpy(session.run([OUTPUT], given)[0])

    return embed
