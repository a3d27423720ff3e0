"""A teacher's vectors of a whole training text, computed once and mapped into memory.

The file's name is a hash of the text, of the teacher's weights and settings, and of its tokenizers, so that nothing
stale is ever read. It is written under a temporary name and renamed when it is whole; beside it lies its checksum, and
a file that is damaged is made anew. Of several runs at once the first one computes, and the others wait.
"""

import contextlib
import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from cacse_trainer.compute.distributed import barrier, gather_objects, rank
from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.encoding.members import Tokenizer
from cacse_trainer.encoding.vectors.tables import write_table
from cacse_trainer.errors import one_line
from cacse_trainer.files import crc32_of, only_one, write_json, writing
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
    with contextlib.ExitStack() as held:
        if rank() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(only_one(path, wait=True))
        if gather_objects(rank() == 0 and _is_whole(path, len(dataset)))[0]:
            logger.info("the teacher's vectors are read from %s", path)
        else:
            if rank() == 0:
                logger.info("computing the teacher's vectors of %d sentences into %s", len(dataset), path)
            # on every process: they share the work
            tables = (
                embedder.vectors(sentences, show_progress_bar=show_progress_bar, description="Teacher")
                for sentences in _chunks(dataset)
            )
            if rank() == 0:
                _sums(path).unlink(missing_ok=True)
                with writing(path) as staged:
                    write_table(staged, tables, len(dataset))
                    facts = {"crc32": crc32_of(staged)}
                write_json(_sums(path), facts)
            else:
                deque(tables, maxlen=0)
        barrier()
    return np.load(path, mmap_mode="r")


def _sums(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _is_whole(path: Path, rows: int) -> bool:
    """Whether the file is there and what was written; of an older version's only its size is known."""
    try:
        if np.load(path, mmap_mode="r").shape[0] != rows:
            raise ValueError(f"not {rows} rows")
        if _sums(path).is_file() and json.loads(_sums(path).read_text(encoding="utf-8"))["crc32"] != crc32_of(path):
            raise ValueError("its checksum differs")
    except FileNotFoundError:
        return False
    except (OSError, ValueError, EOFError, TypeError, KeyError) as error:
        logger.warning("the teacher's vectors in %s are damaged (%s), and made anew", path, one_line(error))
        return False
    return True
