"""Locks that end with their process, and the temporary folders that they keep."""

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK = ".lock"
PATIENCE = 0.2  # seconds: the owner of a lock may be about to delete it


@contextlib.contextmanager
def only_one(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Inside, no other process writes ``path``; with ``wait`` one that does is waited for.

    Raises:
        UserError: another one does, or nothing can be written there.
    """
    from cacse_trainer.errors import UserError, user_errors  # this module stands alone otherwise

    with user_errors(f"{path} cannot be written"):
        lock = take(path.with_name(f".{path.name}{LOCK}"), patience=-1 if wait else PATIENCE)
    if lock is None:
        raise UserError(f"{path} is being written by another process; wait for its end, or choose another place")
    try:
        yield
    finally:
        give_back(lock)


def take(path: Path, patience: float = PATIENCE) -> "BaseFileLock | None":
    """Lock a file for this process, and make it if need be; None: another one holds it for longer than ``patience``.

    The system takes the lock back when the process ends, however it ends; a forked child, such as a data loader's
    worker, has no part in it. Where the file system has no locks, everybody gets one, whose ``is_locked`` is false:
    filelock's own way out, a file that is there or not, can mistake the owner that was killed for one that lives.

    Raises:
        OSError: no file can be made there.
    """
    from filelock import FileLock, Timeout  # not for every --help

    path.open("ab").close()  # filelock waits where it cannot make the file, as if another one held it
    lock = FileLock(path, timeout=patience, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    except PermissionError:
        raise
    except OSError:  # a network file system without locks
        pass
    return lock


def give_back(lock: "BaseFileLock") -> None:
    """Release a lock, and delete its file before another process can take it."""
    with contextlib.suppress(PermissionError):  # Windows deletes no file that is open; there the release does
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def private_folder(prefix: str, parent: Path | None = None) -> Path:
    """A temporary folder that only this user reads, deleted when the process ends (not when a fork of it does).

    The folders of processes that were killed go here: they are those whose lock nobody holds.

    Args:
        prefix: of its name.
        parent: where it is made; default: the system's place for temporary files.
    """
    for old in Path(parent or tempfile.gettempdir()).glob(f"{prefix}*"):
        _delete_if_left(old)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    fresh = folder / f"{LOCK}.new"  # locked before it bears the name that others look for
    atexit.register(_delete_own, folder, os.getpid(), take(fresh))
    os.replace(fresh, folder / LOCK)
    return folder


def _delete_own(folder: Path, owner: int, _lock: "BaseFileLock | None") -> None:
    """At the end of the process; the lock is held as long as this call is pending."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _delete_if_left(folder: Path) -> None:
    path = folder / LOCK
    try:
        if folder.is_symlink() or not path.is_file() or folder.stat().st_uid != os.getuid():
            return
        lock = take(path)
    except OSError:  # gone meanwhile, or another user's
        return
    if lock is not None and lock.is_locked:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
