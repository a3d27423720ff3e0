"""``cacse-trainer train``: settings → data → model → trainer → train → export.

cacse-trainer train --config quickstart
cacse-trainer train --config cacse/bert_base --train_file wiki1m.txt --output_dir runs/cacse
"""

import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from cacse_trainer.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.cli.build import (
    base_models,
    build_collator,
    build_model,
    check_export,
    check_fit,
    dev_scores,
    export_model,
    public_name,
)
from cacse_trainer.cli.common import load_dev_sets, run, user_errors
from cacse_trainer.data import load_sentences, load_sentences_with_stats
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.report import curve, environment, peak_memory_gb, plot_run, write_report
from cacse_trainer.evaluation.sts import score_pairs
from cacse_trainer.export.model_card import CardFacts
from cacse_trainer.recipes import parse_run, resolve_resource
from cacse_trainer.trainer import CacseTrainer

logger = logging.getLogger(__name__)

REPORT = "training_report.json"
EPILOG = """examples:
  cacse-trainer train --config quickstart
  cacse-trainer train --config cacse/bert_base --train_file wiki1m.txt --output_dir runs/cacse
  cacse-trainer train --config cacse/minilm --train_file mine.txt --dev_file stsb=sts-dev.csv --max_steps 200
"""


class NothingLearnedError(RuntimeError):
    """Every dev score was undefined; there is no model worth exporting."""


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    started = time.time()
    model_args, data_args, args, recipe = parse_run(
        [ModelArguments, DataArguments, CacseTrainingArguments],
        arguments,
        prog="cacse-trainer train",
        description="Train sentence encoders on raw text and export them.",
        epilog=EPILOG,
    )
    checkpoint = prepare_output_dir(args)
    train_dataset, data_facts = load_training_text(data_args, args)
    dev_sets = load_dev_sets(data_args.dev_file) if uses_dev_sets(data_args, args) else {}
    set_seed(args.seed)
    model, tokenizer = build_model(model_args)
    if args.export:
        check_export(model)
    check_fit(model, tokenizer, data_args.max_seq_length)
    check_metric(args, dev_sets)

    trainer = CacseTrainer(
        model=model,
        args=args,
        data_collator=build_collator(model, tokenizer, data_args),
        train_dataset=train_dataset,
        eval_dataset=dev_sets or None,
        processing_class=tokenizer,
        max_seq_length=data_args.max_seq_length,
        eval_max_seq_length=data_args.eval_max_seq_length,
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    summary = summarise(trainer, dev_sets)
    # accelerate leaves its autocast around forward; what is exported and compared is the float32 model itself
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False, keep_torch_compile=False)
    exported: dict[str, dict[str, float]] = {}
    if args.export and trainer.is_world_process_zero():
        facts = CardFacts(
            title=Path(args.output_dir).resolve().name,
            what="",
            base_models=base_models(model_args),
            data=f"{public_name(data_args.train_file)}, {data_facts.get('kept', 'streamed')} rows",
            settings=card_settings(model_args, data_args, args, recipe),
        )
        exported = export_model(
            trained, tokenizer, Path(args.output_dir) / "export", facts, dev_scores(dev_sets, score_pairs)
        )
    trainer.save_model()
    if trainer.is_world_process_zero():
        finish(trainer, summary, exported, started, result, data_facts, model_args, data_args, recipe)


