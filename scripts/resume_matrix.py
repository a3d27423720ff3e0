"""Is a resumed run the very run that was never stopped? Family × data × workers × accumulation × precision.

    OMP_NUM_THREADS=1 python scripts/resume_matrix.py [--family diffcse …]

Each cell trains a tiny model for six steps straight through, in several passes over its text, and goes on anew from
its checkpoints of the first and of a later pass. The weights and the losses must be equal bit by bit; the exit code is
1 where any is not.
"""

import argparse
import contextlib
import csv
import gc
import io
import json
import logging
import os
import random
import runpy
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import datasets
import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizerFast

from cacse_trainer.cli.common import set_up_logging
from cacse_trainer.errors import RunError, UserError
from cacse_trainer.instruct.arguments import InstructModelArguments
from cacse_trainer.instruct.dataset import TRAIN, VALIDATION, write_records
from cacse_trainer.instruct.training import train_adapter
from cacse_trainer.runs.distill import distill
from cacse_trainer.runs.train import train
from cacse_trainer.settings.arguments import (
    CacseTrainingArguments,
    CommonTrainingArguments,
    DataArguments,
    ModelArguments,
)
from cacse_trainer.settings.distillation import DistillationArguments, EncoderChoice

STEPS, CUTS, BATCH = 6, (3, 5), 4
ROWS = {1: 18, 2: 22}
"""By accumulation. Passes of 4 batches, so that step 5 is in the second one; and of 5, which two do not divide."""
WORDS = [f"word{number}" for number in range(20)]

FAMILIES: dict[str, dict[str, Any]] = {
    "cacse": {
        "tower_a": "a",
        "tower_b": "b",
        "cascade_start_layer": 1,
        "constraint_layers": 1,
        "tower_dropout": [0.1, 0.1],
    },
    "simcse": {"model": "a", "dropout": 0.1},
    "simcse_mlm": {"model": "mlm", "dropout": 0.1, "mlm_weight": 0.1},
    "contrastive": {
        "model": "a",
        "pooling": "mean",
        "dropout": 0.1,
        "guide": "start",
        "guide_margin": 0.1,
        "within_view_negatives": True,
        "matryoshka_dims": [16, 4],
        "keep_weight": 10.0,
    },
    "tsdae": {"model": "a", "dropout": 0.1, "tsdae_layers": 1},
    "diffcse": {"model": "a", "dropout": 0.1, "generator": "mlm"},
    "decoder": {"model": "decoder", "pooling": "last_token", "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"]},
    "distill": {"student": "b", "dropout": 0.1},
    "instruct": {"model": "decoder", "lora_r": 2, "max_seq_length": 256},
}
"""Settings of the model; the names of its parts are folders of `write_inputs`."""
PARTS = ("model", "tower_a", "tower_b", "generator", "student")


class Cell(NamedTuple):
    """One combination."""

    family: str
    data: str
    workers: int
    accumulation: int
    precision: str

    def __str__(self) -> str:
        return f"{self.family}-{self.data}-workers{self.workers}-accumulation{self.accumulation}-{self.precision}"


def cells() -> list[Cell]:
    """All combinations that there are: distillation and TSDAE read no pairs, an instruction training its records."""
    kinds = {name: ("txt", "pairs", "stream") for name in FAMILIES}
    kinds.update(
        distill=("txt", "stream"), instruct=("records",), contrastive=("pairs", "stream"), tsdae=("txt", "stream")
    )
    return [
        Cell(family, data, *others)
        for family, own in kinds.items()
        for data, *others in product(own, (0, 2), (1, 2), ("float32", "bfloat16"))
    ]


def pairwise(every: Sequence[Cell]) -> list[Cell]:
    """Some of the cells, chosen greedily, among which each pair of values of two factors is that occurs in all."""

    def pairs(cell: Cell) -> set[Any]:
        return set(combinations(enumerate(cell), 2))

    open_pairs, chosen = set().union(*map(pairs, every)), []
    while open_pairs:
        best = max(every, key=lambda cell: len(pairs(cell) & open_pairs))
        chosen.append(best)
        open_pairs -= pairs(best)
    return chosen


