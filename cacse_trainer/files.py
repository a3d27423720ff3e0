"""Files that are locked as long as a process lives: who works here, and whose leftovers are nobody's any more.

The system releases a lock when its process ends, however it ends; no process number is compared, none can be reused.
"""

import importlib.util
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

LOCK = ".lock"
HELD_ELSEWHERE = (BlockingIOError, PermissionError)


def take(path: Path) -> BinaryIO | None:
    """Create and lock a file for this process; None: another one holds it.

    Close the file to give it back. Where the file system or the platform has no locks, everybody gets one.
    """
    while True:
        file = path.open("ab")
        try:
            _lock(file)
        except HELD_ELSEWHERE:
            file.close()
            return None
        except OSError:  # a network file system without locks
            return file
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        file.close()  # its owner has just deleted it: once more


def private_folder(prefix: str) -> Path:
    """A temporary folder that only this user reads, locked for this process; those of ended processes are deleted."""
    parent = Path(tempfile.gettempdir())
    for old in parent.glob(f"{prefix}*"):
        _delete_if_left(old)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    fresh = folder / f"{LOCK}.new"  # locked before it bears the name that others look for
    _held.append(take(fresh))
    os.replace(fresh, folder / LOCK)
    return folder


_held: list[BinaryIO | None] = []  # for as long as the process lives


def _delete_if_left(folder: Path) -> None:
    lock = folder / LOCK
    try:
        if folder.is_symlink() or not lock.is_file() or folder.stat().st_uid != os.getuid():
            return
    except OSError:  # gone meanwhile, or another user's
        return
    if importlib.util.find_spec("fcntl") is None:
        return
    with lock.open("ab") as file:
        try:
            _lock(file)
        except OSError:
            return
        shutil.rmtree(folder, ignore_errors=True)


def _lock(file: BinaryIO) -> None:
    if importlib.util.find_spec("fcntl") is not None:  # not on Windows
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_secrets: set[str] = set()
SHORTEST_SECRET = 8
"""A shorter text is no token, and would take common words along."""


def keep_secret(text: str) -> None:
    """From here on `write_text` and `without_secrets` show ``***`` in the text's place."""
    if len(text) >= SHORTEST_SECRET:
        _secrets.add(text)


def without_secrets(text: str) -> str:
    """A text as it may be shown."""
    for secret in _secrets:
        text = text.replace(secret, "***")
    return text


def plain(value: Any) -> Any:
    """A value as strict JSON knows it: NaN and infinity become null, unknown objects text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, and without secrets."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(without_secrets(text), encoding="utf-8")
    partial.replace(path)
