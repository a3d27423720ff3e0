"""`SentenceEncoder`: sentences to vectors, similarities and search, with any encoder."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from cacse_trainer.encoder_base import BaseEncoder
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.embed import embed_sentences
from cacse_trainer.loading import fingerprint, load_encoder


class SentenceEncoder(BaseEncoder):
    """Any encoder: a trained checkpoint, an exported folder, a transformers or sentence-transformers model.

    Args:
        path: folder, hub id or ``package:NAME/FOLDER``.
        pooling: cls, cls_with_mlp, mean, last_token, avg_top2, avg_first_last or max; default: what the folder
            states. A guess is logged.
        device: default: a GPU where there is one.
        adapter: folder or hub id of a PEFT adapter.
        dtype: ``torch.bfloat16`` computes in it: the linear layers' weights are kept in bfloat16, norms and sums stay
            in float32 (autocast). The vectors are float32 all the same.
        max_seq_length: default: what the folder states, else the longest that the model takes.
        tokens_per_batch: padded tokens a batch; default: by kind of device.
        trust_remote_code: run the model code that comes with the checkpoint.

    Raises:
        UserError: see `load_encoder`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        pooling: str | None = None,
        device: torch.device | str | None = None,
        adapter: str | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        max_seq_length: int | None = None,
        tokens_per_batch: int | None = None,
        trust_remote_code: bool = False,
    ):
        super().__init__()
        loaded = load_encoder(
            str(path),
            pooling=pooling,
            device=device,
            adapter=adapter,
            max_seq_length=max_seq_length,
            trust_remote_code=trust_remote_code,
        )
        self.name, self.pooling = loaded.name, loaded.pooling
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.max_seq_length = loaded.max_seq_length
        self.tokens_per_batch = tokens_per_batch
        self.dtype = dtype
        self.adapter = adapter
        if dtype != torch.float32:  # autocast alone would cast the weights anew in every batch
            for module in self.model.modules():
                if isinstance(module, nn.Linear):
                    module.to(dtype)
        self.normalizes = loaded.normalizes
        self._embed = loaded.embed
        self._prepare: Callable[[str], str] | None = loaded.prepare

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def vectors(
        self,
        sentences: Sequence[str],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        description: str = "Encoding",
    ) -> np.ndarray:
        """(len(sentences), dim) float32, not scaled; see `BaseEncoder.encode`.

        Raises:
            UserError: a vector is not finite; the first such sentence is quoted.
        """
        prepared = [self._prepare(sentence) for sentence in sentences] if self._prepare else sentences
        table = embed_sentences(
            self._embed,
            self.tokenizer,
            prepared,
            max_seq_length=self.max_seq_length,
            device=self.device,
            dtype=None if self.dtype == torch.float32 else self.dtype,
            tokens_per_batch=self.tokens_per_batch,
            rows_per_batch=batch_size,
            show_progress_bar=show_progress_bar,
            description=description,
        )
        wrong = ~np.isfinite(table).all(axis=1)
        if wrong.any():
            raise UserError(
                f"model {self.name}: {int(wrong.sum())} of {len(table)} vectors are NaN or infinite, the first that of "
                f"{sentences[int(wrong.argmax())][:60]!r}; its weights are broken, or bf16 is not for it"
            )
        return table

    def fingerprint(self) -> str:
        """A hash of the weights."""
        return fingerprint(self.model)

    def settings(self) -> dict[str, Any]:
        """Length limit, precision and adapter."""
        precision = str(self.dtype).removeprefix("torch.")
        return {"max_seq_length": self.max_seq_length, "dtype": precision, "adapter": self.adapter}
