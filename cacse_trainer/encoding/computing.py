"""``compute: float32 | bf16 | int8 | auto``: what an encoder multiplies in. The vectors are float32 all the same."""

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from cacse_trainer.compute.distributed import gather_objects
from cacse_trainer.compute.int8 import int8_runs, use_int8
from cacse_trainer.data.pairs import load_pairs
from cacse_trainer.errors import UserError
from cacse_trainer.settings.precision import bf16_is_fast
from cacse_trainer.settings.resources import nearest, resolve_resource

if TYPE_CHECKING:
    from cacse_trainer.encoding.encoder import SentenceEncoder

logger = logging.getLogger(__name__)

FLOAT32, BF16, INT8, AUTO = "float32", "bf16", "int8", "auto"
COMPUTES = (FLOAT32, BF16, INT8, AUTO)
DTYPES = {FLOAT32: torch.float32, BF16: torch.bfloat16, INT8: torch.float32}
"""What the sums around the products are in."""
BY_DTYPE = {"float32": FLOAT32, "bfloat16": BF16, "int8": INT8}
"""By what an encoder states that it computes in (`described`)."""

SAMPLE = "sample:dev.tsv"
"""The graded pairs on which ``auto`` measures by default."""
MOST_LOST = 0.1
"""Points of Spearman's ρ ×100 that ``auto`` gives for speed."""
LEAST_GAINED = 1.1
"""Times as fast as float32 that it asks for."""


class Measured(NamedTuple):
    """Spearman's ρ ×100, and seconds."""

    score: float
    seconds: float


def check_compute(compute: str) -> None:
    """Refuse another name.

    Raises:
        UserError: with the names that there are.
    """
    if compute not in COMPUTES:
        raise UserError(f"compute {compute!r} is none of {', '.join(COMPUTES)}{nearest(compute, COMPUTES)}")


def set_int8(name: str, model: nn.Module, device: torch.device) -> None:
    """Let a loaded model compute in int8.

    Raises:
        UserError: it is not on a CPU, torch has no such products here, or the model has no linear layers.
    """
    if device.type != "cpu":
        raise UserError(f"model {name}: int8 runs on the CPU, not on {device}; give device cpu, or compute bf16")
    if not int8_runs():
        raise UserError(f"model {name}: torch has no int8 products on this processor; give compute float32")
    if not use_int8(model):
        raise UserError(f"model {name}: has no linear layers that int8 could compute; give compute float32")


def choose_compute(
    name: str, load: Callable[[str], "SentenceEncoder"], dev: str | os.PathLike[str] | None, on_cpu: bool
) -> str:
    """The fastest way that loses under `MOST_LOST` on a dev set, by a measurement, which is told in one line.

    Args:
        name: of the model, for that line.
        load: a function from float32, bf16 or int8 to the encoder.
        dev: graded pairs, see `load_pairs`; default: `SAMPLE`.
        on_cpu: where it is to run.

    Raises:
        UserError: the dev set cannot be read.
    """
    file = os.fspath(dev) if dev is not None else SAMPLE
    pairs = load_pairs(resolve_resource(file))
    kinds = [FLOAT32, *[BF16] * bf16_is_fast(use_cpu=on_cpu), *[INT8] * (on_cpu and int8_runs())]
    found: dict[str, Measured] = {}
    for kind in kinds:
        try:
            found[kind] = _measure(load(kind), pairs)
        except UserError:
            if kind == FLOAT32:
                raise
            logger.info("model %s: compute auto leaves out %s, which is not for it", name, kind)
    best = gather_objects(fastest(found))[0]  # processes measure differently, and take one kind
    told = [f"{kind} {one.score:.2f} in {one.seconds:.2f} s" for kind, one in found.items()]
    logger.info("model %s: compute auto takes %s (Spearman x100 on %s: %s)", name, best, file, ", ".join(told))
    return best


def fastest(found: dict[str, Measured]) -> str:
    """The fastest kind among those that lose too little to matter and gain enough; float32 where there is none."""
    plain = found[FLOAT32]
    fit = {
        kind: one.seconds
        for kind, one in found.items()
        if plain.score - one.score < MOST_LOST and plain.seconds >= LEAST_GAINED * one.seconds
    }
    return min(fit, key=fit.__getitem__, default=FLOAT32)


def _measure(encoder: "SentenceEncoder", pairs: Any) -> Measured:
    first, second = list(pairs["sentence1"]), list(pairs["sentence2"])
    encoder.encode(first[:32])  # the first call allocates and chooses its kernels
    started = time.perf_counter()
    vectors = encoder.encode(first + second)
    seconds = time.perf_counter() - started
    cosines = (vectors[: len(first)] * vectors[len(first) :]).sum(axis=1)
    from scipy.stats import spearmanr  # not for every encoder

    return Measured(100 * float(spearmanr(cosines, pairs["score"])[0]), seconds)
