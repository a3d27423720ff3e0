"""Not forgetting: beside each batch some general sentences, whose cosines shall stay those of the start."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cacse_trainer.compute.distributed import rank, world_size
from cacse_trainer.data.tokens import pad_rows, tokenise
from cacse_trainer.encoding.loading import Loaded
from cacse_trainer.errors import UserError
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.training.guide import FrozenEncoder

KEPT, START_INPUTS, START = "kept", "kept_start", "start_vectors"


class Keeping(FrozenEncoder):
    """The start, frozen, and general sentences to hold the trained model to it on (`cosine_drift`).

    Args:
        loaded: the start, by `load_encoder`.
        sentences: rows of ``text``.
        tokenizer: of the trained model.
        max_seq_length, bf16: as for `FrozenEncoder`; the length holds for both.

    Raises:
        UserError: rows without ``text``.
    """

    def __init__(
        self,
        loaded: Loaded,
        sentences: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_seq_length: int = 64,
        bf16: bool = False,
    ) -> None:
        super().__init__(loaded, max_seq_length, bf16)
        if sentences.column_names != ["text"]:
            raise UserError(
                f"keep_file holds single sentences (a column text), it has {', '.join(sentences.column_names)}"
            )
        self.sentences, self.tokenizer, self.max_seq_length = sentences, tokenizer, max_seq_length

    def check_size(self, batch: int) -> None:
        """Refuse fewer sentences than are drawn at once.

        Raises:
            UserError: with both numbers.
        """
        if len(self.sentences) < batch:
            raise UserError(f"keep_file has {len(self.sentences)} rows, fewer than a batch of {batch}; give more text")

    def __call__(self, batch: Mapping[str, Any], *numbers: int) -> dict[str, Any]:
        """A batch with as many general sentences, see `draw`."""
        return {**batch, **self.draw(len(batch["input_ids"]), *numbers)}

    def draw(self, count: int, *numbers: int) -> dict[str, Any]:
        """General sentences of a step, as many on each process, drawn from the numbers alone (a seed, the step, …).

        Returns:
            ``kept``, the model's inputs of this process's ``count`` sentences, and ``kept_start``, the start's.
        """
        digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
        random = np.random.default_rng(int.from_bytes(digest, "big"))
        drawn = random.choice(len(self.sentences), count * world_size(), replace=False)
        texts = self.sentences[drawn[rank() * count : (rank() + 1) * count]]["text"]
        own = pad_rows(self.tokenizer, tokenise(self.tokenizer, texts, self.max_seq_length))
        return {KEPT: own, START_INPUTS: self.reader(texts)}

    def with_start(self, inputs: dict[str, Any], compute: ComputeSettings) -> dict[str, Any]:
        """A batch whose ``kept`` holds the start's vectors, ``start_vectors`` (count, H), in place of its inputs."""
        inputs = dict(inputs)
        vectors: Tensor = self.vectors(inputs.pop(START_INPUTS), compute)
        return {**inputs, KEPT: {**inputs[KEPT], START: vectors}}
