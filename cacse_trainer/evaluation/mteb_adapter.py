"""MTEB on an encoder: the `mteb` library's tasks through the same vectors, results into the same ``results.json``.

This module imports mteb (``pip install "cacse-trainer[mteb]"``); nothing else does.
"""

import difflib
import hashlib
import json
import logging
import time
import warnings
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.errors import UserError, one_line
from cacse_trainer.evaluation.health import unit
from cacse_trainer.evaluation.mteb_suites import MTEB_SUITES, NOT_MAPPED, release_metric
from cacse_trainer.evaluation.results import ResultStore

try:
    import mteb
    from mteb.models.model_meta import ModelMeta
except ImportError as missing:
    raise UserError('the mteb library is not installed: pip install "cacse-trainer[mteb]"') from missing

logger = logging.getLogger(__name__)


class MtebEncoder:
    """An encoder as mteb's ``EncoderProtocol``; it adds no prompts."""

    def __init__(self, encoder: BaseEncoder, progress: bool = False):
        self.encoder, self.progress = encoder, progress
        self.mteb_model_meta = ModelMeta.create_empty(  # mteb asks for name and revision
            {"name": f"local/{encoder.name.strip('/').rpartition('/')[2]}", "revision": revision_of(encoder)}
        )

    def encode(self, inputs: Iterable[dict[str, Any]], **kwargs: Any) -> np.ndarray:
        """Batches of ``{"text": [...]}`` → (n, dim). mteb's other arguments (task, split, prompt) change nothing."""
        sentences = [text for batch in inputs for text in batch["text"]]
        vectors = self.encoder.vectors(sentences, show_progress_bar=self.progress)
        return unit(vectors).astype(np.float32) if self.encoder.normalizes else vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosine of each row with each: (n, dim), (m, dim) → (n, m)."""
        first, second = _unit(embeddings1), _unit(embeddings2)
        return first @ second.T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosine of row pairs: (n, dim), (n, dim) → (n,)."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(dim=-1)


def revision_of(encoder: BaseEncoder) -> str:
    """By what mteb's cache of results tells encoders of one name apart: the weights, and how vectors are made of them.

    ``HASH-HASH``, of the weights and of `BaseEncoder.identity` (pooling, length, dimensions, prompts, …).
    """
    facts = json.dumps(encoder.identity(), sort_keys=True, default=str)
    return f"{encoder.fingerprint()}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


def _unit(rows: Any) -> Tensor:
    return torch.nn.functional.normalize(torch.atleast_2d(torch.as_tensor(rows).float()), dim=-1)


def task_names(names: Sequence[str]) -> list[str]:
    """Names of tasks and suites → task names of the installed mteb, each once; what is not mapped is logged.

    Raises:
        UserError: a name that is not mapped.
    """
    wanted: list[str] = []
    for name in names:
        if name in NOT_MAPPED:
            raise UserError(f"mteb task {name}: {NOT_MAPPED[name]}")
        for task in MTEB_SUITES.get(name, (name,)):
            if task in NOT_MAPPED:
                logger.warning("%s: left out %s, it is not mapped: %s", name, task, NOT_MAPPED[task])
            else:
                wanted.append(task)
    return list(dict.fromkeys(wanted))


def resolve_tasks(names: Sequence[str]) -> list[Any]:
    """Names of tasks and suites → mteb's tasks.

    Raises:
        UserError: no such task or suite; the nearest is suggested.
    """
    tasks = []
    for name in task_names(names):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tasks.append(mteb.get_task(name))
        except KeyError as error:
            suite = difflib.get_close_matches(name, list(MTEB_SUITES), n=1, cutoff=0.85)
            if suite:
                raise UserError(f"mteb {name}: no such task or suite; did you mean {suite[0]}?") from error
            told = " ".join(str(error.args[0]).removeprefix("KeyError: ").split())
            raise UserError(f"mteb {name}: {told} (suites: {', '.join(MTEB_SUITES)})") from error
    return tasks


def run_mteb(encoder: BaseEncoder, tasks: Sequence[Any], store: ResultStore, *, progress: bool = True) -> None:
    """Run those of the tasks (see `resolve_tasks`) that the store has no results of, and keep each result.

    Raises:
        UserError: after all other tasks are done, if the data of some could not be fetched.
    """
    adapter = MtebEncoder(encoder, progress)
    unreachable: dict[str, str] = {}
    for task in tasks:
        name = task.metadata.name
        if name in store.mteb:
            logger.info("already there: %s", name)
            continue
        logger.info("mteb: %s", name)
        try:
            task.load_data()
        except (OSError, ValueError, RuntimeError) as error:  # the hub's errors, and datasets' own
            unreachable[name] = one_line(error)[:160]
            logger.warning("mteb: the data of %s cannot be fetched: %s", name, unreachable[name])
            continue
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = mteb.evaluate(adapter, task, cache=None, show_progress_bar=False).task_results[0]
        task.unload_data()
        store.add_mteb(name, {**mteb_entry(task, result), "seconds": round(time.perf_counter() - started, 2)})
    if unreachable:
        first = next(iter(unreachable.values()))
        raise UserError(
            f"mteb: the data of {', '.join(unreachable)} cannot be fetched ({first}); they come from the Hugging Face "
            "hub: check the network or the cache (HF_HOME). Results of the other tasks are kept"
        )


def mteb_entry(task: Any, result: Any) -> dict[str, Any]:
    """mteb's result of a task → its entry, ×100: the main score, the release's metric, and each subset's main score."""
    scores = {split: {row["hf_subset"]: row for row in rows} for split, rows in result.scores.items()}
    entry: dict[str, Any] = {
        "main_score": 100 * float(result.get_score()),
        "metric": task.metadata.main_score,
        "type": task.metadata.type,
        "subsets": {
            split: {subset: 100 * row["main_score"] for subset, row in rows.items()} for split, rows in scores.items()
        },
        "mteb": metadata.version("mteb"),
    }
    metric = release_metric(task.metadata.name)
    values = [row[metric] for rows in scores.values() for row in rows.values() if metric in row]
    if metric is not None and values:
        entry.update(release_metric=metric, release_score=100 * float(np.mean(values)))
    return entry
