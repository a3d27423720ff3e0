"""What `gpu_check` measures of trainings: which ones, at what sizes; sentences a second, peak memory, products."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from common import BF16_PEAK, Clock, mnrl_trainer, peak_gb
from common_models import Check
from sentence_transformers import SentenceTransformer
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Training:
    """One that is measured: what `Check.trainer` makes of this, at this batch size."""

    kind: str
    batch: int
    more: dict[str, Any] = field(default_factory=dict)

    def rows(self, check: Check) -> int:
        """A batch's."""
        return max(4, self.batch // 64) if check.toy else self.batch

    def steps(self, check: Check) -> int:
        """That are counted, after `Check.warm`."""
        return 4 if self.batch > 4096 and not check.toy else check.steps

    def trainer(self, check: Check) -> Any:
        """That trains so."""
        more = dict(self.more)
        if check.toy and "mini_batch_size" in more:
            more["mini_batch_size"] = 64
        return check.trainer(self.kind, self.rows(check), check.warm + self.steps(check), **more)


TRAININGS = {
    "simcse_64": Training("simcse", 64),
    "simcse_512": Training("simcse", 512),
    "simcse_8192": Training("simcse", 8192, {"mini_batch_size": 512}),
    "cacse_64": Training("cacse", 64),
    "cacse_512": Training("cacse", 512),
    "diffcse_64": Training("diffcse", 64),
    "tncse_64": Training("tncse", 64),
    "distill_64": Training("distill", 64),
    "decoder_64": Training("decoder", 64),
}
"""By the name of the part."""
PACKED = {
    f"{name}, {batch} rows, dropout {dropout}": Training(
        "simcse", batch, {"dropout": dropout, "length_buckets": buckets}
    )
    for batch in (64, 512)
    for dropout in (0.1, 0.0)
    for name, buckets in (("padded", "1"), ("packed", "auto"))
}
"""With padding and without it."""
PEER = (64, 512)
"""The peer's batch sizes."""
CORPUS = 50_000
"""Sentences that are encoded."""


class Counted(Clock):
    """Seconds of the steps after the first few."""

    def __init__(self, warm: int):
        self.warm = warm

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.warm:
            self.on_train_begin(args, state, control)


def first_batch(trainer: Any) -> dict[str, Any]:
    """As a step reads it, with masked copies where the model wants them."""
    return trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)[0][0]


def rate(check: Check, trainer: Any, batch: int, steps: int, ours: bool = True) -> dict[str, Any]:
    """Train; sentences a second, peak memory, and the share of the chip's peak; None: this device does not tell."""
    clock = Counted(check.warm)
    trainer.add_callback(clock)
    if check.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    step = clock.seconds / steps
    found = {"sentences_per_second": batch / step, "step_seconds": step, "minutes_for_1M": 1e6 * step / batch / 60}
    gpu = check.device == "cuda"
    peak_on_cpu = peak_gb() if check.device == "cpu" else None
    found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9 if gpu else peak_on_cpu
    if ours:
        rows = first_batch(trainer)
        with FlopCounterMode(display=False) as flops:
            loss = trainer.training_step(trainer.model, rows)
        assert loss.isfinite(), "the loss is not finite"
        found["tflop_a_step"] = flops.get_total_flops() / 1e12
        chip = torch.cuda.get_device_name() if gpu else ""
        peak = next((value for kind, value in BF16_PEAK.items() if kind in chip), None)
        found["share_of_bf16_peak"] = flops.get_total_flops() / step / peak if peak is not None else None
    return found


def measured(training: Training) -> Callable[[Check], dict[str, Any]]:
    """A part that measures one training."""

    def part(check: Check) -> dict[str, Any]:
        rows = training.rows(check)
        return {"batch": rows} | rate(check, training.trainer(check), rows, training.steps(check))

    return part


def with_and_without_padding(check: Check) -> dict[str, Any]:
    """The rates of `PACKED`."""
    found = {}
    for name, training in PACKED.items():
        gc.collect()  # the memory of the one before
        found[name] = rate(check, training.trainer(check), training.rows(check), training.steps(check))
    return found


def peer(check: Check) -> dict[str, Any]:
    """sentence-transformers' trainer on the same text, both views the same sentence."""
    found = {}
    for batch in PEER:
        rows, steps = Training("simcse", batch).rows(check), check.warm + check.steps
        lines = check.sentences(rows * steps)
        model = SentenceTransformer(check.encoder(), device=check.device)
        model.max_seq_length = 64
        how = {"steps": steps, "batch": rows, "rate": 1e-6, "seed": 0, "device": check.device}
        trainer = mnrl_trainer(model, lines, lines, check.folder / "peer", **how, bf16=check.bf16)
        found[f"simcse_{batch}"] = rate(check, trainer, rows, check.steps, ours=False)
    return found
