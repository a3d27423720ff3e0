"""Blocks of sentences through an encoder: tokenised ahead in this process, or dealt out to several, one a device."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import torch
import transformers

from cacse_trainer.encoding.embedder import Advance
from cacse_trainer.errors import RunError, UserError

AHEAD = 2  # blocks that wait for each process

_encoder: Any = None  # a worker process's own


def one_after_another(
    begin: Callable[[list[str]], Callable[[Advance], np.ndarray]], blocks: Iterable[list[str]], advance: Advance
) -> Iterator[np.ndarray]:
    """The (n, dim) tables of the blocks, in their order; the next one is tokenised while one goes through the model.

    Args:
        begin: tokenises a block; what it returns runs the model.
        blocks: of sentences.
        advance: told how many more sentences are done.
    """
    with ThreadPoolExecutor(1) as tokenising:
        coming = None
        for block in blocks:
            following = tokenising.submit(begin, block)
            if coming is not None:
                yield coming.result()(advance)
            coming = following
        if coming is not None:
            yield coming.result()(advance)


def as_one_table(blocks: Iterable[np.ndarray], total: int | None) -> np.ndarray:
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


class EncoderPool:
    """Processes that each hold the encoder; they start with the first sentences.

    As with all spawned processes, a script that makes one needs ``if __name__ == "__main__":`` around its work.

    Args:
        recipe: function of ``device`` that loads the encoder.
        devices: one process each; a name may be repeated.
        fingerprint: of the weights; processes that load others refuse to work.

    Raises:
        UserError: no device.
    """

    def __init__(self, recipe: Callable[..., Any], devices: Sequence[str], fingerprint: str):
        if not devices:
            raise UserError("device: give at least one")
        self.devices = list(devices)
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads and CUDA's state
        waiting = context.Queue()
        for device in devices:
            waiting.put(device)
        threads = max(1, torch.get_num_threads() // len(devices))
        self._executor = ProcessPoolExecutor(
            len(devices), context, initializer=_load, initargs=(recipe, waiting, fingerprint, threads)
        )

    def vectors(self, blocks: Iterable[list[str]], settings: dict[str, Any], advance: Advance) -> Iterator[np.ndarray]:
        """The (n, dim) tables of the blocks, in their order; only a few blocks are held at a time.

        Args:
            blocks: of sentences.
            settings: of the encoder's ``vectors``.
            advance: told how many more sentences are done.

        Raises:
            UserError: as the encoder does.
            RunError: a process ended.
        """
        waiting: deque[Future[np.ndarray]] = deque()

        def first() -> np.ndarray:
            table = waiting.popleft().result()
            advance(len(table))
            return table

        try:
            for block in blocks:
                waiting.append(self._executor.submit(_vectors, block, settings))
                if len(waiting) > AHEAD * len(self.devices):
                    yield first()
            while waiting:
                yield first()
        except BrokenProcessPool as error:
            raise RunError(
                f"an encoding process ended ({error}); see its message above. A script that encodes on several devices "
                'needs if __name__ == "__main__": around its work'
            ) from error

    def close(self) -> None:
        """End the processes."""
        self._executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Wait for the end of the process that started this one, and end: killed, it could not say so."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _load(recipe: Callable[..., Any], devices: Any, fingerprint: str, threads: int) -> None:
    global _encoder
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    transformers.logging.disable_progress_bar()  # each process would show its own of loading weights
    _encoder = recipe(device=devices.get())
    if _encoder.fingerprint() != fingerprint:
        raise UserError("device: several processes load the saved weights, and those in memory differ; save them first")


def _vectors(block: list[str], settings: dict[str, Any]) -> np.ndarray:
    return _encoder.vectors(block, **settings)
