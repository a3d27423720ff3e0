"""A decoder with STS-CFT's recipe: tokens a second and peak memory, plain, with gradient caching, with checkpointing.

The model has random weights of a given size (2b is Gemma-2B's), a LoRA adapter of rank 8 and rows of three sentences.
Each case trains in a process of its own, so that the peaks do not mix; the first step is not counted. A case that does
not fit into the memory says so.

    python benchmarks/decoder.py                                                     (small, for a CPU)
    python benchmarks/decoder.py --size 2b --batch 256 --mini_batch_size 16 --output decoder.json
    python benchmarks/decoder.py --size 2b --batch 28 --cases plain checkpointing
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import MINILM, lines_of, peak_gb, quiet, save
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer, GemmaConfig, PrinterCallback, TrainerCallback

from cacse_trainer import CacseTrainer, SentenceEmbeddingModel
from cacse_trainer.models import SentenceEmbeddingConfig
from cacse_trainer.models.adapters import LoraSettings, add_lora
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.settings.resources import resolve_resource

SIZES = {
    "small": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4},
    "2b": {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8},
}
HEAD = {"small": 64, "2b": 256}
VOCABULARY = {"small": 32000, "2b": 256000}
CASES = ("plain", "cached", "checkpointing", "cached checkpointing")


class Steps(TrainerCallback):
    """When each step was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def build(settings: argparse.Namespace) -> SentenceEmbeddingModel:
    """The model on its device, the frozen weights in bfloat16 on a GPU."""
    config = GemmaConfig(
        vocab_size=VOCABULARY[settings.size],
        num_key_value_heads=1,
        head_dim=HEAD[settings.size],
        **SIZES[settings.size],
    )
    dtype = torch.bfloat16 if settings.device == "cuda" else torch.float32
    with torch.device(settings.device):
        encoder = AutoModel.from_config(config, dtype=dtype)
    model = SentenceEmbeddingModel(SentenceEmbeddingConfig(config, pooling="last_token"), encoder)
    add_lora(model.encoder, LoraSettings(8, 32, 0.1, ["q_proj", "v_proj"]), base_model="random")
    return model


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """One case: seconds a step, tokens a second, peak memory."""
    quiet()
    rows = settings.batch * (settings.steps + 1)
    lines = lines_of(settings.text, 3 * rows)
    columns = {name: lines[i::3] for i, name in enumerate(("anchor", "positive", "hard_negative"))}
    torch.manual_seed(0)
    model = build(settings)
    with tempfile.TemporaryDirectory() as folder:
        args = CacseTrainingArguments(
            folder,
            per_device_train_batch_size=settings.batch,
            max_steps=settings.steps + 1,
            mini_batch_size=settings.mini_batch_size if "cached" in settings.case else None,
            gradient_checkpointing="checkpointing" in settings.case,
            learning_rate=5e-5,
            bf16="true" if settings.device == "cuda" else "auto",
            use_cpu=settings.device == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = CacseTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_dict(columns),
            processing_class=AutoTokenizer.from_pretrained(resolve_resource(MINILM)),
            max_seq_length=settings.max_seq_length,
        )
        steps = Steps()
        trainer.add_callback(steps)
        trainer.remove_callback(PrinterCallback)
        tokens = trainer.describe()["tokens_a_batch"]
        trainer.train()
    seconds = (steps.times[-1] - steps.times[0]) / settings.steps
    gpu = settings.device == "cuda"
    return {
        "seconds_a_step": seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_a_step": tokens,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if gpu else peak_gb(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def run_case(case: str, arguments: list[str]) -> dict[str, Any] | None:
    """`measure` in a process of its own; None when its memory does not do."""
    command = [sys.executable, __file__, *arguments, "--case", case]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if "out of memory" in done.stderr.lower() or done.returncode < 0:
        return None
    raise SystemExit(done.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--text", default="sample:sentences.txt", help="three lines of it are a row")
    parser.add_argument("--batch", type=int, default=32, help="rows of three sentences")
    parser.add_argument("--mini_batch_size", type=int, default=16, help="sentences at once in the cached cases")
    parser.add_argument("--max_seq_length", type=int, default=150)
    parser.add_argument("--steps", type=int, default=3, help="that are counted")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="report as JSON, and a plot beside it")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.case is not None:
        print(json.dumps(measure(settings)))
        return
    found: dict[str, dict[str, Any]] = {}
    print(
        f"{settings.size} on {settings.device}: batch {settings.batch}, gradient caching by {settings.mini_batch_size}"
    )
    print(f"{'':24}{'tokens/s':>12}{'s a step':>12}{'peak GB':>10}")
    for case in settings.cases:
        row = run_case(case, sys.argv[1:])
        if row is None:
            print(f"{case:24}{'out of memory':>34}", flush=True)
            continue
        found[case] = row
        print(
            f"{case:24}{row['tokens_per_second']:12.0f}{row['seconds_a_step']:12.2f}{row['peak_gb']:10.2f}", flush=True
        )
    bars = {
        "tokens a second": {case: row["tokens_per_second"] for case, row in found.items()},
        "peak memory, GB": {case: row["peak_gb"] for case, row in found.items()},
    }
    report = {"settings": {**vars(settings), "output": str(settings.output)}, "cases": found}
    save(settings.output, report, bars, "")


if __name__ == "__main__":
    main()
