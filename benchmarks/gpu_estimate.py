"""What `gpu_check` would take of an H100, reckoned where there is none: an estimate, nothing of it was run on a GPU.

A training step takes the longest of four:

products  its FLOP, counted on the meta device at full size, at `SHARE` of the chip's dense bf16 peak
memory    the bytes that its operations read and write, counted there with all states in bf16, at the chip's bandwidth;
          under autocast some are float32, and no compiler joins operations
launches  `LAUNCH` for each operation that starts a kernel, counted on the tests' device (tests/devices) at full depth,
          64 wide, under bf16's autocast
text      its sentences tokenised and collated by two processes, at the rate of a core measured here

To the steps of a part are added: what it takes at toy size on the tests' device, read from the lines of such a run
(set-up, and all that is toy on a GPU, too), `START` for CUDA, and text and random weights, made at rates measured here.
The peer counts as ours with padding; a corpus encoded twice as a third of SimCSE's steps over it.
"""

import functools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers.masking_utils
from common import BF16_PEAK
from common_models import OTHER, Check
from gpu_rates import CORPUS, PACKED, PEER, TRAININGS, Training, first_batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, BertConfig, BertModel, PreTrainedModel

from cacse_trainer.compute import varlen

SHARE, LAUNCH, START = 0.3, 5e-6, 4.0
PEAK, BANDWIDTH = BF16_PEAK["H100"], 3.35e12
"""Of an H100 SXM, operations and bytes a second."""
OPTIMIZER = 40
"""Bytes a parameter: AdamW reads four float32 numbers and writes three, the clipping reads two and writes one."""
MILLION, FULL = 1_000_000, 32
"""Sentences of the goals, and tokens of each."""
GOALS = {"simcse_64": 5, "simcse_512": 2, "cacse_64": 15, "cacse_512": 7}
"""Minutes for a million sentences."""
FREE = ("empty", "detach", "view", "alias")
"""In the names of operations that start no kernel."""


class Full(Check):
    """Every sentence has `FULL` tokens."""

    def sentences(self, count: int) -> list[str]:
        """Words are tokens here, and two tokens stand around them."""
        return [" ".join(["word"] * (FULL - 2))] * count


class _AsOne(torch.autograd.Function):
    """A kernel forward and three backward, in the place of attention's."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(key, value)
        return query.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return (gradients[0].clone(), *(part.clone() for part in ctx.saved_tensors))


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **more: Any
) -> Tensor:
    """As torch's scaled dot product attention is on a GPU, one kernel; without its mask."""
    if more.get("enable_gqa"):
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    if query.device.type != "meta":
        return _AsOne.apply(query, key, value)
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True, dropout_p)[0]


class Operations(TorchDispatchMode):
    """Counts operations that compute or copy, and the bytes of what they read and write."""

    count = bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not (func.is_view or any(part in func.name() for part in FREE)):
            self.count += 1
            touched = (part for part in tree_iter((args, kwargs, found)) if isinstance(part, Tensor))
            self.bytes += sum(part.numel() * part.element_size() for part in touched)
        return found


@dataclass(frozen=True)
class Step:
    """What a step does, and of how many rows; ``parameters``: weights that are made for its training."""

    rows: int
    flop: float
    bytes: float
    launches: int
    parameters: int

    def limits(self, text_rate: float, share: float = SHARE) -> dict[str, float]:
        """Seconds by what they are spent on; the longest is the step's."""
        return {
            "products": self.flop / (share * PEAK),
            "memory": self.bytes / BANDWIDTH,
            "launches": self.launches * LAUNCH,
            "text": self.rows / text_rate,
        }


