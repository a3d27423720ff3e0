"""``bf16: auto | true | false``: one spelling for training, teachers and encoders, and what it comes to here.

On a CPU ``auto`` is what a short measurement says: products of the size of a training step's, in float32 and under
autocast in bfloat16. It is made once a process, and only where the processor has instructions for it. `times_as_fast`
and `agreed` are what any such measurement is made of.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import Any

from cacse_trainer.errors import UserError

HELP = "true, false, or auto: on where it is faster, on a CPU as measured."
FLAG: dict[str, Any] = {"nargs": "?", "const": "true"}
"""The flag alone means true."""

LEAST_GAINED = 1.2
"""Times as fast as float32 that ``auto`` asks of a CPU's products: rounding is not given away for less."""
ROWS, WIDTH, REPEATS = 1024, 768, 12
"""Tokens of a batch, the width of a layer, and how often each way is timed."""
MOST_SECONDS = 1.0
"""After which no measurement is repeated."""
ISA = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Names of oneDNN's limit on the instructions it uses; the first one that is set counts."""
WITHOUT_BF16 = frozenset(
    ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni"),
)
"""Its values below products of bfloat16."""


def accelerator() -> str | None:
    """Kind of the device that torch computes on beside the CPU, such as ``cuda`` or ``mps``; None: there is none."""
    import torch  # settings are read without it

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found is not None else None


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 by instructions of its own (AMX, AVX512-bf16) and oneDNN may use them."""
    import torch

    limit = next(filter(None, map(os.environ.get, ISA)), "").lower()
    own = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return bool(own) and limit not in WITHOUT_BF16


def times_as_fast(plain: Callable[[], object], other: Callable[[], object]) -> float:
    """How many times as fast as the plain way another one is on this process's threads: the least of runs in turn.

    On one thread by processor time, which other work on the machine does not change, where it is counted finely enough;
    on several by the clock, as the ways share their work among them differently.
    """
    import torch

    counted = torch.get_num_threads() == 1 and time.get_clock_info("process_time").resolution < 1e-5
    clock = time.process_time if counted else time.perf_counter

    def seconds(way: Callable[[], object]) -> float:
        started = clock()
        way()
        return clock() - started

    ends = time.perf_counter() + MOST_SECONDS
    seconds(plain), seconds(other)  # the first ones choose their kernels
    times = [(seconds(plain), seconds(other))]
    while len(times) < REPEATS and time.perf_counter() < ends:
        times.append((seconds(plain), seconds(other)))
    of_plain, of_other = zip(*times, strict=True)
    return min(of_plain) / min(of_other)  # what other work adds is not the ways' own


def agreed(figure: float | None) -> float | None:
    """The first process's figure, on all that have met."""
    import torch.distributed as dist

    figures = [figure]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(figures)
    return figures[0]


@functools.cache
def measured_gain() -> float:
    """How many times as fast as in float32 a layer's product is under bfloat16's autocast, on this process's threads.

    The casts of states and weights count, as a step makes them. 0.3 s on one core; torch's random state stays as it is.
    """
    import torch
    from torch.nn.functional import linear

    draws = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(size, WIDTH, generator=draws) for size in (ROWS, WIDTH))

    def product(half: bool) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            linear(states, weight)

    return times_as_fast(lambda: product(False), lambda: product(True))


def bf16_gain(*, use_cpu: bool = False) -> float | None:
    """How many times as fast bfloat16 is on the CPU, the first process's figure on all; None: not to be measured."""
    if not use_cpu and accelerator() is not None:
        return None
    return agreed(measured_gain() if cpu_has_bf16() else None)


def bf16_is_fast(*, use_cpu: bool = False) -> bool:
    """True where bfloat16 matrix products are faster than float32: CUDA ≥ 8.0, a CPU by `bf16_gain`."""
    import torch

    kind = None if use_cpu else accelerator()
    if kind is not None:
        return kind == "cuda" and torch.cuda.get_device_capability()[0] >= 8
    gain = bf16_gain(use_cpu=use_cpu)
    return gain is not None and gain >= LEAST_GAINED


def spelled(value: str | bool, name: str) -> str:
    """A setting that is ``auto``, ``true`` or ``false``, as one of these.

    Raises:
        UserError: another value.
    """
    text = str(value).lower()
    if text not in ("auto", "true", "false"):
        raise UserError(f"{name} must be auto, true or false, got {value!r}")
    return text


def resolve_bf16(value: str | bool, name: str = "bf16", *, use_cpu: bool = False) -> bool:
    """Whether to compute in bfloat16.

    Args:
        value: ``auto``, ``true`` or ``false``.
        name: of the setting, for the error.
        use_cpu: the CPU computes, whatever else there is.

    Raises:
        UserError: another value.
    """
    text = spelled(value, name)
    return bf16_is_fast(use_cpu=use_cpu) if text == "auto" else text == "true"
