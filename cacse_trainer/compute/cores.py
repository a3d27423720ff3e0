"""Independent pieces of work on a CPU, each on a core of its own.

Torch splits every operation over all cores, and all of them wait for the slowest one. Batches that need nothing of
each other go without that: a thread takes a batch, computes it on one core, and takes the next.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import TypeVar

import torch

MOST_THREADS = 8
"""Beyond it they would wait for Python itself; with more cores each thread computes on several."""

_taken = threading.Lock()

Item = TypeVar("Item")
Result = TypeVar("Result")


def over_cores(
    run: Callable[[Item], Result],
    items: Sequence[Item],
    around: Callable[[], AbstractContextManager[object]],
    told: Callable[[Item], object],
    cores: int,
) -> list[Result]:
    """Results of the items, in their order.

    The first item runs alone, on all cores: tables that a model makes at its first call, or for its longest row so far
    (give that first), are then there for all threads. With one core, or while another call is at it, the items run one
    after another in the caller's thread.

    Args:
        run: work on an item; runs in several threads at once.
        items: begun in their order.
        around: makes the context of the work (grad mode, autocast); each thread enters one.
        told: called in the caller's thread with each item that is done.
        cores: torch's number of threads, which is set again afterwards; 1 where the work is not on the CPU.

    Raises:
        Exception: what ``run`` or ``told`` raise; no further item is begun.
    """
    results: dict[int, Result] = {}
    alone = cores == 1 or not _taken.acquire(blocking=False)
    try:
        with around():
            for i, item in enumerate(items if alone else items[:1]):
                results[i] = run(item)
                told(item)
        if not alone and len(items) > 1:
            _side_by_side(run, items, results, around, told, cores)
    finally:
        if not alone:
            _taken.release()
    return [results[i] for i in range(len(items))]


def _side_by_side(
    run: Callable[[Item], Result],
    items: Sequence[Item],
    results: dict[int, Result],
    around: Callable[[], AbstractContextManager[object]],
    told: Callable[[Item], object],
    cores: int,
) -> None:
    """All items but the first, whose results are put in."""
    count = min(cores, MOST_THREADS, len(items) - 1)
    numbers = iter(range(1, len(items)))  # each is taken by one thread only
    done: SimpleQueue[int | BaseException] = SimpleQueue()

    def work() -> None:
        try:
            torch.set_num_threads(cores // count)
            with around():
                for i in numbers:
                    results[i] = run(items[i])
                    done.put(i)
        except BaseException as error:
            deque(numbers, 0)  # those that no thread has begun are left
            done.put(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
        for _ in range(1, len(items)):
            found = done.get()
            if isinstance(found, BaseException):
                raise found
            told(items[found])
    finally:
        deque(numbers, 0)
        for thread in threads:
            thread.join()
        torch.set_num_threads(cores)  # MKL's is one for all threads
