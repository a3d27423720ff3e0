"""What a step's operations would take at the least here: its products by themselves, all else as bytes moved.

A step's operations are recorded as they reach torch's kernels. Each product of other shapes, strides and precision is
then timed by itself, time and again, and counted as often as it ran: with its operands in the cache, and with all of
them in memory, as where other operations ran in between. Every other operation reads its inputs and writes its outputs
at least once: its bytes at the rate of a plain copy.
"""

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_linear_pointwise", "mkldnn_linear"}
UNTOUCHED = ("empty", "new_empty", "detach", "_local_scalar")
OVERWRITING = {"copy_", "zero_", "fill_", "random_", "uniform_", "normal_"}
"""What writes into a tensor without reading it."""
COPIED = 1 << 26  # numbers of float32: 256 MiB, which no cache holds


class Floor(NamedTuple):
    """Seconds of the products alone, from the cache and from memory; bytes of all else, and their seconds."""

    products: float
    from_memory: float
    moved: int
    moving: float

    @property
    def seconds(self) -> tuple[float, float]:
        """Of both, by the products from the cache and from memory."""
        return self.products + self.moving, self.from_memory + self.moving


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[tuple[Any, ...]] = Counter()
        self.runs: dict[tuple[Any, ...], Callable[[], Any]] = {}
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            key = (func, *((one.shape, None if one.is_mkldnn else one.stride(), one.dtype) for one in tensors))
            self.products[key] += 1
            self.runs.setdefault(key, partial(func, *args, **(kwargs or {})))
        elif name == "embedding":  # reads the rows that it gives
            self.moved += 2 * _bytes(found)
        elif not func.is_view and not name.startswith(UNTOUCHED):
            values = [*args, *[None] * len(func._schema.arguments)]
            for argument, value in zip(func._schema.arguments, values, strict=False):
                value = (kwargs or {}).get(argument.name, value)
                written = argument.alias_info is not None and argument.alias_info.is_write
                self.moved += _bytes(value) * (written + (not written or name not in OVERWRITING))
            if not any(part.alias_info for part in func._schema.returns):
                self.moved += _bytes(found)
        return found


def _bytes(values: Any) -> int:
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    parts = [part for one in tensors for part in ((one._values(), one._indices()) if one.is_sparse else (one,))]
    return sum(min(part.numel() * part.element_size(), part.untyped_storage().nbytes()) for part in parts)


def floor_of(step: Callable[[], Any], device: torch.device) -> Floor:
    """Run a step once, recorded, and time its products and a copy.

    Args:
        step: computes on the device.
        device: where.
    """
    recorder = _Recorder()
    with recorder:
        step()
    source, target = (torch.zeros(COPIED, device=device) for _ in range(2))

    def copy() -> None:
        target.copy_(source)

    with torch.no_grad():
        products, from_memory = (
            sum(count * _least(recorder.runs[key], device, before) for key, count in recorder.products.items())
            for before in (None, copy)
        )
    rate = 2 * source.numel() * source.element_size() / _least(copy, device)
    return Floor(products, from_memory, recorder.moved, recorder.moved / rate)


def _least(
    run: Callable[[], Any], device: torch.device, before: Callable[[], None] | None = None, times: int = 5
) -> float:
    def once() -> float:
        if before is not None:
            before()
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    run()  # the first one chooses its kernel
    return min(once() for _ in range(times))