def write_inputs(folder: Path) -> None:
    """Tiny models, and text of each length in `ROWS`."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(vocabulary), model_max_length=16)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=16, initializer_range=0.3, **sizes)
    for seed, name in enumerate(("a", "b", "mlm")):
        torch.manual_seed(seed)
        (BertForMaskedLM if name == "mlm" else BertModel)(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    generator = random.Random(0)
    for rows in ROWS.values():
        lines = [" ".join(generator.choices(WORDS, k=3 + i % 8)) for i in range(rows)]
        (folder / f"text{rows}.txt").write_text("\n".join(lines) + "\n")
        with (folder / f"pairs{rows}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("anchor", "positive"), *zip(lines, lines[::-1], strict=True)])
        records = [{"instruction": "Rate.", "input": line, "output": f"{i % 6}.0"} for i, line in enumerate(lines)]
        (folder / f"records{rows}").mkdir()
        write_records(folder / f"records{rows}" / TRAIN, records)
        write_records(folder / f"records{rows}" / VALIDATION, records[:2])
    make = runpy.run_path(str(Path(__file__).with_name("make_tiny_decoder.py")))["make_tiny_decoder"]
    make(
        folder / "decoder",
        "llama",
        text=folder / f"text{ROWS[1]}.txt",
        vocab_size=280,
        hidden_size=16,
        layers=2,
        heads=2,
    )


def train_cell(cell: Cell, inputs: Path, output: Path, *, resume: bool, **more: Any) -> None:
    """Six steps of a cell in a folder of its own, or what is left of them; ``more`` are training arguments."""
    own = {name: str(inputs / value) if name in PARTS else value for name, value in FAMILIES[cell.family].items()}
    rows = ROWS[cell.accumulation]
    shared: dict[str, Any] = {
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": cell.accumulation,
        "dataloader_num_workers": cell.workers,
        "bf16": str(cell.precision == "bfloat16"),
        "max_steps": STEPS,
        "eval_strategy": "no",
        "save_steps": 1,
        "save_total_limit": None,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
        **more,
    }
    if cell.family == "instruct":
        args = CommonTrainingArguments(str(output), **shared)
        train_adapter(InstructModelArguments(**own), args, inputs / f"records{rows}", output)
        return
    shared.update(export=False, resume_from_checkpoint="last" if resume else None)
    text = inputs / (f"pairs{rows}.csv" if cell.data == "pairs" else f"text{rows}.txt")
    data = DataArguments(
        train_file=str(text), evaluation="none", streaming=cell.data == "stream", shuffle_buffer=8, max_seq_length=16
    )
    if cell.family == "contrastive":
        data.keep_file = str(inputs / f"text{rows}.txt")
        data.mix = [f"{inputs / f'pairs{ROWS[1]}.csv'}=0.2"] if cell.data == "pairs" and rows != ROWS[1] else None
        shared["unique_batches"] = cell.data == "pairs"
    if cell.family == "distill":
        teachers = [EncoderChoice(f"path={inputs / 'a'}"), EncoderChoice(f"path={inputs / 'b'},pooling=mean")]
        distill(DistillationArguments(**own, teachers=teachers), data, CacseTrainingArguments(str(output), **shared))
    else:
        train(ModelArguments(**own), data, CacseTrainingArguments(str(output), **shared))


@contextlib.contextmanager
def without_reports() -> Iterator[None]:
    """No plots, which take longer to draw than these trainings, nor what the libraries print."""
    with (
        patch("cacse_trainer.runs.run.TrainingRun.report"),
        patch("cacse_trainer.instruct.training.plot_run"),
        patch("cacse_trainer.instruct.training.loss_page", lambda *_: ""),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


def outcome(output: Path) -> dict[str, Any]:
    """The losses of each step, and the weights after the last one."""
    last = output / f"checkpoint-{STEPS}"
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    losses = {
        f"{name} of step {entry['step']}": value
        for entry in history
        for name, value in entry.items()
        if name.startswith(("loss", "grad_norm"))
    }
    return {**losses, **{path.name: path.read_bytes() for path in sorted(last.glob("*.safetensors"))}}


@without_reports()
def difference(cell: Cell, inputs: Path, folder: Path, **more: Any) -> str | None:
    """Where a resumed run of a cell differs from the one straight through; None: nowhere."""
    train_cell(cell, inputs, folder / "whole", resume=False, **more)
    expected = outcome(folder / "whole")
    for cut in CUTS:
        output, name = folder / f"cut{cut}", f"checkpoint-{cut}"
        shutil.copytree(folder / "whole" / name, output / name)
        random.seed(cut)
        np.random.seed(cut)
        torch.manual_seed(cut)
        train_cell(cell, inputs, output, resume=True, **more)
        found = outcome(output)
        differing = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
        if differing:
            return f"resumed after step {cut}: {', '.join(differing[:3])}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), help="only these")
    parser.add_argument("--pairwise", action="store_true", help="only as many cells as hold each pair of two values")
    settings = parser.parse_args()
    set_up_logging()
    logging.getLogger("cacse_trainer").setLevel(logging.ERROR)
    datasets.logging.set_verbosity_error()
    chosen = [cell for cell in cells() if cell.family in settings.family]
    gc.freeze()  # accelerate collects garbage at each start, all that is imported with it
    wrong, counts = 0, dict.fromkeys(settings.family, 0)
    with tempfile.TemporaryDirectory() as temporary:
        inputs = Path(temporary, "inputs")
        write_inputs(inputs)
        for cell in pairwise(chosen) if settings.pairwise else chosen:
            started, folder = time.monotonic(), Path(temporary, str(cell))
            try:
                found = difference(cell, inputs, folder)
            except (UserError, RunError) as error:
                found = str(error)
            shutil.rmtree(folder, ignore_errors=True)
            wrong += found is not None
            counts[cell.family] += found is None
            print(f"{cell!s:<60} {found or 'bitwise'}  [{time.monotonic() - started:.1f} s]", flush=True)
    print("\n".join(f"{family:<12} {count} bitwise" for family, count in counts.items()))
    print(f"{sum(counts.values())} of {sum(counts.values()) + wrong} cells bitwise")
    return int(wrong > 0)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
