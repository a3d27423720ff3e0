"""``results.json``: what an evaluation found, kept task by task so that an interrupted one goes on."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.environment import environment
from cacse_trainer.files import read_object, write_json, writing

RESULTS = "results.json"
PAIRS = "pairs"

STS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICKRelatedness")
TRANSFER = ("MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC")
PROBING = (
    "Length",
    "WordContent",
    "Depth",
    "TopConstituents",
    "BigramShift",
    "Tense",
    "SubjNumber",
    "ObjNumber",
    "OddManOut",
    "CoordinationInversion",
)
SUITES: dict[str, tuple[str, ...]] = {"sts": STS, "transfer": TRANSFER, "probing": PROBING}
"""The columns of the papers' tables; an average is over exactly these."""
WITHOUT_DEV = STS[:5]
"""Tasks that are test sets alone: mode dev, by whose figures one may choose, has no place for them."""
NDCG = "ndcg@10"
SCORES = ("main_score", "spearman", "acc", NDCG)
"""Names of the score that a task is told by; the first that it has."""


def suites_of(mode: str) -> dict[str, tuple[str, ...]]:
    """`SUITES`, in mode dev without the tasks that have no dev part."""
    left_out = WITHOUT_DEV if mode == "dev" else ()
    return {suite: tuple(name for name in names if name not in left_out) for suite, names in SUITES.items()}


def score_of(entry: dict[str, Any]) -> float:
    """The score that a task's column shows, the first of `SCORES` that it has; NaN where it is undefined."""
    value = next(entry[name] for name in SCORES if name in entry)
    return float("nan") if value is None else float(value)


def average(tasks: dict[str, dict[str, Any]], names: Iterable[str]) -> float:
    """Mean score over the tasks; NaN unless all of them are there and defined."""
    return float(np.mean([score_of(tasks[name]) if name in tasks else float("nan") for name in names]))


BESIDE = ("tables.md", "tables.csv", "tables.tex", "scores.png")
"""What is written beside the results, at the end."""


class ResultStore:
    """The contents of one output folder.

    Args:
        folder: where ``results.json`` and ``pairs/`` are.
        model, pooling, pooling_guessed: of the encoder, for the head of the file.
        settings: everything the figures depend on; a folder with others is refused.
        overwrite: forget what is there.
        writes: False on all processes but the first: they read what is there, and write nothing.

    Raises:
        UserError: the folder holds results of other settings, or a file that is none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: str,
        pooling: str,
        settings: dict[str, Any],
        pooling_guessed: bool = False,
        overwrite: bool = False,
        writes: bool = True,
    ):
        self.folder, self.writes = folder, writes
        self.path = folder / RESULTS
        self.tasks: dict[str, dict[str, Any]] = {}
        self.mteb: dict[str, dict[str, Any]] = {}
        self.failure: UserError | None = None  # the data of some MTEB tasks could not be fetched; all others are done
        self._mode = str(settings.get("mode", "test"))
        self._head = {
            "model": model,
            "pooling": pooling,
            "pooling_guessed": pooling_guessed,
            "settings": settings,
            "environment": environment(),
        }
        if self.path.is_file():
            if not overwrite:
                self._take_up(read_results(self.path))
        elif found := [name for name in BESIDE if (folder / name).exists()]:
            raise UserError(f"output_dir {folder}: holds {found[0]} of no evaluation; move it, or choose another")

    def _take_up(self, earlier: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self._head["settings"]))  # as it comes back from a file
        before = earlier.get("settings", {})
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if changed:
            differences = ", ".join(f"{name} {before.get(name)} there, {now.get(name)} now" for name in sorted(changed))
            raise UserError(
                f"{self.path} has results of other settings ({differences}); give another --output_dir, or --overwrite"
            )
        self.tasks, self.mteb = earlier["tasks"], earlier.get("mteb", {})

    def add_task(
        self, name: str, entry: dict[str, Any], pairs: dict[str, tuple[np.ndarray, np.ndarray]] | None = None
    ) -> None:
        """Keep a task's result, and for similarity tasks ``{subset: (cosines, gold scores)}``, on disk."""
        self.tasks[name] = entry
        if pairs and self.writes:
            save_pairs(self.folder / PAIRS / f"{name}.npz", pairs)
        self.save()

    def add_dev_set(self, name: str, entry: dict[str, Any], kept: dict[str, np.ndarray]) -> None:
        """Keep the result of a set of one's own, and what `compare` draws from."""
        self.tasks[name] = entry
        if self.writes:
            write_arrays(self.folder / PAIRS / f"{name}.npz", kept)
        self.save()

    def add_mteb(self, name: str, entry: dict[str, Any]) -> None:
        """Keep the result of an MTEB task."""
        self.mteb[name] = entry
        self.save()

    def contents(self) -> dict[str, Any]:
        """What the file holds."""
        suites = suites_of(self._mode)
        averages = {suite: average(self.tasks, names) for suite, names in suites.items()}
        return {**self._head, "tasks": self.tasks, "mteb": self.mteb, "averages": averages}

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.contents())


def save_pairs(path: Path, pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """``cosine``, ``gold`` and ``subset``, one entry a pair."""
    kept = {
        "cosine": np.concatenate([cosines for cosines, _ in pairs.values()]),
        "gold": np.concatenate([gold for _, gold in pairs.values()]),
        "subset": np.concatenate([np.full(len(gold), subset) for subset, (_, gold) in pairs.items()]),
    }
    write_arrays(path, kept)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A ``.npz`` file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as staged, staged.open("wb") as file:  # given a name, numpy would put .npz after it
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_pairs_of(
    results: Path, task: str, names: Sequence[str] = ("cosine", "gold", "subset")
) -> dict[str, np.ndarray] | None:
    """The per-pair scores (of a retrieval set: ``ndcg``, per query) beside a ``results.json``; None: there are none.

    Raises:
        UserError: the file is damaged.
    """
    path = results.parent / PAIRS / f"{task}.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, or evaluate anew with --overwrite") from error


def read_results(path: Path) -> dict[str, Any]:
    """A ``results.json``, or the one in a folder.

    Raises:
        UserError: no such file, or not one of ours.
    """
    if path.is_dir():
        path = path / RESULTS
    if not path.is_file():
        raise UserError(f"{path}: no such file; cacse-trainer evaluate --output_dir writes it")
    mend = "give a results.json of cacse-trainer evaluate, or evaluate anew with --overwrite"
    parts = dict.fromkeys(("mteb", "settings", "averages"), dict | None)
    contents = read_object(path, mend, model=str, pooling=str, tasks=dict, **parts)
    contents.update((name, contents.get(name) or {}) for name in parts)
    for name, entry in {**contents["tasks"], **contents["mteb"]}.items():
        scores = [entry[key] for key in SCORES if key in entry] if isinstance(entry, dict) else []
        if not scores or not isinstance(scores[0], (int, float, type(None))):
            raise UserError(f"{path}: is damaged (task {name} has no score but {str(entry)[:40]!r}); {mend}")
    return contents
