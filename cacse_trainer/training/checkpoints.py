"""Checkpoints that are whole or not there.

A folder ``checkpoint-N`` appears by one rename, when all its files are written and listed with their sizes and
checksums, and disappears by one rename too. What a kill leaves half-written or half-deleted bears another name and goes
at the next start. Against a loss of power, or a disk that errs, there is the list: a checkpoint whose files do not
agree with it is named, and the one before it used.
"""

import contextlib
import errno
import json
import logging
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cacse_trainer.errors import RunError, UserError, one_line
from cacse_trainer.files import crc32_of, delete_folder, put_back, read_object

logger = logging.getLogger(__name__)

STAGING = "checkpoint.partial"
"""Folder in which a checkpoint is written before it gets its name."""
MANIFEST = "manifest.json"
"""In a checkpoint: ``{file: {"bytes": …, "crc32": …}}`` of all its other files."""
PENDING_LOG = "pending_log.json"
"""In a checkpoint between two log lines: what the next line has summed up so far."""
SETTINGS = "settings.json"
"""In a checkpoint: the settings that it was trained with, see `changes`."""
STATE = (
    *("optimizer*", "scheduler*", "scaler*", "rng_state*", TRAINER_STATE_NAME, MANIFEST, PENDING_LOG, SETTINGS),
    *("pytorch_model_fsdp*", "global_step*", "latest", "zero_to_fp32.py"),
)
"""Patterns of what a checkpoint holds beside the model, to go on with."""

_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_WRITE_WORDS = ("PytorchStreamWriter", "file write failed", "unexpected pos", "No space left", "Disk quota", "os error")


