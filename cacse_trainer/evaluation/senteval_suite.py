"""SentEval on an encoder: suites of tasks, each distinct sentence encoded once, results kept task by task."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import senteval
from senteval.sts import SimilarityTask
from senteval.task import Task
from tqdm.auto import tqdm

from cacse_trainer.compute.distributed import gather_objects, rank, world_size
from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.contamination import TrainingText, occurring, without
from cacse_trainer.evaluation.results import ResultStore, score_of, suites_of

logger = logging.getLogger(__name__)

SENTENCES_AT_ONCE = 200_000
"""Vectors held at a time, about; the full suite has over a million sentences."""

Pairs = dict[str, tuple[np.ndarray, np.ndarray]]
Scored = tuple[dict[str, Any], Pairs | None]
"""A task's entry of ``results.json``, and its pairs where it is a similarity task."""
SENTEVAL_ERRORS = (senteval.DataFileMissing, senteval.DataFormatError, senteval.EmbeddingError, senteval.SettingsError)


@dataclass(frozen=True)
class Scoring:
    """How tasks are scored.

    Args:
        mode: test, dev or fasttest: the classifiers' settings; dev reports the dev scores.
        aggregation: of the subsets of STS12 to STS16: all, mean or wmean.
        seed: of the classifiers.
    """

    mode: str = "test"
    aggregation: str = "all"
    seed: int = 1111


def task_names(suites: Sequence[str], tasks: Sequence[str], mode: str = "test") -> list[str]:
    """The tasks of the suites, in mode dev those that have a dev part, and those named, each once.

    Raises:
        UserError: no such suite or task; the nearest is suggested.
    """
    known = suites_of(mode)
    names = [name for suite in suites for part in (known if suite == "full" else [suite]) for name in known[part]]
    for name in tasks:
        try:
            senteval.task_spec(name)
        except senteval.UnknownTask as error:
            raise UserError(str(error)) from error
    return list(dict.fromkeys([*names, *tasks]))


def check_data(names: Sequence[str], data_dir: Path, skip_missing: bool) -> list[str]:
    """The tasks whose files are there.

    Raises:
        UserError: files are missing and ``skip_missing`` is not given; names the script to run.
    """
    missing = {name: senteval.task_spec(name) for name in names if senteval.task_spec(name).missing(data_dir)}
    if not missing:
        return list(names)
    scripts = dict.fromkeys(f"bash {spec.script}" for spec in missing.values())
    first = next(iter(missing.values())).missing(data_dir)[0]
    told = f"no data of {', '.join(missing)} in {data_dir} (such as {first}); fetch it with: {' and '.join(scripts)}"
    if not skip_missing:
        raise UserError(f"{told}; or leave those tasks out with --skip_missing")
    logger.warning("skipped: %s", told)
    return [name for name in names if name not in missing]


def run_tasks(
    encoder: BaseEncoder,
    names: Sequence[str],
    data_dir: Path,
    store: ResultStore,
    protocol: Scoring,
    *,
    training_text: TrainingText | None = None,
    progress: bool = True,
) -> None:
    """Run those of the tasks that the store has no results of, and keep each result.

    Args:
        encoder, progress: as for `evaluate_encoder`.
        names: of tasks whose data are there, see `check_data`.
        data_dir: holds ``downstream/`` and ``probing/``.
        store: takes the results.
        protocol: how they are scored.
        training_text: scores without the sentences that occur in it are added.

    Raises:
        UserError: a data file is broken, or a vector not finite.
    """
    todo = [name for name in names if not _is_finished(store.tasks.get(name), training_text)]
    if len(todo) < len(names) and rank() == 0:
        logger.info("already there: %s", ", ".join(name for name in names if name not in todo))
    found: set[str] = set()

    def scored(engine: senteval.SE, task: Task) -> Scored:
        entry, pairs = run_task(engine, task, protocol)
        if training_text is not None:
            entry["contamination"] = {**training_text.label, **_contamination(engine, task, protocol, found)}
        return entry, pairs

    try:
        tasks = [senteval.load_task(name, data_dir, protocol.seed) for name in todo]
        if training_text is not None and tasks:
            found = occurring(training_text.sentences, senteval.distinct_sentences(tasks))
        params = {**senteval.classifier_settings(protocol.mode), "seed": protocol.seed, "batch_size": 4096}
        for group, table in encoded_groups(encoder, tasks, progress):
            _run_group(group, senteval.SE(params, table), scored, store, progress)
    except SENTEVAL_ERRORS as error:
        raise UserError(str(error)) from error


