"""Peak memory of a training step, and its seconds: plain, with gradient caching, and sentence-transformers' two losses.

Each case trains one warm-up step and one measured step of its own process, so that the peaks do not mix: resident
memory on a CPU, allocated memory on a GPU. CACSE has the paper's settings, SimCSE is MiniLM's unless a model is given.

    python benchmarks/memory.py --text wiki.txt --cases "cacse cached" --batch 512 --mini_batch_size 32
    python benchmarks/memory.py --text wiki.txt --cases "simcse cached" "peer cached" --batch 8192 --mini_batch_size 64
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
from common import BERT_BASE, MINILM, Clock, lines_of, model_folder, peak_gb, quiet, save

from cacse_trainer.settings.precision import bf16_is_fast

CASES = ["simcse", "simcse cached", "peer", "peer cached", "cacse", "cacse cached"]


def our_trainer(settings: argparse.Namespace, path: str, rows: Any, output: str) -> Any:
    """`CacseTrainer` for the case, with the defaults of the command and, for a cached case, the mini-batch."""
    from transformers import AutoConfig, AutoTokenizer

    from cacse_trainer import CacseBertModel, CacseTrainer, SentenceEmbeddingModel
    from cacse_trainer.settings.arguments import CacseTrainingArguments

    model: Any
    if settings.case.startswith("cacse"):
        layers = AutoConfig.from_pretrained(path).num_hidden_layers
        model = CacseBertModel.from_towers(
            path,
            path,
            path,
            cascade_start_layer=layers * 7 // 12,
            constraint_layers=layers * 4 // 12,
            tower_dropout=[0.15, 0.15],
        )
    else:
        model = SentenceEmbeddingModel.from_encoder(path, pooling="cls_before_pooler", dropout=0.1)
    args = CacseTrainingArguments(
        output,
        bf16="auto",
        mini_batch_size=settings.mini_batch_size if settings.case.endswith("cached") else None,
        use_cpu=settings.device == "cpu",
        **common_arguments(settings),
    )
    return CacseTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(path),
        max_seq_length=settings.max_seq_length,
    )


def peer_trainer(settings: argparse.Namespace, path: str, rows: Any, output: str) -> Any:
    """sentence-transformers' trainer, with its cached loss or the plain one."""
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses, modules

    transformer = modules.Transformer(path, max_seq_length=settings.max_seq_length)
    width = transformer.get_embedding_dimension()
    peer = SentenceTransformer(modules=[transformer, modules.Pooling(width, pooling_mode="cls")])
    if settings.case.endswith("cached"):
        loss = losses.CachedMultipleNegativesRankingLoss(peer, mini_batch_size=settings.mini_batch_size)
    else:
        loss = losses.MultipleNegativesRankingLoss(peer)
    args = SentenceTransformerTrainingArguments(
        output,
        bf16=bf16_is_fast(),  # as ours
        use_cpu=settings.device == "cpu",
        **common_arguments(settings),
    )
    columns = rows.map(lambda row: {"positive": row["text"]}).rename_column("text", "anchor")
    return SentenceTransformerTrainer(peer, args, train_dataset=columns, loss=loss)


def common_arguments(settings: argparse.Namespace) -> dict[str, Any]:
    """Training arguments that both sides share."""
    return {
        "per_device_train_batch_size": settings.batch,
        "max_steps": 1 + settings.steps,
        "learning_rate": 1e-6,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "dataloader_drop_last": True,
    }


def measure(settings: argparse.Namespace) -> dict[str, float]:
    """Train in this process: peak memory, that before the first step, and the seconds of a step after the first."""
    from datasets import Dataset

    class Steps(Clock):
        ends: list[float]

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ends.append(time.perf_counter())

    quiet()
    with tempfile.TemporaryDirectory() as folder:
        path = model_folder(settings.model, Path(folder))
        rows = Dataset.from_dict({"text": lines_of(settings.text, settings.batch * (1 + settings.steps))})
        build = peer_trainer if settings.case.startswith("peer") else our_trainer
        trainer = build(settings, path, rows, folder)
        steps = Steps()
        steps.ends = []
        trainer.add_callback(steps)
        before = peak_gb()
        trainer.train()
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
    cuda = settings.device == "cuda"
    return {
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else peak_gb(),
        "peak_gb_before_training": before,
        "weights_gradients_and_adam_gb": 4e-9 * sum(p.numel() for p in trainer.model.parameters())
        + 12e-9 * sum(p.numel() for p in trained),
        "step_seconds": (steps.ends[-1] - steps.ends[0]) / settings.steps,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES[:4])
    parser.add_argument("--model", help=f"default: {BERT_BASE} (BERT-base, random) for cacse, MiniLM for the others")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--mini_batch_size", type=int, default=32, help="sentences at once, in the cached cases")
    parser.add_argument("--steps", type=int, default=1, help="measured steps, after one that is not")
    parser.add_argument("--max_seq_length", type=int, default=64)
    parser.add_argument("--text", default="sample:sentences.txt", help="a sentence a line")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--limit_gb", type=float, help="exit 1 where a cached case of ours needs more")
    parser.add_argument("--output", type=Path, help="JSON file; the plot lies beside it")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.device == "cuda" and not torch.cuda.is_available():
        print("nothing measured: no CUDA device here")
        return 0
    if settings.case:
        print(json.dumps(measure(settings)))
        return 0
    rows: dict[str, dict[str, float]] = {}
    print(f"batch {settings.batch}, mini-batches of {settings.mini_batch_size}, {settings.device}")
    print(f"{'':20}{'peak GB':>9}{'weights, gradients, Adam':>26}{'step seconds':>14}", flush=True)
    for case in settings.cases:
        model = settings.model or (BERT_BASE if case.startswith("cacse") else MINILM)
        command = [sys.executable, __file__, *sys.argv[1:], "--case", case, "--model", model]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        rows[case] = json.loads(done.stdout.splitlines()[-1])
        row = rows[case]
        print(
            f"{case:20}{row['peak_gb']:9.2f}{row['weights_gradients_and_adam_gb']:26.2f}{row['step_seconds']:14.1f}",
            flush=True,
        )
    title = f"batch {settings.batch}, mini-batches of {settings.mini_batch_size}"
    peaks = {name: row["peak_gb"] for name, row in rows.items()}
    save(settings.output, {"batch": settings.batch, "cases": rows}, {title: peaks}, "peak memory, GB")
    ours = {name: peak for name, peak in peaks.items() if name in ("simcse cached", "cacse cached")}
    over = [name for name, peak in ours.items() if settings.limit_gb is not None and peak > settings.limit_gb]
    if over:
        print(f"OVER {settings.limit_gb} GB: {', '.join(over)}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