@contextmanager
def on_meta() -> Iterator[None]:
    """Models have shapes and no weights, and nothing asks for a value."""

    def saved(model: Any, folder: Any, *_given: Any, **_more: Any) -> None:
        model.config.save_pretrained(folder)

    def read(cls: Any, path: Any, *_given: Any, **more: Any) -> Any:
        model = cls(more.get("config") or AutoConfig.from_pretrained(path)).to(more.get("dtype") or torch.float32)
        names = ("missing_keys", "unexpected_keys", "mismatched_keys")
        return (model, {name: set() for name in names}) if more.get("output_loading_info") else model

    with ExitStack() as stack:
        for owner, name, value in (
            (PreTrainedModel, "save_pretrained", saved),
            (PreTrainedModel, "from_pretrained", classmethod(read)),
            (torch, "autocast", lambda *given, **more: nullcontext()),  # meta has none
            (torch, "is_autocast_enabled", lambda *given: False),
            (transformers.masking_utils, "_ignore_causal_mask_sdpa", lambda *given, **more: False),
        ):
            stack.enter_context(patch.object(owner, name, value))
        yield


@functools.cache
def process(_of: str) -> Any:
    """One for each device, which it keeps, and what is patched there, too."""
    return multiprocessing.get_context("fork").Pool(1)


