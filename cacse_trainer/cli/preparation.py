"""Before a training run: its output folder, its text, its dev sets."""

import json
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint

from cacse_trainer.arguments import CacseTrainingArguments, DataArguments
from cacse_trainer.cli.build import public_name
from cacse_trainer.cli.common import REPORT, STSB_ON_THE_HUB, user_errors
from cacse_trainer.data import load_sentences, load_sentences_with_stats
from cacse_trainer.distributed import barrier
from cacse_trainer.errors import UserError
from cacse_trainer.recipes import nearest, resolve_resource
from cacse_trainer.trainer import STAGING, Scorer

WRITTEN_BY_A_RUN = (
    *(
        "checkpoint-*",
        STAGING,
        "export",
        ".*.partial",
        REPORT,
        "report.html",
        "training_curves.png",
        "runs",
        "README.md",
    ),
    *("config.json", "model*.safetensors*", "training_args.bin", "tokenizer*", "special_tokens_map.json", "vocab.*"),
    *("merges.txt", "added_tokens.json", "sentencepiece*", "spiece.model", "encoder_*", "chat_template.jinja"),
)
"""Names in an output folder that a run leaves there; nothing else in it is ever deleted."""


def check_output_dir(args: CacseTrainingArguments) -> str | None:
    """Refuse a folder that holds another run; returns the checkpoint to resume from, if any. Deletes nothing.

    Raises:
        UserError: the folder is finished, holds checkpoints that were not asked for, or cannot be written.
    """
    folder = Path(str(args.output_dir))
    resume = args.resume_from_checkpoint
    finished = (folder / REPORT).is_file()
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if is_overwritten(args) and folder.is_dir():
        foreign = [path for path in folder.iterdir() if not _is_of_a_run(path)]
        if not finished and last is None and foreign:
            raise UserError(f"output_dir {folder} holds files that are no run of this program; choose another folder")
    elif finished and not args.overwrite_output_dir:
        raise UserError(
            f"output_dir {folder} holds a finished run ({REPORT}); "
            "choose another --output_dir, or --overwrite_output_dir"
        )
    with user_errors(f"output_dir {folder} cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        if args.process_index == 0:
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
    if resume is None:
        if last is not None and not args.overwrite_output_dir:
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


def is_overwritten(args: CacseTrainingArguments) -> bool:
    """Whether this run replaces an earlier one in its folder: a resumed run never does."""
    return args.overwrite_output_dir and args.resume_from_checkpoint is None


def clear_output_dir(args: CacseTrainingArguments) -> None:
    """Delete the earlier run that is overwritten; called when all else was checked, just before training."""
    if is_overwritten(args):
        folder = Path(str(args.output_dir))
        if args.process_index == 0:
            for path in filter(_is_of_a_run, list(folder.iterdir())):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        barrier()


def _is_of_a_run(path: Path) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in WRITTEN_BY_A_RUN)


def check_checkpoint(checkpoint: str, model: PreTrainedModel) -> None:
    """Refuse to resume from a damaged checkpoint, or from one of a model with other settings.

    Raises:
        UserError: with what is damaged, or the first setting that differs and both its values.
    """
    folder = Path(checkpoint)
    with user_errors(f"resume: {checkpoint} is damaged, go on from another checkpoint"):
        for weights in folder.glob("*.safetensors"):
            safe_open(weights, "pt")
        before = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name, now in model.config.to_dict().items():
        settled = isinstance(now, (int, float, str)) and name not in ("transformers_version", "_name_or_path", "dtype")
        if settled and name in before and before[name] != now:
            raise UserError(f"resume: {checkpoint} was trained with {name}={before[name]}, this run says {now}")


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
    if data_args.evaluation == "none" or (args.eval_strategy == "no" and not data_args.dev_file):
        args.eval_strategy = "no"  # type: ignore[assignment]
        args.load_best_model_at_end = False
        args.metric_for_best_model = None
        return False
    return True


DEV_FILES = {"stsb": "downstream/STS/STSBenchmark/sts-dev.csv", "sickr": "downstream/SICK/SICK_trial.txt"}
"""Named dev sets, below SentEval's data folder."""


def dev_entries(data_args: DataArguments) -> list[str] | None:
    """``dev_file`` and ``eval_sets`` as ``name=path`` each; None when neither is given.

    Raises:
        UserError: an unknown name, or its file is missing.
    """
    entries = list(data_args.dev_file or [])
    for name in data_args.eval_sets or []:
        path = Path(data_args.senteval_data) / DEV_FILES.get(name, "")
        if "=" in name:
            entries.append(name)
        elif name not in DEV_FILES:
            raise UserError(
                f"eval_sets {name!r}: give {', '.join(DEV_FILES)} or name=path{nearest(name, list(DEV_FILES))}"
            )
        elif path.is_file():
            entries.append(f"{name}={path}")
        elif name == "stsb":
            entries.append(f"{name}={STSB_ON_THE_HUB}")
        else:
            raise UserError(
                f"eval_sets {name}: no file {path}; run bash SentEval/data/downstream/download_dataset.sh, "
                "or point senteval_data to SentEval's data folder"
            )
    return entries or None


def transfer_scorers(data_args: DataArguments) -> list[Scorer]:
    """With ``eval_transfer`` the scorer of SentEval's transfer tasks.

    Raises:
        UserError: no task has its data.
    """
    if not data_args.eval_transfer:
        return []
    from cacse_trainer.evaluation.transfer_dev import TransferDevScorer  # senteval is only needed here

    return [TransferDevScorer(Path(data_args.senteval_data))]


def check_metric(args: CacseTrainingArguments, dev_sets: dict[str, Dataset], scorers: Sequence[Scorer] = ()) -> None:
    """The metric that chooses the best model must belong to a dev set, or be the average of the transfer tasks.

    Raises:
        UserError: with the metrics there are.
    """
    metric = args.metric_for_best_model
    known = [f"{name}_{kind}" for name in dev_sets for kind in ("spearman", "pearson")]
    known += ["transfer_avg"] if scorers else []
    if metric is not None and args.eval_strategy != "no" and str(metric).removeprefix("eval_") not in known:
        raise UserError(f"metric_for_best_model={metric}: the dev sets give {', '.join(known) or 'none'}")
