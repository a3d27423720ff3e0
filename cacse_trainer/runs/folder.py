"""A run's output folder: what may lie in it, which checkpoint goes on, what is replaced, and who is at work in it."""

import contextlib
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from cacse_trainer.compute.distributed import barrier
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.files import LOCK, MODEL_FILES, foreign, give_back, refuse_foreign, take, write_json
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.training.checkpoints import (
    STAGING,
    check_whole,
    foreign_in_checkpoint,
    is_checkpoint,
    list_checkpoints,
    newest_whole,
    step_of,
)

REPORT = "training_report.json"
"""What a finished run leaves last in its output folder."""
PAGE = "report.html"
"""The same for people, written just before."""
CURVES = "training_curves.png"

RUN = ".run.json"
"""The mark of a run in its output folder, there before anything else: what bears one of these names is the run's."""
EXPORT = "export"
OF_A_RUN = (*MODEL_FILES, "tokenizer_[0-9]*", EXPORT, REPORT, PAGE, CURVES, STAGING, RUN, LOCK, ".*.partial")
"""Those names. Checkpoints are known by what they hold, and so are TensorBoard's logs; nothing else is ever deleted."""
LOGS = "runs"


def check_output_dir(args: CacseTrainingArguments) -> str | None:
    """Refuse a folder that holds another run; returns the checkpoint to resume from, if any. Deletes nothing.

    Raises:
        UserError: the folder is finished, holds checkpoints that were not asked for, or cannot be written; the
            checkpoint asked for is damaged; changes are allowed, but nothing is resumed.
    """
    folder = Path(str(args.output_dir))
    resume = args.resume_from_checkpoint
    if args.resume_with_changes and resume is None:
        raise UserError("resume_with_changes is for a run that goes on: give --resume_from_checkpoint last, too")
    finished = (folder / REPORT).is_file()
    last = next(reversed(list_checkpoints(folder)), None)
    if not (finished or last or resume or (folder / RUN).is_file()) and folder.is_dir():
        _check_free(folder, whole=args.overwrite_output_dir)
    if is_overwritten(args):
        refuse_foreign(folder, foreign_in_run(folder))
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


def _check_free(folder: Path, *, whole: bool) -> None:
    """Refuse a folder that is no run's and holds what a run would replace; with ``whole`` one that holds anything."""
    for path in sorted(folder.iterdir()):
        passing = path.name == STAGING or path.name.startswith(".")  # of a run that ended early, of another process
        if not passing and (whole or is_of_a_run(path) or step_of(path) is not None):
            raise UserError(
                f"output_dir {folder} holds files that are no run of this program ({path.name}); choose another folder"
            )


def is_overwritten(args: CacseTrainingArguments) -> bool:
    """Whether this run replaces an earlier one in its folder: a resumed run never does."""
    return args.overwrite_output_dir and args.resume_from_checkpoint is None


def clear_output_dir(args: CacseTrainingArguments) -> None:
    """Delete the earlier run that is overwritten, and mark the folder as this one's; just before training."""
    folder = Path(str(args.output_dir))
    if args.process_index == 0:
        if is_overwritten(args):
            for path in [path for path in folder.iterdir() if is_of_a_run(path) and path.name not in (RUN, LOCK)]:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        write_json(folder / RUN, OF_A_RUN)
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


def is_of_a_run(path: Path) -> bool:
    """Whether something in an output folder is what a run leaves there."""
    if path.name == LOGS:
        return all("tfevents" in found.name for found in path.rglob("*") if not found.is_dir())
    return is_checkpoint(path) or any(fnmatch(path.name, pattern) for pattern in OF_A_RUN)


def foreign_in_run(folder: Path) -> list[Path]:
    """What lies inside the checkpoints and exports of a run, and is none of theirs."""
    return foreign_in_exports(folder / EXPORT) + [
        path for checkpoint in list_checkpoints(folder) for path in foreign_in_checkpoint(checkpoint)
    ]


def foreign_in_exports(folder: Path) -> list[Path]:
    """What lies in a folder of exported folders, and is none of theirs."""
    exports = [path for path in sorted(folder.glob("*")) if not path.name.startswith(".")]
    return [path for export in exports for path in foreign(export)]