def count(device: str, training: Training, sizes: type[Check]) -> tuple[float, float, int, int]:
    """FLOP, bytes, operations and parameters of a step."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = device
    varlen.kernel_for = lambda query, dropout: None  # with dropout, and without flash-attention's package
    torch.nn.functional.scaled_dot_product_attention = attention
    meta = device == "meta"
    with tempfile.TemporaryDirectory() as folder, on_meta() if meta else nullcontext():
        check = sizes(device, "base" if meta else "thin", Path(folder))
        check.warm, check.steps = 1, 0
        with torch.device("meta") if meta else nullcontext():
            trainer = training.trainer(check)
        models = [trainer.model, getattr(trainer, "teacher", None)]
        made = [p for model in models if isinstance(model, torch.nn.Module) for p in model.parameters()]
        optimized = OPTIMIZER * sum(p.numel() for p in made if p.requires_grad)
        if meta:
            for model in models:
                _ = model.bfloat16() if isinstance(model, torch.nn.Module) else None
        trainer.current_gradient_accumulation_steps = 1  # as a training sets it
        model = trainer.model if meta else trainer.accelerator.prepare_model(trainer.model)  # autocast around it
        batch = first_batch(trainer)
        with FlopCounterMode(display=False) as flops, Operations() as operations:
            trainer.training_step(model, batch)
    return flops.get_total_flops(), operations.bytes + optimized, operations.count, sum(p.numel() for p in made)


@functools.cache
def counted(device: str, kind: str, batch: int, more: tuple[tuple[str, Any], ...], sizes: type[Check]) -> Any:
    """`count` of a training."""
    return process(device).apply(count, (device, Training(kind, batch, dict(more)), sizes))


def step_of(training: Training, sizes: type[Check] = Check) -> Step:
    """A step at full size."""
    more = {name: value for name, value in training.more.items() if name != "dropout" and value != "auto"}
    mini = more.get("mini_batch_size")
    rows = 2 * mini if mini is not None else training.batch  # a few of its parts, times as many as there are
    narrow = (4, more) if mini is None else (8, {**more, "mini_batch_size": 4})
    flop, moved, _, parameters = counted("meta", training.kind, rows, (*more.items(), ("bf16", "false")), sizes)
    launches = counted(OTHER, training.kind, narrow[0], tuple(narrow[1].items()), Check)[2]
    parts = training.batch // rows
    return Step(training.batch, parts * flop, parts * moved, parts * launches, parameters)


def measured_here() -> tuple[float, float, float]:
    """Sentences a second that two cores collate; seconds of a core for making a sentence, and a weight."""
    with tempfile.TemporaryDirectory() as folder:
        check = Check("cpu", "toy", Path(folder))
        began = time.process_time()
        check.sentences(8 * 512)
        made = (time.process_time() - began) / (8 * 512)
        trainer = check.trainer("simcse", 512, 8)
        began = time.process_time()
        batches = sum(1 for _ in trainer.get_train_dataloader())
        rate = 2 * 512 * batches / (time.process_time() - began)
        began = time.process_time()
        model = BertModel(BertConfig(num_hidden_layers=4))
        model.save_pretrained(folder)
        BertModel.from_pretrained(folder)
        weight = (time.process_time() - began) / sum(p.numel() for p in model.parameters())
    return rate, made, weight


def trainings_of(part: str) -> list[Training]:
    """Those of a part that are of full size on a GPU."""
    padded = [Training("simcse", batch, {"length_buckets": "1"}) for batch in PEER]
    several = {"packed": list(PACKED.values()), "peer": padded}
    return several.get(part, [TRAININGS[part]] if part in TRAININGS else [])


def tell(lines: Path, limits: Mapping[str, int], minutes: float) -> int:
    """Print both tables; 1 where a part would not be done in its seconds, or all of them in these minutes."""
    toy = {line["part"]: line["seconds"] for line in map(json.loads, lines.read_text().splitlines())}
    if absent := [part for part in limits if part not in toy]:
        print(f"{lines} has no line of {', '.join(absent)}: run them with --device {OTHER}, or leave them out")
        return 1
    text_rate, sentence, weight = process("cpu").apply(measured_here)
    print(
        f"AN ESTIMATE for an H100: {SHARE:.0%} of {PEAK / 1e12:.0f} TFLOP/s, {BANDWIDTH / 1e12:.2f} TB/s, "
        f"{LAUNCH * 1e6:.0f} µs a launch, {START:.0f} s to start CUDA.\n"
        f"Measured here, by the seconds of a core: two collate {text_rate:.0f} sentences/s, "
        f"BERT-base is made, written and read in {110e6 * weight:.1f} s."
    )
    print(f"\n{'part':14}{'steps':>7}{'TFLOP':>9}{'launches':>10}{'steps, s':>10}{'seconds':>9}{'limit':>7}  bound by")
    late, total = [], 0.0
    for part, limit in limits.items():
        check = Check(OTHER, "base", Path())
        flop = launches = steps = 0.0
        seconds = by_step = 0.0
        bounds: dict[str, float] = {}
        made: dict[str, int] = {}
        runs = [(one, check.warm + one.steps(check) + 1) for one in trainings_of(part)]
        if part == "encode":
            runs = [(TRAININGS["simcse_512"], CORPUS / 512 / 3)]
            seconds += CORPUS * sentence + 2 * CORPUS / (text_rate / 2)  # each tokenises in its own process
        for one, times in runs:
            step = step_of(one)
            spent = step.limits(text_rate)
            bound = max(spent, key=lambda name: spent[name])
            bounds[bound] = bounds.get(bound, 0.0) + times * spent[bound]
            flop, launches, steps = flop + times * step.flop, launches + times * step.launches, steps + times
            by_step += times * spent[bound]
            seconds += times * step.rows * sentence
            made[one.kind] = step.parameters  # once, read by all of the kind
        seconds += toy[part] + START + by_step + sum(made.values()) * weight
        if part == "roads":  # as many as the others leave time for
            seconds = min(seconds, limit, max(0.0, 60 * minutes - total))
        total += seconds
        late += [part] if seconds > limit else []
        longest = max(bounds, key=lambda name: bounds[name], default="toy size")
        print(
            f"{part:14}{steps:7.0f}{flop / 1e12:9.0f}{launches:10.0f}{by_step:10.1f}{seconds:9.1f}{limit:7}  {longest}",
            flush=True,
        )
    print(f"{'all':14}{'':36}{total:9.1f}{60 * minutes:7.0f}")
    print(f"\n{MILLION} sentences of {FULL} tokens, minutes by each limit (on paper)")
    names = ("products", "memory", "launches", "text")
    print(f"{'':14}{'TFLOP':>9}{'launches':>10}" + "".join(f"{name:>10}" for name in names) + f"{'goal':>7}")
    for part, goal in GOALS.items():
        step = step_of(TRAININGS[part], Full)
        spent = {name: value * MILLION / step.rows / 60 for name, value in step.limits(text_rate).items()}
        row = "".join(f"{spent[name]:10.2f}" for name in names)
        missed = "" if max(spent.values()) < goal else f"  missed: {max(spent, key=lambda name: spent[name])}"
        print(f"{part:14}{step.flop / 1e12:9.2f}{step.launches:10}{row}{goal:7}{missed}", flush=True)
    if late or total > 60 * minutes:
        print(f"too long: {', '.join(late) or 'all parts together'}")
    return 1 if late or total > 60 * minutes else 0