def encoded_groups(
    encoder: BaseEncoder, tasks: Sequence[Task], progress: bool
) -> Iterator[tuple[list[Task], senteval.EmbeddingTable]]:
    """Consecutive tasks with the vectors of their sentences; a sentence that several groups share is encoded once."""
    known: dict[str, np.ndarray] = {}
    rest = list(tasks)
    while rest:
        group: list[Task] = []
        needed: dict[str, None] = {}
        while rest and (not group or len(needed) < SENTENCES_AT_ONCE):
            group.append(rest.pop(0))
            needed.update(dict.fromkeys(senteval.distinct_sentences(group[-1:])))
        new = [sentence for sentence in needed if sentence not in known]
        label = group[0].name if len(group) == 1 else f"{group[0].name} … {group[-1].name}"
        table = encoder.vectors(new, show_progress_bar=progress, description=f"Encoding {label}")
        known.update(zip(new, table, strict=True))
        yield group, senteval.EmbeddingTable(list(needed), np.stack([known[sentence] for sentence in needed]))
        later = set(senteval.distinct_sentences(rest))
        known = {sentence: vector.copy() for sentence, vector in known.items() if sentence in later}


def _run_group(
    group: list[Task], engine: senteval.SE, scored: Callable[..., Scored], store: ResultStore, progress: bool
) -> None:
    """Run the tasks, dealt out over the processes, and keep the results."""
    finished: list[tuple[str, dict[str, Any], Pairs | None]] = []
    with tqdm(total=len(group), desc="Scoring", unit=" tasks", disable=not progress or rank() > 0) as bar:
        for i, task in enumerate(group):
            bar.set_postfix_str(task.name)
            if i % world_size() == rank():
                finished.append((task.name, *scored(engine, task)))
                if world_size() == 1:
                    store.add_task(*finished[-1])
            bar.update()
    if world_size() > 1:
        for part in gather_objects(finished):
            for name, entry, pairs in part:
                store.add_task(name, entry, pairs)


def run_task(engine: senteval.SE, task: Task, protocol: Scoring) -> Scored:
    """One task, with the seconds that it took."""
    started = time.perf_counter()
    found = engine.run(task)
    if isinstance(task, SimilarityTask):
        entry, pairs = similarity_entry(found, protocol), dict(task.pair_scores)
    else:
        entry, pairs = trained_entry(found, protocol), None
    return {**entry, "seconds": round(time.perf_counter() - started, 2)}, pairs


def similarity_entry(found: dict[str, Any], protocol: Scoring) -> dict[str, Any]:
    """SentEval's result of a similarity task → its entry, ×100."""
    subsets = {
        name: {"spearman": 100 * part["spearman"][0], "pearson": 100 * part["pearson"][0], "n": part["nsamples"]}
        for name, part in found.items()
        if name != "all"
    }
    if set(subsets) <= {"train", "dev", "test"}:  # STSBenchmark, SICKRelatedness: one part counts
        chosen = "dev" if protocol.mode == "dev" else "test"
        return {**subsets[chosen], "aggregation": chosen, "subsets": subsets}
    how = protocol.aggregation
    return {
        "spearman": 100 * found["all"]["spearman"][how],
        "pearson": 100 * found["all"]["pearson"][how],
        "n": sum(part["n"] for part in subsets.values()),
        "aggregation": how,
        "spearman_by_aggregation": {name: 100 * value for name, value in found["all"]["spearman"].items()},
        "subsets": subsets,
    }


def trained_entry(found: dict[str, Any], protocol: Scoring) -> dict[str, Any]:
    """SentEval's result of a task with a classifier or a regression → its entry, ×100."""
    dev = protocol.mode == "dev"
    part = "dev" if dev else "test"
    sizes = {"n": found[f"n{part}"], "ndev": found["ndev"], "aggregation": part}
    entry: dict[str, Any] = {name: found[name] for name in ("acc", "devacc", "f1") if name in found}
    if not entry:
        entry = {name: 100 * found[name] for name in ("pearson", "spearman", "devpearson", "devspearman")}
        entry["mse"] = found["mse"]
    if dev:
        entry.update({name: entry[f"dev{name}"] for name in ("acc", "spearman", "pearson") if name in entry})
    return {**entry, **sizes}


def _contamination(engine: senteval.SE, task: Task, protocol: Scoring, found: set[str]) -> dict[str, Any]:
    """How many distinct sentences of a task occur in the training text, and its score without them."""
    sentences = senteval.distinct_sentences([task])
    count = sum(sentence in found for sentence in sentences)
    told: dict[str, Any] = {"sentences": len(sentences), "occurring": count}
    rest = without(task, found)
    if rest is None:
        return told
    try:
        entry, _ = run_task(engine, rest, protocol)
    except (ValueError, KeyError, IndexError) as error:  # too few rows or classes left for the folds
        logger.warning("%s: no score without the sentences of the training text (%s)", task.name, error)
        return {**told, "score_without": None, "n_without": None}
    value = score_of(entry)
    return {**told, "score_without": None if math.isnan(value) else value, "n_without": entry["n"]}


def _is_finished(entry: dict[str, Any] | None, training_text: TrainingText | None) -> bool:
    if entry is None or training_text is None:
        return entry is not None
    return training_text.label.items() <= entry.get("contamination", {}).items()
