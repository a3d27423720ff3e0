"""One encoder in several processes, one a device: blocks of sentences dealt out, their vectors back in order."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import torch
import transformers

from cacse_trainer.errors import RunError, UserError

AHEAD = 2  # blocks that wait for each process

_encoder: Any = None  # a worker process's own


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

    def vectors(self, blocks: Iterable[list[str]], settings: dict[str, Any]) -> Iterator[np.ndarray]:
        """The (n, dim) tables of the blocks, in their order; only a few blocks are held at a time.

        Raises:
            UserError: as the encoder does.
            RunError: a process ended.
        """
        waiting: deque[Future[np.ndarray]] = deque()
        try:
            for block in blocks:
                waiting.append(self._executor.submit(_vectors, block, settings))
                if len(waiting) > AHEAD * len(self.devices):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise RunError(
                f"an encoding process ended ({error}); see its message above. A script that encodes on several devices "
                'needs if __name__ == "__main__": around its work'
            ) from error

    def close(self) -> None:
        """End the processes."""
        self._executor.shutdown(cancel_futures=True)


def _load(recipe: Callable[..., Any], devices: Any, fingerprint: str, threads: int) -> None:
    global _encoder
    torch.set_num_threads(threads)
    transformers.logging.disable_progress_bar()  # each process would show its own of loading weights
    _encoder = recipe(device=devices.get())
    if _encoder.fingerprint() != fingerprint:
        raise UserError("device: several processes load the saved weights, and those in memory differ; save them first")


def _vectors(block: list[str], settings: dict[str, Any]) -> np.ndarray:
    return _encoder.vectors(block, **settings)
