"""Memory that a model's tensors have left stays with the process while the model runs on a CPU.

glibc gives freed blocks of megabytes back to the system at once. Every layer frees and asks for such blocks, and the
system clears each page anew: a tenth of a step of training in float32, and more of one in bfloat16.
"""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h
KEEPING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}
"""No block comes from the system by itself, and the heap never shrinks."""
USUAL = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20}
"""glibc's own, its thresholds as they are once blocks of that size have been freed."""

_lock = threading.Lock()
_inside = 0


@contextmanager
def keep_freed_memory(device: str = "cpu") -> Iterator[None]:
    """Keep what is freed in this context, for the next tensors; outside of glibc, and off the CPU, nothing changes.

    Args:
        device: kind of device that the model runs on.
    """
    global _inside
    if device != "cpu" or sys.platform != "linux":
        yield
        return
    with _lock:
        _inside += 1
        if _inside == 1:
            _set(KEEPING)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _set(USUAL)


def _set(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)
