"""A teacher's vectors of a whole training text, computed once and mapped into memory.

The file's name is a hash of the text, of the teacher's weights and settings, and of its tokenizers, so that nothing
stale is ever read. It is written under a temporary name and renamed when it is whole.
"""

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from cacse_trainer.compute.distributed import barrier, rank
from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.encoding.members import Tokenizer
from cacse_trainer.files import writing
from cacse_trainer.models.tokenizer_bundle import clean_state, tokenizers_of

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 16384
COLUMN = "text"


def _chunks(dataset: Dataset) -> Iterator[list[str]]:
    for start in range(0, len(dataset), ROWS_AT_ONCE):
        yield dataset[start : start + ROWS_AT_ONCE][COLUMN]


def content_key(dataset: Dataset, teacher: Any, tokenizer: Tokenizer, settings: dict[str, Any]) -> str:
    """Hash of everything that the vectors depend on, as 24 hexadecimal digits."""
    digest = hashlib.sha256(repr(settings).encode())
    for tokens in tokenizers_of(tokenizer):
        digest.update(clean_state(tokens).encode())
        if tokens.model_max_length < settings["max_seq_length"]:
            digest.update(str(tokens.model_max_length).encode())
    fields = teacher.config.to_dict()
    for volatile in ("transformers_version", "_name_or_path", "dtype"):
        fields.pop(volatile, None)
    digest.update(repr(sorted((name, repr(value)) for name, value in fields.items())).encode())
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.dim() else b"")
    for sentences in _chunks(dataset):
        digest.update("\0".join(sentences).encode())
        digest.update(b"\1")
    return digest.hexdigest()[:24]


def cached_teacher_embeddings(
    folder: str | Path, teacher: Any, embedder: Embedder, dataset: Dataset, *, show_progress_bar: bool = False
) -> np.ndarray:
    """The teacher's vectors of each row, from ``folder`` where they are, else computed and kept there.

    Args:
        folder: where the file is, or will be.
        teacher: the model, in evaluation mode; its weights are part of the file's name.
        embedder: of the teacher.
        dataset: map-style rows of ``text``.
        show_progress_bar: on standard error.

    Returns:
        (rows, dim) float32, mapped from the file, the same on every process.
    """
    settings = {"max_seq_length": embedder.max_seq_length, "dtype": str(embedder.dtype), "column": COLUMN}
    path = Path(folder) / f"teacher_{content_key(dataset, teacher, embedder.tokenizer, settings)}.npy"
    if not path.is_file():
        if rank() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            logger.info("computing the teacher's vectors of %d sentences into %s", len(dataset), path)
        start, table = 0, None
        with writing(path) if rank() == 0 else contextlib.nullcontext() as staged:
            for sentences in _chunks(dataset):
                # on every process: they share the work
                vectors = embedder.vectors(sentences, show_progress_bar=show_progress_bar, description="Teacher")
                if staged is not None and table is None:
                    shape = (len(dataset), vectors.shape[1])
                    table = np.lib.format.open_memmap(staged, mode="w+", dtype=np.float32, shape=shape)
                if table is not None:
                    table[start : start + len(vectors)] = vectors
                start += len(vectors)
            if table is not None:
                table.flush()
                del table
    else:
        logger.info("the teacher's vectors are read from %s", path)
    barrier()
    return np.load(path, mmap_mode="r")
