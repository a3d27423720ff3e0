"""The four things a user can get wrong, each as one clear line.

Every class derives from the built-in exception a caller would expect, so that a program may catch either.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path


class UnknownTask(ValueError):
    """A task name that is not in the table; the message suggests the nearest one."""

    def __init__(self, name: object, known: Iterable[str]) -> None:
        names = list(known)
        lowered = {n.lower(): n for n in names}
        bare = "".join(letter for letter in str(name).lower() if letter.isalnum())  # the tables' STS-B, SICK-R, SST
        begun = [n for n in lowered if bare and n.startswith(bare)]
        near = begun or difflib.get_close_matches(str(name).lower(), list(lowered), n=1, cutoff=0.5)
        hint = f"did you mean {lowered[near[0]]!r}? " if near else ""
        super().__init__(f"unknown task {name!r}: {hint}Known tasks: {', '.join(names)}")


class DataFileMissing(FileNotFoundError):
    """A task's data file is not there; the message names the file and the script that fetches it."""

    def __init__(self, task: str, missing: Sequence[Path], script: str) -> None:
        self.task = task
        self.missing = list(missing)
        others = f" (and {len(missing) - 1} more of this task)" if len(missing) > 1 else ""
        super().__init__(f"{task}: data file {missing[0]} is missing{others}; fetch it with: bash {script}")


class DataFormatError(ValueError):
    """A data file does not have the published format; the message names the file and the line."""


class EmbeddingError(ValueError):
    """The batcher returned something that is no finite matrix with one row a sentence."""


class SettingsError(ValueError):
    """A parameter (classifier, optimizer, mode, number of folds) that cannot be used as given."""
