"""What is about to be trained, for the log and the report."""

import logging
import os
import sys
from typing import Any

import torch
from torch import nn

from cacse_trainer.compute.distributed import launched_alone, world_size

logger = logging.getLogger(__name__)

SUMMARY_ROWS = 512  # rows from which the tokens of a batch are estimated


def describe(trainer: Any) -> dict[str, Any]:
    """Parameters, batch, effective negatives, tokens a batch and dropout in force of a `CacseTrainer`."""
    args, model, rows = trainer.args, trainer.model, trainer.train_dataset
    compute = trainer.model_of_run.compute
    batch = args.train_batch_size * world_size()
    parameters = list(model.parameters())
    shared = compute.negatives == "global"
    summary = {
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "parameters": sum(p.numel() for p in parameters),
        "processes": world_size(),
        "global_batch": batch,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "negatives": compute.negatives,
        "effective_negatives": trainer.effective_negatives(batch if shared else args.train_batch_size),
        "negatives_shared_between_processes": world_size() > 1 and shared,
        "duplicates_masked": trainer.mask_duplicates,
        "dropout": _dropout_in_force(model),
    }
    if rows is not None and hasattr(rows, "__len__"):
        summary["training_rows"] = len(rows)
        summary.update(_tokens_a_batch(rows, trainer.data_collator, args.train_batch_size))
    return summary


def _dropout_in_force(model: nn.Module) -> dict[str, list[float]]:
    found: dict[str, set[float]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            found.setdefault(name.split(".")[0], set()).add(module.p)
    return {part: sorted(values) for part, values in found.items()}


def _tokens_a_batch(dataset: Any, collator: Any, size: int) -> dict[str, int]:
    count = min(len(dataset), max(SUMMARY_ROWS, size)) // size * size
    step = max(1, len(dataset) // count)
    rows = [dataset[i * step] for i in range(count)]
    batches = [collator(rows[i : i + size]) for i in range(0, count, size)]
    masks = [batch.get("attention_mask", torch.ones_like(batch["input_ids"])) for batch in batches]
    return {
        "tokens_a_batch": round(sum(int(mask.sum()) for mask in masks) / len(masks)),
        "padded_tokens_a_batch": round(sum(mask.numel() for mask in masks) / len(masks)),
    }


def describe_text(model_name: str, summary: dict[str, Any]) -> str:
    """`describe` as the lines that a person reads before the first step."""
    trainable, all_of_them = summary["trainable_parameters"], summary["parameters"]
    dropout = ", ".join(f"{part} {'/'.join(map(str, values))}" for part, values in summary["dropout"].items())
    shared = ", of each process's own rows only (negatives: local)" if summary["processes"] > 1 else ""
    if summary["negatives_shared_between_processes"]:
        shared = ", shared between the processes"
    lines = [
        f"training {model_name}: {trainable / 1e6:.1f} M of {all_of_them / 1e6:.1f} M parameters",
        f"  batch of {summary['global_batch']} rows on {summary['processes']} process(es), "
        f"{summary['effective_negatives']} effective negatives{shared}",
        f"  dropout in force: {dropout or 'none'}",
    ]
    if "training_rows" in summary:
        lines.append(
            f"  {summary['training_rows']} rows; {summary['tokens_a_batch']} tokens a batch, "
            f"{summary['padded_tokens_a_batch']} with padding"
        )
    return "\n".join(lines)


def tell(trainer: Any) -> dict[str, Any]:
    """Log what a `CacseTrainer` is about to train and what the reader can act on; returns its `describe`."""
    summary = trainer.describe()
    text = describe_text(type(trainer.model).__name__, summary)
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", text)
    elif logging.getLogger("cacse_trainer").level == logging.NOTSET:
        print(text, file=sys.stderr)  # used from Python, where nobody has set up logging: said all the same
    if (alone := launched_alone()) is not None:
        logger.warning("%s", alone)
    if (left := _left_off(trainer)) is not None:
        logger.warning("%s", left)
    if trainer.args.gradient_accumulation_steps > 1:
        logger.warning(
            "gradient_accumulation_steps=%d adds no negatives: each part of a batch only sees its own %d; "
            "a larger per_device_train_batch_size does (mini_batch_size bounds its memory)",
            trainer.args.gradient_accumulation_steps,
            summary["effective_negatives"],
        )
    return summary


def _left_off(trainer: Any) -> str | None:
    """What to tell where ``accelerate launch`` asked for sharding and accelerate has left it off."""
    asked = {
        "FSDP": ("ACCELERATE_USE_FSDP", trainer.is_fsdp_enabled),
        "DeepSpeed": ("ACCELERATE_USE_DEEPSPEED", trainer.is_deepspeed_enabled),
    }
    for name, (variable, is_on) in asked.items():
        if os.environ.get(variable, "false").lower() == "true" and not is_on:
            return (
                f"{name} was asked for, and accelerate leaves it off on a CPU and in a lone process: the weights are "
                "not sharded, and several processes train with DDP"
            )
    return None