def prepare_output_dir(args: CacseTrainingArguments) -> str | None:
    """Refuse a folder that holds another run; returns the checkpoint to resume from, if any.

    Raises:
        UserError: the folder is finished, holds checkpoints that were not asked for, or cannot be written.
    """
    folder = Path(args.output_dir)
    resume = args.resume_from_checkpoint
    finished = (folder / REPORT).is_file()
    main_process = args.process_index == 0
    if args.overwrite_output_dir and resume is None and folder.is_dir() and main_process:
        if not finished and get_last_checkpoint(str(folder)) is None and any(folder.iterdir()):
            raise UserError(f"output_dir {folder} holds files that are no run of this program; choose another folder")
        shutil.rmtree(folder)
    elif finished and not args.overwrite_output_dir:
        raise UserError(
            f"output_dir {folder} holds a finished run ({REPORT}); "
            "choose another --output_dir, or --overwrite_output_dir"
        )
    with user_errors(f"output_dir {folder} cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        if main_process:
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
    last = get_last_checkpoint(str(folder))
    if resume is None:
        if last is not None:
            raise UserError(
                f"output_dir {folder} holds an unfinished run ({Path(last).name}); go on with "
                "--resume_from_checkpoint last, or start anew with --overwrite_output_dir"
            )
        return None
    if resume in ("last", "true", "True"):
        if last is None:
            raise UserError(f"nothing to resume: output_dir {folder} holds no checkpoint")
        return last
    if not Path(resume).is_dir():
        raise UserError(f"resume_from_checkpoint {resume}: no such folder; give last, or a checkpoint folder")
    return resume


def load_training_text(
    data_args: DataArguments, args: CacseTrainingArguments
) -> tuple[Dataset | IterableDataset, dict[str, Any]]:
    """The training rows, and what is known of them for the report."""
    if data_args.train_file is None:
        raise UserError("no training text: give train_file, in a recipe or as --train_file FILE")
    source = resolve_resource(data_args.train_file)
    if data_args.streaming:
        if args.max_steps <= 0:
            raise UserError("streaming needs max_steps: the length of the text is not known before it is read")
        return load_sentences(source, data_args.text_columns, streaming=True), {"source": public_name(source)}
    dataset, stats = load_sentences_with_stats(source, data_args.text_columns)
    return dataset, {
        "source": public_name(source),
        "columns": list(stats.columns),
        "rows": stats.rows,
        "blank_dropped": stats.blank,
        "kept": stats.kept,
        "duplicates_in_sample": f"{stats.sampled_duplicates} of {stats.sampled}",
    }


def uses_dev_sets(data_args: DataArguments, args: CacseTrainingArguments) -> bool:
    """Whether dev sets are scored; with ``evaluation: none`` the settings that need a score are switched off."""
    if data_args.evaluation not in ("sts", "none"):
        raise UserError(f"evaluation must be sts or none, got {data_args.evaluation!r}")
    if data_args.evaluation == "none":
        args.eval_strategy = "no"  # type: ignore[assignment]
        args.load_best_model_at_end = False
        args.metric_for_best_model = None
        return False
    return True


def check_metric(args: CacseTrainingArguments, dev_sets: dict[str, Dataset]) -> None:
    """The metric that chooses the best model must belong to a dev set.

    Raises:
        UserError: with the metrics there are.
    """
    metric = args.metric_for_best_model
    known = [f"{name}_{kind}" for name in dev_sets for kind in ("spearman", "pearson")]
    if args.load_best_model_at_end and str(metric).removeprefix("eval_") not in known:
        raise UserError(f"metric_for_best_model={metric}: the dev sets give {', '.join(known) or 'none'}")


def summarise(trainer: CacseTrainer, dev_sets: dict[str, Dataset]) -> dict[str, Any]:
    """Baseline, best and last score of the metric that chooses; says loudly when training did not help.

    Raises:
        NothingLearnedError: every score is undefined.
    """
    if not dev_sets or trainer.args.eval_strategy == "no":
        return {}
    metric = trainer.args.metric_for_best_model or f"{next(iter(dev_sets))}_spearman"
    points = curve(trainer.state.log_history, f"eval_{metric.removeprefix('eval_')}")
    trained = [point for point in points if point["step"] > 0]
    defined = [point for point in trained if point["value"] == point["value"]]
    if trained and not defined:
        raise NothingLearnedError(
            f"every {metric} is undefined (NaN): nothing is exported; look at the loss in the log"
        )
    baseline = next((point["value"] for point in points if point["step"] == 0), None)
    chosen = max if trainer.args.greater_is_better is not False else min
    best = chosen(defined, key=lambda point: point["value"]) if defined else None
    if best is not None and baseline is not None and best["value"] <= baseline:
        logger.warning(
            "TRAINING DID NOT HELP: the best %s is %.2f (step %d), the untrained model had %.2f",
            metric,
            best["value"],
            best["step"],
            baseline,
        )
    return {
        "metric": metric,
        "baseline": baseline,
        "best": best["value"] if best else None,
        "best_step": best["step"] if best else None,
        "curve": points,
    }


def card_settings(
    model_args: ModelArguments, data_args: DataArguments, args: Any, recipe: str | None
) -> dict[str, Any]:
    """What the model card repeats of the settings."""
    return {
        "recipe": Path(recipe).stem if recipe and Path(recipe).exists() else recipe,
        "learning rate": f"{args.learning_rate:g} ({args.lr_scheduler_type})",
        "batch": args.per_device_train_batch_size * args.world_size,
        "steps": args.max_steps if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs",
        "temperature": model_args.contrastive_temperature,
        "max_seq_length": data_args.max_seq_length,
        "seed": args.seed,
        "bf16": args.bf16,
    }


def finish(
    trainer: CacseTrainer,
    summary: dict[str, Any],
    exported: dict[str, dict[str, float]],
    started: float,
    result: Any,
    data_facts: dict[str, Any],
    model_args: ModelArguments,
    data_args: DataArguments,
    recipe: str | None,
) -> None:
    """Write the report and the plot, and print what came out."""
    folder = Path(trainer.args.output_dir)
    history = trainer.state.log_history
    dev_metrics = sorted(
        {key for entry in history for key in entry if key.startswith("eval_") and key.endswith("_spearman")}
    )
    plot_run(folder / "training_curves.png", history, dev_metrics)
    settings = {**vars(model_args), **vars(data_args), **trainer.args.to_sanitized_dict(), "recipe": recipe}
    write_report(
        folder / REPORT,
        {
            "model": type(trainer.model).__name__,
            "run": trainer.describe(),
            "data": data_facts,
            **summary,
            "exported": exported,
            "steps": result.global_step,
            "train_loss": result.training_loss,
            "wall_seconds": time.time() - started,
            "train_seconds": result.metrics.get("train_runtime"),
            "peak_memory_gb": peak_memory_gb(),
            "environment": environment(),
            "settings": settings,
            "log_history": history,
        },
    )
    print(summary_text(folder, summary, exported, result.global_step))


def summary_text(folder: Path, summary: dict[str, Any], exported: dict[str, dict[str, float]], steps: int) -> str:
    """The closing lines of a run, for a person."""
    lines = [f"trained {steps} steps"]
    if summary.get("best") is not None:
        gain = summary["best"] - summary["baseline"] if summary["baseline"] is not None else 0.0
        lines.append(
            f"{summary['metric']}: baseline {summary['baseline'] or 0.0:.2f}, "
            f"best {summary['best']:.2f} at step {summary['best_step']} ({gain:+.2f})"
        )
    for name, scores in exported.items():
        measured = ", ".join(f"{dev} {score:.2f}" for dev, score in scores.items())
        lines.append(f"  {folder / 'export' / name}" + (f"   {measured}" if measured else ""))
    lines.append(f"report: {folder / REPORT}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main))
