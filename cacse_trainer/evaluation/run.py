"""An evaluation from names of tasks to ``results.json`` and its tables.

chosen = choose_tasks(["sts"], data_dir="SentEval/data")          # what is wrong is told before a model is loaded
results = evaluate_encoder(SentenceEncoder("model"), chosen, "results/model").contents()
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cacse_trainer.compute.distributed import rank
from cacse_trainer.data import load_sentences
from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.contamination import TrainingText
from cacse_trainer.evaluation.dev_sets import DevSet, load_named
from cacse_trainer.evaluation.results import ResultStore, score_of
from cacse_trainer.evaluation.senteval_suite import Scoring, check_data, run_tasks, task_names
from cacse_trainer.evaluation.tables import write_tables
from cacse_trainer.files import sha256_of
from cacse_trainer.settings.resources import CHECKOUT, public_name, resolve_resource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """What is evaluated.

    Args:
        names: SentEval's tasks, whose data are there.
        data_dir: where.
        mteb: MTEB's task objects.
        dev_sets: of one's own, by name.
    """

    names: Sequence[str]
    data_dir: Path
    mteb: Sequence[Any]
    dev_sets: Mapping[str, DevSet]


def choose_tasks(
    suites: Sequence[str] = (),
    tasks: Sequence[str] = (),
    mteb: Sequence[str] = (),
    *,
    dev_files: Sequence[str] = (),
    data_dir: str | Path | None = None,
    skip_missing: bool = False,
    mode: str = "test",
) -> Chosen:
    """The tasks of SentEval's suites, its tasks by name, MTEB's tasks and suites, and sets of one's own.

    Args:
        suites, tasks, mteb: names.
        dev_files: graded pairs and retrieval sets, paths or ``name=path``, see `load_named`.
        data_dir: SentEval's data. Default: ``SentEval/data``, here or in the checkout.
        skip_missing: leave out tasks whose data files are not there.
        mode: see `Scoring`; in dev the suites are those of their tasks that have a dev part.

    Raises:
        UserError: no or unknown names, or missing data.
    """
    names = task_names(suites, tasks, mode)
    folder = Path(data_dir or "SentEval/data")
    if data_dir is None and not folder.is_dir():
        folder = CHECKOUT / "SentEval" / "data"
    if names:
        if not folder.is_dir():
            raise UserError(f"data_dir {folder}: no such folder; it holds downstream/ and probing/")
        names = check_data(names, folder, skip_missing)
        if not names:
            raise UserError(f"none of the tasks has its data in {folder}")
    found = []
    if mteb:  # which is imported only where it is asked for
        from cacse_trainer.evaluation.mteb_adapter import resolve_tasks

        found = resolve_tasks(mteb)
    if not names and not found and not dev_files:
        raise UserError(
            "nothing to evaluate: give --suite sts|transfer|probing|full, --tasks NAME …, --mteb NAME …, or "
            "--dev_file NAME=PATH …"
        )
    return Chosen(names, folder, found, load_named(dev_files, "dev_file", [*names, *task_names(["full"], [])]))


def evaluate_encoder(
    encoder: BaseEncoder,
    chosen: Chosen,
    folder: str | Path,
    scoring: Scoring | None = None,
    *,
    model: str | None = None,
    train_text: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> ResultStore:
    """Run those of the tasks that the folder has no results of; on several processes the first one writes.

    Args:
        encoder: gives the vectors.
        chosen: the tasks.
        folder: made where it is missing.
        scoring: how SentEval's tasks are scored; default: see `Scoring`.
        model: the name in the results; default: the encoder's.
        train_text: training text: the evaluation sentences in it are counted, and left out of a second score.
        overwrite: forget the results in the folder.
        progress: bars on standard error.

    Raises:
        UserError: the folder cannot be written or has results of other settings, or SentEval's data are broken.
    """
    folder, scoring = Path(folder), scoring or Scoring()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {folder} cannot be written: {error.strerror}") from error
    settings = {"pooling": encoder.pooling, "fingerprint": encoder.fingerprint(), **encoder.settings(), **vars(scoring)}
    store = ResultStore(
        folder,
        model=model or encoder.name,
        pooling=encoder.pooling,
        pooling_guessed=encoder.pooling_guessed,
        settings=settings,
        overwrite=overwrite,
        writes=rank() == 0,
    )
    if rank() == 0:
        logger.info("%s: pooling %s, results in %s", encoder.name, encoder.pooling, folder)
    if chosen.names:
        text = _training_text(train_text) if train_text else None
        run_tasks(encoder, chosen.names, chosen.data_dir, store, scoring, training_text=text, progress=progress)
    for name, dev_set in chosen.dev_sets.items():
        score_dev_set(encoder, name, dev_set, store)
    try:
        if chosen.mteb:
            from cacse_trainer.evaluation.mteb_adapter import run_mteb

            run_mteb(encoder, chosen.mteb, store, progress=progress)
    except UserError as error:  # what is there counts all the same
        store.failure = error
    finally:
        if rank() == 0:
            store.save()
            write_tables(folder, store.contents())
            if undefined := [name for name, entry in store.tasks.items() if math.isnan(score_of(entry))]:
                logger.warning("undefined scores (constant similarities): %s", ", ".join(undefined))
    return store


def score_dev_set(encoder: BaseEncoder, name: str, dev_set: DevSet, store: ResultStore) -> None:
    """Score an encoder on a set of one's own and keep the result, unless the store has it of this very set."""
    facts = dev_set.facts(encoder)
    if facts.items() <= store.tasks.get(name, {}).items():
        return
    started = time.perf_counter()
    answers = dev_set.read(encoder)
    entry = {**answers.scores, **facts, "seconds": round(time.perf_counter() - started, 2)}
    store.add_dev_set(name, entry, dev_set.kept(answers))


def _training_text(name: str) -> TrainingText:
    """The training text, its sentences of all columns, read as they are needed."""
    source = resolve_resource(name)
    rows = load_sentences(source, streaming=True)
    sentences = (text for row in rows for text in row.values() if isinstance(text, str))
    digest = sha256_of(Path(source)) if Path(source).is_file() else None  # a hub data set is known by its name
    return TrainingText(public_name(source), digest, sentences)