def write_manifest(folder: Path) -> None:
    """List every file of a checkpoint with its size and checksum; written last."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    listed = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "crc32": crc32_of(path)} for path in files
    }
    (folder / MANIFEST).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, for a person; None: it is whole.

    Every file is read and compared with the list. A checkpoint without one (another program's) must hold a readable
    state, weights whose header fits their size, and archives of tensors whose checksums hold.
    """
    try:
        state = read_object(folder / TRAINER_STATE_NAME, "start anew", global_step=int)
        TrainerState(**state)
    except (UserError, TypeError) as error:
        return f"{TRAINER_STATE_NAME} cannot be read ({one_line(error)})"
    if not (folder / MANIFEST).is_file():
        try:
            for weights in folder.glob("*.safetensors"):
                with safe_open(weights, "pt"):
                    pass
            for weights in [*folder.glob("*.pt"), *folder.glob("*.pth")]:  # optimizer, schedule, random states
                with ZipFile(weights) as archive:
                    if (part := archive.testzip()) is not None:
                        return f"{weights.name} is damaged in {part}"
        except (SafetensorError, OSError, BadZipFile) as error:
            return f"{weights.name} cannot be read ({one_line(error)})"
        try:
            if (folder / PENDING_LOG).is_file():
                read_object(folder / PENDING_LOG, "delete it", loss=float, since_step=int, count=int, parts=dict)
        except UserError as error:
            return str(error)
        return None
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, facts in listed.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != facts["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, {facts['bytes']} were written"
            if crc32_of(path) != facts["crc32"]:
                return f"{name} is not what was written (its checksum differs)"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"cannot be read ({one_line(error)})"
    return None


def step_of(path: str | Path) -> int | None:
    """N of a folder ``checkpoint-N``; None for any other name."""
    prefix, _, number = Path(path).name.rpartition("-")
    return int(number) if prefix == PREFIX_CHECKPOINT_DIR and number.isdigit() else None


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a run's folder by their step, one among them that a kill left aside while it was replaced."""
    if not Path(folder).is_dir():
        return []
    for aside in Path(folder).glob(f".{PREFIX_CHECKPOINT_DIR}-*.old"):
        put_back(aside.with_name(aside.stem.removeprefix(".")))
    return sorted(filter(is_checkpoint, Path(folder).iterdir()), key=lambda path: step_of(path) or 0)


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is what a training leaves: by its name, and its state or its list of files."""
    marks = (TRAINER_STATE_NAME, MANIFEST)
    return step_of(path) is not None and any((path / name).is_file() for name in marks)


def foreign_in_checkpoint(checkpoint: Path) -> list[Path]:
    """The files that were not written with a checkpoint; none where it has no list, or a damaged one."""
    try:
        listed = {MANIFEST, *json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError):
        return []
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    return [path for path in files if path.relative_to(checkpoint).as_posix() not in listed]


def check_whole(checkpoint: str | Path) -> None:
    """Refuse a damaged checkpoint, and one whose best checkpoint so far, kept beside it, is damaged.

    Raises:
        UserError: with what is damaged.
    """
    folder = Path(checkpoint)
    found = damage(folder)
    if found is None:
        best_step = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8")).get("best_global_step")
        best = folder.with_name(f"{PREFIX_CHECKPOINT_DIR}-{best_step}")
        if best_step and best != folder and best.is_dir() and (reason := damage(best)) is not None:
            found = f"the best checkpoint so far, {best.name}, is damaged: {reason}"
    if found is not None:
        raise UserError(f"resume: {checkpoint} is damaged ({found}); go on from another checkpoint, or start anew")


def tell_of_missing_state(checkpoint: str | Path) -> None:
    """Warn of a checkpoint that holds the model alone, as ``save_only_model`` leaves it."""
    if not any(path for pattern in ("optimizer*", "global_step*") for path in Path(checkpoint).glob(pattern)):
        logger.warning(
            "resume: %s holds the model alone (save_only_model): the optimizer starts anew, and the run is another one "
            "than without the break",
            checkpoint,
        )


def newest_whole(folder: str | Path) -> Path | None:
    """The newest checkpoint of a run that can be resumed from; newer ones that are damaged are named in a warning.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    reason: UserError | None = None
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            check_whole(checkpoint)
        except UserError as error:
            logger.warning("%s", error)
            reason = reason or error
            continue
        if reason is not None:
            logger.warning("going on from %s, the newest whole one", checkpoint)
        return checkpoint
    if reason is not None:
        raise UserError(
            f"{reason}; no other checkpoint in {folder} is whole: remove them, or start anew with "
            "--overwrite_output_dir"
        )
    return None


def clear_leftovers(folder: str | Path) -> None:
    """Delete what a killed run left half-written or half-deleted."""
    for pattern in (STAGING, f".{PREFIX_CHECKPOINT_DIR}-*.partial", f".{PREFIX_CHECKPOINT_DIR}-*.old"):
        for path in Path(folder).glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def rotate_checkpoints(
    folder: str, limit: int | None, best: str | None, current: int | None = None, in_use: Collection[str] = ()
) -> None:
    """Delete the oldest checkpoints beyond ``limit``, never the best nor the newest, nor one of the names ``in_use``.

    ``current`` is the step just saved: checkpoints of later steps belong to a course that a resumed run has left, and
    count as the oldest.
    """
    if limit is None or limit <= 0:
        return
    found = {path.name: step_of(path) or 0 for path in list_checkpoints(folder)}
    names = sorted(found, key=lambda name: (current is None or found[name] <= current, found[name]))
    best_name = Path(best or "").name
    keep = names[-limit:]
    if best_name in names and best_name not in keep:
        keep = [best_name, *names[-max(limit - 1, 1) :]]
    for name in names:
        if name not in keep and name not in in_use:
            delete_folder(Path(folder, name))


def is_write_failure(error: BaseException | None) -> bool:
    """Whether an error says that a file could not be written: a full disk, a quota, a broken or read-only one."""
    if isinstance(error, OSError):
        return error.errno in _WRITE_ERRORS or "No space left" in str(error)
    bare = type(error) is Exception  # as tokenizers raises
    known = bare or isinstance(error, (SafetensorError, RuntimeError))
    return known and any(word in str(error) for word in _WRITE_WORDS)


@contextlib.contextmanager
def writing_checkpoint(folder: str | Path, step: int) -> Iterator[None]:
    """Around the writing of a checkpoint: a disk that is full ends in one line, and the half-written files go.

    Raises:
        RunError: with the checkpoint that is whole, and how to go on.
    """
    try:
        yield
    except Exception as error:
        if not is_write_failure(error):
            raise
        shutil.rmtree(Path(folder) / STAGING, ignore_errors=True)
        whole = list_checkpoints(folder)
        kept = (
            f"nothing else is lost: {whole[-1].name} is whole; make room, and go on with --resume_from_checkpoint last"
            if whole
            else "there is no earlier one; make room, and start again"
        )
        free = shutil.disk_usage(folder).free
        raise RunError(
            f"the checkpoint of step {step} could not be written to {folder} ({one_line(error)}; {free / 1e6:.0f} MB "
            f"free); {kept}"
        ) from error
