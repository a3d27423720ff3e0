"""Sentences to vectors with any encoder: lists, streams, one device or several."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm.auto import tqdm

from cacse_trainer.compute.distributed import rank
from cacse_trainer.encoding.embedder import Advance
from cacse_trainer.encoding.pool import EncoderPool
from cacse_trainer.encoding.vectors.precision import check_precision, normalized, to_precision, truncated
from cacse_trainer.errors import UserError

BLOCK_SENTENCES = 16_384
"""Sentences tokenised at once, while the block before goes through the model; bounds the memory of a stream."""
POOL_BLOCK_SENTENCES = 2_048
"""Sentences handed to one of several processes at once."""

Device = torch.device | str
Encoder = TypeVar("Encoder", bound="Encoding")


class Encoding(ABC):
    """Encodes; what an encoder has to give is `prepare`, and what it says of itself."""

    name: str
    """As the user gave it."""
    pooling: str
    """What was stated, read or guessed."""
    pooling_guessed: bool = False
    normalizes: bool
    """Whether the folder says that its vectors are scaled to length 1 (MTEB's classifiers see them so)."""

    def __init__(self, truncate_dim: int | None = None) -> None:
        self.truncate_dim = truncate_dim
        self._pool: EncoderPool | None = None

    @abstractmethod
    def prepare(
        self, sentences: Sequence[str], *, batch_size: int | None = None, max_length: int | None = None
    ) -> Callable[[Advance], np.ndarray]:
        """Tokenise; what is returned runs the model and gives (n, dim) float32, not scaled.

        The two halves may run on different threads.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the weights."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What else the vectors depend on, for reports."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model is."""

    @abstractmethod
    def to(self: Encoder, device: Device) -> Encoder:
        """Move the model."""

    @abstractmethod
    def recipe(self) -> Callable[..., "Encoding"]:
        """A function of ``device`` that loads the same encoder in another process."""

    def vectors(
        self,
        sentences: Sequence[str],
        *,
        batch_size: int | None = None,
        max_length: int | None = None,
        show_progress_bar: bool = False,
        description: str = "Encoding",
    ) -> np.ndarray:
        """(len(sentences), dim) float32, not scaled; each distinct sentence is encoded once.

        Raises:
            UserError: a vector is not finite; the first such sentence is quoted.
        """
        distinct = list(dict.fromkeys(sentences))
        with _bar(len(distinct), show_progress_bar, description) as bar:
            blocks = self._blocks(distinct, BLOCK_SENTENCES, bar.update, batch_size=batch_size, max_length=max_length)
            table = _stacked(blocks, len(distinct))
        if len(distinct) == len(sentences):
            return table
        position = {sentence: i for i, sentence in enumerate(distinct)}
        return table[[position[sentence] for sentence in sentences]]

    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int | None = None,
        normalize: bool = True,
        show_progress_bar: bool = False,
        *,
        precision: str = "float32",
        truncate_dim: int | None = None,
        device: Device | Sequence[Device] | None = None,
        return_numpy: bool = True,
        normalize_to_unit: bool | None = None,
        keepdim: bool = False,
        max_length: int | None = None,
    ) -> Any:
        """Encode sentences.

        Args:
            sentences: one, or any number, also from a generator; ``""`` is fine.
            batch_size: rows a batch; default: by a budget of tokens, which is faster.
            normalize: scale to length 1, so that the dot product is the cosine; a zero vector stays zero.
            show_progress_bar: a bar on standard error.
            precision: float32; int8, each row scaled to ±127; or binary, the signs packed into bytes.
            truncate_dim: keep so many of the first dimensions; default: the encoder's own setting.
            device: move the model there first; several (``["cuda:0", "cuda:1"]``, ``["cpu"] * 2``) start a process
                each, which stay for the next call until `close`.
            return_numpy: False gives a torch tensor on the CPU.
            normalize_to_unit: another name of ``normalize``.
            keepdim: (1, dim) for one sentence.
            max_length: in tokens; default: the encoder's own.

        Returns:
            (dim,) for one sentence, (n, dim) for several; see `to_precision` for the other precisions.

        Raises:
            UserError: a vector is not finite, or a setting is out of its range.
        """
        check_precision(precision)
        rows: Iterable[str] = [sentences] if isinstance(sentences, str) else sentences
        settings: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length}
        pool = self._on(device)
        if isinstance(rows, Sequence) and pool is None:
            table = self.vectors(rows, show_progress_bar=show_progress_bar, **settings)
        else:
            total = len(rows) if isinstance(rows, Sequence) else None
            with _bar(total, show_progress_bar, "Encoding") as bar:
                size = BLOCK_SENTENCES if pool is None else POOL_BLOCK_SENTENCES
                table = _stacked(self._blocks(rows, size, bar.update, pool, **settings), total)
        scaled = normalize if normalize_to_unit is None else normalize_to_unit
        table = to_precision(_finished(table, scaled, truncate_dim), precision)
        found: Any = table[0] if isinstance(sentences, str) and not keepdim else table
        return found if return_numpy else torch.from_numpy(np.array(found))

    def encode_stream(
        self,
        sentences: Iterable[str],
        block_size: int = BLOCK_SENTENCES,
        *,
        normalize: bool = True,
        precision: str = "float32",
        truncate_dim: int | None = None,
        batch_size: int | None = None,
        max_length: int | None = None,
        device: Device | Sequence[Device] | None = None,
        advance: Advance = lambda count: None,
    ) -> Iterator[np.ndarray]:
        """Encode any number of sentences in constant memory, a block at a time.

        Args:
            sentences: a generator, a file's lines, …
            block_size: sentences a block; while one goes through the model the next is tokenised.
            normalize, precision, truncate_dim, batch_size, max_length, device: as for `encode`.
            advance: told how many more sentences are done.

        Yields:
            (block_size, dim), in order; the last one may be shorter.
        """
        check_precision(precision)
        pool = self._on(device)
        for table in self._blocks(sentences, block_size, advance, pool, batch_size=batch_size, max_length=max_length):
            yield to_precision(_finished(table, normalize, truncate_dim), precision)

    def close(self) -> None:
        """End the processes that `encode` started for several devices."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def _on(self, device: Device | Sequence[Device] | None) -> EncoderPool | None:
        """Move the model to one device, or start (once) a process for each of several."""
        if isinstance(device, (str, torch.device)):
            self.to(device)
        if device is None or isinstance(device, (str, torch.device)):
            return None
        devices = [str(name) for name in device]
        if self._pool is None or self._pool.devices != devices:
            self.close()
            self._pool = EncoderPool(self.recipe(), devices, self.fingerprint())
        return self._pool

    def _blocks(
        self, sentences: Iterable[str], size: int, advance: Advance, pool: EncoderPool | None = None, **settings: Any
    ) -> Iterator[np.ndarray]:
        """(≤ size, dim) float32 tables in order; the next block is tokenised while one goes through the model."""
        source = iter(sentences)
        parts = iter(lambda: list(islice(source, size)), [])
        if pool is not None:
            for table in pool.vectors(parts, settings):
                advance(len(table))
                yield truncated(table, self.truncate_dim)
            return
        with ThreadPoolExecutor(1) as tokenising:
            coming = None
            for part in parts:
                following = tokenising.submit(self.prepare, part, **settings)
                if coming is not None:
                    yield truncated(coming.result()(advance), self.truncate_dim)
                coming = following
            if coming is not None:
                yield truncated(coming.result()(advance), self.truncate_dim)


def check_finite(name: str, table: np.ndarray, sentences: Sequence[str]) -> np.ndarray:
    """The table, if all its numbers are finite.

    Raises:
        UserError: a vector is not finite; the first such sentence is quoted.
    """
    wrong = ~np.isfinite(table).all(axis=1)
    if wrong.any():
        raise UserError(
            f"model {name}: {int(wrong.sum())} of {len(table)} vectors are NaN or infinite, the first that of "
            f"{sentences[int(wrong.argmax())][:60]!r}; its weights are broken, or bf16 is not for it"
        )
    return table


def _finished(table: np.ndarray, normalize: bool, dim: int | None) -> np.ndarray:
    table = truncated(table, dim)
    return normalized(table) if normalize else table


def _stacked(blocks: Iterable[np.ndarray], total: int | None) -> np.ndarray:
    """Blocks as one table; where the number of rows is known, without a second copy."""
    if total is None:
        parts = list(blocks)
        return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)
    table, filled = np.empty((0, 0), dtype=np.float32), 0
    for block in blocks:
        if len(block) == total:
            return block
        if filled == 0:
            table = np.empty((total, block.shape[1]), dtype=np.float32)
        table[filled : filled + len(block)] = block
        filled += len(block)
    return table


def _bar(total: int | None, shown: bool, description: str) -> tqdm:
    return tqdm(total=total, desc=description, unit=" sentences", disable=not shown or rank() > 0)
