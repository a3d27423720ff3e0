"""A run's output folder: what may lie in it, which checkpoint goes on, what is replaced, and who is at work in it."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers import Trainer

from cacse_trainer.compute.distributed import barrier
from cacse_trainer.encoding.sentence_transformers import LENGTH, MODULES, PROMPTS
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.evaluation.answers import ANSWERS
from cacse_trainer.files import (
    CARD,
    LOCK,
    MODEL_FILES,
    PASSING,
    foreign,
    give_back,
    listed,
    named_like,
    put_in_place,
    refuse_foreign,
    take,
    write_json,
)
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
from cacse_trainer.training.publishing import EXPORT

REPORT = "training_report.json"
"""What a finished run leaves last in its output folder."""
PAGE = "report.html"
"""The same for people, written just before."""
CURVES = "training_curves.png"

RUN = ".run.json"
"""The mark of a run in its output folder, there before anything else: the names of what its model was saved as."""
FIXED = (EXPORT, REPORT, PAGE, CURVES, ANSWERS, STAGING, RUN, LOCK, ".*.partial")
"""The run's other names. Checkpoints are known by what they hold; nothing else is ever deleted."""
SAVED = (*MODEL_FILES, MODULES, LENGTH, PROMPTS, "tokenizer_[0-9]*")
"""Patterns of the names that models are saved as, which may be in the way; also of what older versions saved."""
LOGS = "runs"
"""TensorBoard's folder: each run adds a file, and none is ever replaced."""


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
    if not (resume or _is_a_run(folder)) and folder.is_dir():
        _check_free(folder, whole=args.overwrite_output_dir)
    if is_overwritten(args):
        refuse_foreign(folder, foreign_in_run(folder))
    elif finished and not args.overwrite_output_dir:
        raise UserError(
            f"output_dir {folder} holds a finished run ({REPORT}); "
            "choose another --output_dir, or --overwrite_output_dir"
        )
    elif resume is not None:
        refuse_foreign(folder, in_the_way(folder))
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
        if not passing and (whole or named_like([path.name], (*SAVED, *FIXED)) or step_of(path) is not None):
            raise UserError(
                f"output_dir {folder} holds files that are no run of this program ({path.name}); choose another folder"
            )


def is_overwritten(args: CacseTrainingArguments) -> bool:
    """Whether this run replaces an earlier one in its folder: a resumed run never does."""
    return args.overwrite_output_dir and args.resume_from_checkpoint is None


def clear_output_dir(args: CacseTrainingArguments) -> None:
    """Delete the earlier run that is overwritten, and mark the folder as this one's; just before training."""
    if args.process_index == 0:
        (clear_run if is_overwritten(args) else mark_run)(Path(str(args.output_dir)))
    barrier()


def clear_run(folder: Path) -> None:
    """Delete what a run left in its folder; the mark and the lock stay."""
    mark_run(folder)  # of an older version, too, what is left is known when a kill falls into this
    for path in of_a_run(folder):
        if path.name not in (RUN, LOCK):
            _delete(path)
    mark_run(folder)


def mark_run(folder: Path) -> None:
    """Mark a folder as that of a run, with the names of what of its saved model is there."""
    write_json(folder / RUN, [path.name for path in _saved(folder)])


def save_model(trainer: Trainer, folder: Path) -> None:
    """Save the model and its tokenizer in a marked output folder, and note their names there."""
    staged = folder / ".model.partial"
    if trainer.is_world_process_zero():
        shutil.rmtree(staged, ignore_errors=True)
    barrier()
    trainer.save_model(str(staged))
    barrier()
    if trainer.is_world_process_zero():
        (staged / CARD).unlink(missing_ok=True)  # peft's, which says nothing; a README.md here is a person's
        names = {path.name for path in staged.iterdir()}
        write_json(folder / RUN, sorted({*listed(folder / RUN), *names}))
        for name in names:
            put_in_place(staged / name, folder / name)
        staged.rmdir()
    barrier()


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


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


def _is_a_run(folder: Path) -> bool:
    return (folder / RUN).is_file() or (folder / REPORT).is_file() or bool(list_checkpoints(folder))


def _saved(folder: Path) -> list[Path]:
    """What is there of a run's saved model; an older version kept no list of it."""
    if (folder / RUN).is_file():
        return [folder / name for name in listed(folder / RUN) if (folder / name).exists()]
    return [path for path in sorted(folder.glob("*")) if named_like([path.name], SAVED)] if _is_a_run(folder) else []


def of_a_run(folder: Path) -> list[Path]:
    """What a run left in its output folder."""
    saved = _saved(folder)
    return [
        path
        for path in sorted(folder.iterdir())
        if path in saved or is_checkpoint(path) or named_like([path.name], FIXED)
    ]


def in_the_way(folder: Path) -> list[Path]:
    """What bears a name in a run's folder under which the run may save its model, and is not the run's."""
    saved = _saved(folder)
    return [path for path in sorted(folder.glob("*")) if named_like([path.name], SAVED) and path not in saved]


def foreign_in_run(folder: Path) -> list[Path]:
    """What is in the way in a run's folder, or lies inside its checkpoints and exports and is none of theirs."""
    inside = [path for checkpoint in list_checkpoints(folder) for path in foreign_in_checkpoint(checkpoint)]
    return [*in_the_way(folder), *foreign_in_exports(folder / EXPORT), *inside]


def foreign_in_stage(folder: Path) -> list[Path]:
    """What lies anywhere in a folder that is to hold a run alone, and is not the run's; its logs stay."""
    ours = of_a_run(folder)
    beside = [path for path in sorted(folder.iterdir()) if path not in ours and path.name != LOGS]
    return beside + foreign_in_run(folder)


def foreign_in_exports(folder: Path) -> list[Path]:
    """What lies in a folder of exported folders, and is none of theirs."""
    exports = [path for path in sorted(folder.glob("*")) if not named_like([path.name], PASSING)]
    return [path for export in exports for path in foreign(export)]
