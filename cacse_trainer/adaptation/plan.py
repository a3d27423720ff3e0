"""An adaptation's folder: whose it is, what was decided, and what of it is replaced when it is made anew."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cacse_trainer.data.documents import Document
from cacse_trainer.data.retrieval import RetrievalSet
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.files import LOCK, delete_folder, foreign, give_back, read_object, refuse_foreign, take, write_json
from cacse_trainer.runs.folder import clear_run, foreign_in_stage
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.settings.recipes import Parsed

PLAN, REPORT, PAGE = "plan.json", "adaptation.json", "report.html"
ROWS, GENERAL, TRAINING = "rows.jsonl", "general.tsv", "training"
NOT_DECIDED = 0
"""Steps of a plan that only says whose the folder is."""
QUESTIONS, ROUND_TRIP = "questions.csv", "round_trip.csv"
GROWING = tuple(f"{name}{end}" for name in (QUESTIONS, ROUND_TRIP) for end in ("", ".partial", ".progress.json"))
FILES = (PLAN, REPORT, PAGE, ROWS, GENERAL, *GROWING)
DEV, TEST, BETTER, NOT_BETTER, STATIC = "dev", "test", "encoder", "encoder_not_better", "static"
FOLDERS = (DEV, TEST, BETTER, NOT_BETTER, STATIC)
IRRELEVANT = frozenset(
    {
        "output_dir",
        "overwrite_output_dir",
        "resume_from_checkpoint",
        "resume_with_changes",
        "check",
        "disable_tqdm",
        "logging_steps",
        "report_to",
        "dataloader_num_workers",
        "dataloader_persistent_workers",
    }
    | {"hub_token", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_license", "onnx", "static"}
)
"""Settings on which nothing that was decided hangs."""


@dataclass
class Plan:
    """What was decided before the training.

    Args:
        key: of the settings and the text.
        steps: of training.
        seconds_a_step: measured here; None: the steps were given.
        minutes: that all of it was to take.
        counts: rows by kind that the text gives.
        rows: rows by kind that are trained.
    """

    key: str
    steps: int
    seconds_a_step: float | None
    minutes: float | None
    counts: dict[str, int]
    rows: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """As it is written."""
        return asdict(self)


def key_of(parsed: Parsed, documents: Sequence[Document], sets: Mapping[str, RetrievalSet]) -> str:
    """A hash of all that the rows, the held-out parts and the training hang on."""
    settings = {name: value for group in parsed.groups for name, value in vars(group).items()}
    settings |= dict.fromkeys(parsed.groups[-1].automatic, "auto")  # what it came to is the checkpoint's
    asked = (name for name in settings if name not in IRRELEVANT and name[0] != "_")
    defaults = {one.name: one.default for group in parsed.groups for one in fields(group)}
    # a default is left out, so that a setting that a later version adds changes no key
    kept = sorted((name, repr(settings[name])) for name in asked if settings[name] != defaults.get(name, MISSING))
    digest = hashlib.sha256(repr(kept).encode())
    for document in documents:
        headings = "\n".join(section.heading for section in document.sections)
        digest.update(f"{document.text}\0{headings}\0".encode())
    for one in sets.values():
        digest.update(repr((one.queries, one.documents, one.relevant)).encode())
    return digest.hexdigest()[:24]


def read_plan(folder: Path) -> Plan | None:
    """The plan that is there; None: nothing was decided yet.

    Raises:
        UserError: it is damaged.
    """
    path = folder / PLAN
    if not path.is_file():
        return None
    kinds: dict[str, Any] = {"key": str, "steps": int, "counts": dict[str, int], "rows": dict[str, int]}
    kinds |= {"seconds_a_step": float | int | None, "minutes": float | int | None}
    found = read_object(path, "start anew with --overwrite_output_dir", **kinds)
    return Plan(**{name: found[name] for name in kinds}) if found["steps"] != NOT_DECIDED else None


@contextlib.contextmanager
def open_folder(folder: Path, key: str, args: CacseTrainingArguments) -> Iterator[None]:
    """Keep an adaptation's folder to this process; with ``overwrite_output_dir`` what an earlier one left goes first.

    Raises:
        UserError: another adaptation is there, or something that is none; another process is at work.
    """
    there = [folder / name for name in (*FILES, *FOLDERS, TRAINING) if (folder / name).exists()]
    plan = None
    if there and not (folder / PLAN).is_file():
        raise UserError(f"output_dir {folder} holds {there[0].name}, which is no adaptation's; choose another folder")
    if there and not args.overwrite_output_dir:
        plan = read_plan(folder)
        if plan is not None and plan.key != key:
            raise UserError(
                f"output_dir {folder} holds an adaptation of other text, other settings or an older version; choose "
                "another --output_dir, or --overwrite_output_dir"
            )
        if (folder / REPORT).is_file():
            raise UserError(
                f"output_dir {folder} holds a finished adaptation ({REPORT}); choose another --output_dir, or "
                "--overwrite_output_dir"
            )
    with user_errors(f"output_dir {folder} cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = take(folder / LOCK)
    if lock is None:
        raise UserError(f"output_dir {folder} is in use by another adaptation; wait for its end, or choose another")
    try:
        if there and args.overwrite_output_dir and not args.check:
            _clear(folder, there)
        if not args.check and not (folder / PLAN).exists():
            write_json(folder / PLAN, Plan(key, NOT_DECIDED, None, None, {}, {}).as_dict())
        yield
    finally:
        give_back(lock)


def _clear(folder: Path, there: Sequence[Path]) -> None:
    training = folder / TRAINING
    for path in there:
        if path == training:
            refuse_foreign(folder, foreign_in_stage(path))
        elif path.is_dir():
            refuse_foreign(folder, foreign(path))
    for path in there:
        if path == training:
            clear_run(path)
        elif path.is_dir():
            delete_folder(path)
        elif path.name != PLAN:
            path.unlink()
    (folder / PLAN).unlink()  # last: it says whose the rest is
