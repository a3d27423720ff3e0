"""A run's output folder: what may lie in it, which checkpoint goes on, what is replaced, and who is at work in it."""

import contextlib
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from transformers import PreTrainedModel

from cacse_trainer.compute.distributed import barrier
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.files import LOCK, give_back, read_object, take
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.training.checkpoints import STAGING, check_whole, list_checkpoints, newest_whole

REPORT = "training_report.json"
"""What a finished run leaves last in its output folder."""
PAGE = "report.html"
"""The same for people, written just before."""
CURVES = "training_curves.png"

WRITTEN_BY_A_RUN = (
    *("checkpoint-*", STAGING, LOCK, "export", ".*.partial", REPORT, PAGE, CURVES, "runs", "README.md", "adapter_*"),
    *("config.json", "model*.safetensors*", "training_args.bin", "tokenizer*", "special_tokens_map.json", "vocab.*"),
    *("merges.txt", "added_tokens.json", "sentencepiece*", "spiece.model", "encoder_*", "chat_template.jinja"),
)
"""Names in an output folder that a run leaves there; nothing else in it is ever deleted."""


def check_output_dir(args: CacseTrainingArguments) -> str | None:
    """Refuse a folder that holds another run; returns the checkpoint to resume from, if any. Deletes nothing.

    Raises:
        UserError: the folder is finished, holds checkpoints that were not asked for, or cannot be written; the
            checkpoint asked for is damaged.
    """
    folder = Path(str(args.output_dir))
    resume = args.resume_from_checkpoint
    finished = (folder / REPORT).is_file()
    last = next(reversed(list_checkpoints(folder)), None)
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
                f"output_dir {folder} holds an unfinished run ({last.name}); go on with "
                "--resume_from_checkpoint last, or start anew with --overwrite_output_dir"
            )
        return None
    if resume in ("last", "true", "True"):
        newest = newest_whole(folder)
        if newest is None:
            raise UserError(f"nothing to resume: output_dir {folder} holds no checkpoint")
        return str(newest)
    if not Path(resume).is_dir():
        raise UserError(f"resume_from_checkpoint {resume}: no such folder; give last, or a checkpoint folder")
    check_whole(resume)
    return resume


def is_overwritten(args: CacseTrainingArguments) -> bool:
    """Whether this run replaces an earlier one in its folder: a resumed run never does."""
    return args.overwrite_output_dir and args.resume_from_checkpoint is None


def clear_output_dir(args: CacseTrainingArguments) -> None:
    """Delete the earlier run that is overwritten; called when all else was checked, just before training."""
    if is_overwritten(args):
        folder = Path(str(args.output_dir))
        if args.process_index == 0:
            for path in [path for path in folder.iterdir() if _is_of_a_run(path) and path.name != LOCK]:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        barrier()


@contextlib.contextmanager
def occupied(args: CacseTrainingArguments) -> Iterator[None]:
    """Keep the output folder to this run, until it ends in whatever way.

    Raises:
        UserError: another run is at work in it.
    """
    held = take(Path(str(args.output_dir)) / LOCK) if args.process_index == 0 else None
    if args.process_index == 0 and held is None:
        raise UserError(f"output_dir {args.output_dir} is in use by another run; wait for its end, or choose another")
    try:
        yield
    finally:
        if held is not None:
            give_back(held)


def _is_of_a_run(path: Path) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in WRITTEN_BY_A_RUN)


def check_checkpoint(checkpoint: str, model: PreTrainedModel) -> None:
    """Refuse to resume from a checkpoint of a model with other settings."""
    before = read_object(Path(checkpoint) / "config.json", "go on from another checkpoint")
    for name, now in model.config.to_dict().items():
        settled = isinstance(now, (int, float, str)) and name not in ("transformers_version", "_name_or_path", "dtype")
        if settled and name in before and before[name] != now:
            raise UserError(f"resume: {checkpoint} was trained with {name}={before[name]}, this run says {now}")
