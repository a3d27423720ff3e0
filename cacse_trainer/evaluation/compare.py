"""Two evaluations against each other: differences by task, with a paired bootstrap interval on STS and retrieval.

The pairs of a task are drawn with replacement, the same ones for both models, and the difference of the two Spearman
correlations is taken each time; of a retrieval set the queries are drawn, and it is their mean nDCG@10. The interval
says how far the difference hangs on which pairs or queries happen to be in the set.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.results import NDCG, RESULTS, SUITES, load_pairs_of, read_results, score_of, suites_of

DRAWS_AT_ONCE = 64  # bounds the table of ranks


@dataclass
class Difference:
    """One task, or the average of a suite.

    Args:
        name: of the task.
        first, second: the scores ×100.
        low, high: ends of the interval of second - first, ×100; None where no per-pair scores are kept.
        share_above: of the draws in which the second is better; None likewise.
    """

    name: str
    first: float
    second: float
    low: float | None = None
    high: float | None = None
    share_above: float | None = None

    @property
    def difference(self) -> float:
        """second - first."""
        return self.second - self.first

    @property
    def is_clear(self) -> bool | None:
        """Whether the interval lies on one side of 0; None without one."""
        return None if self.low is None or self.high is None else self.low > 0 or self.high < 0


def spearman_rows(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman of each row pair: (draws, pairs), (draws, pairs) → (draws,); NaN where a row is constant.

    >>> spearman_rows(np.array([[1.0, 2, 3, 4]]), np.array([[1.0, 2, 4, 3]])).round(3).tolist()
    [0.8]
    """
    a, b = rankdata(first, axis=1), rankdata(second, axis=1)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))


def bootstrap_differences(
    first: dict[str, np.ndarray], second: dict[str, np.ndarray], aggregation: str, draws: int, seed: int
) -> np.ndarray:
    """(draws,) differences second - first of the aggregated Spearman ×100; pairs are drawn within their subset.

    Args:
        first, second: ``cosine``, ``gold`` and ``subset`` of the same pairs in the same order.
        aggregation: all, mean, wmean, or the name of the one subset that counts.
        draws: how many.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    subsets = first["subset"]
    counted = dict.fromkeys(subsets.tolist()) if aggregation in ("all", "mean", "wmean") else [aggregation]
    parts = [np.flatnonzero(subsets == name) for name in counted]
    found = []
    for start in range(0, draws, DRAWS_AT_ONCE):
        count = min(DRAWS_AT_ONCE, draws - start)
        rows = [part[random.integers(len(part), size=(count, len(part)))] for part in parts]
        if aggregation in ("mean", "wmean"):
            weights = [len(part) for part in parts] if aggregation == "wmean" else None
            each = [_differences(first, second, row) for row in rows]
            found.append(np.average(each, axis=0, weights=weights))
        else:
            found.append(_differences(first, second, np.concatenate(rows, axis=1)))
    return 100 * np.concatenate(found)


def _differences(first: dict[str, np.ndarray], second: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    gold = first["gold"][rows]  # (draws, pairs)
    return spearman_rows(second["cosine"][rows], gold) - spearman_rows(first["cosine"][rows], gold)


def compare(
    first_path: Path, second_path: Path, *, draws: int = 1000, confidence: float = 0.95, seed: int = 0
) -> list[Difference]:
    """Differences of two ``results.json``, tasks in the papers' order, the averages of whole suites last.

    Args:
        first_path, second_path: the files, or their folders.
        draws: of the bootstrap.
        confidence: of the interval.
        seed: of the bootstrap.

    Raises:
        UserError: a file is missing or none of ours, no task is in both, or a task was scored in two ways.
    """
    paths = [path / RESULTS if path.is_dir() else path for path in (first_path, second_path)]
    found = [read_results(path) for path in paths]
    tasks = [results["tasks"] for results in found]
    modes = [results.get("settings", {}).get("mode") for results in found]
    known = [name for names in SUITES.values() for name in names]
    both = [name for name in [*known, *(n for n in tasks[0] if n not in known)] if all(name in t for t in tasks)]
    if not both:
        raise UserError(f"{paths[0]} and {paths[1]} have no task in common")
    drawn: dict[str, np.ndarray] = {}
    rows = []
    for name in both:
        entries = [t[name] for t in tasks]
        _check_same_protocol(name, entries, modes)
        row = Difference(name, score_of(entries[0]), score_of(entries[1]))
        rows.append(row)
        values = drawn_differences(paths[0], paths[1], name, draws=draws, seed=seed + len(drawn))
        if values is not None:
            drawn[name] = values
            _add_interval(row, values, confidence)
    for suite, names in suites_of(modes[0] or "test").items():
        if all(name in both for name in names):
            part = [row for row in rows if row.name in names]
            mean = Difference(
                f"{suite} Avg.", *(float(np.mean([getattr(r, s) for r in part])) for s in ("first", "second"))
            )
            if all(name in drawn for name in names):
                _add_interval(mean, np.mean([drawn[name] for name in names], axis=0), confidence)
            rows.append(mean)
    return rows


def drawn_differences(
    first_path: Path, second_path: Path, name: str, *, draws: int = 1000, seed: int = 0
) -> np.ndarray | None:
    """(draws,) differences second - first ×100 of one task; None where the pairs or queries are not kept by both.

    Two calls with the same seed draw the same pairs, so that their means are those of a mean of models.

    Args:
        first_path, second_path: ``results.json``, or its folder.
        name: of a task that both have.
        draws, seed: of the bootstrap.
    """
    paths = [path / RESULTS if path.is_dir() else path for path in (first_path, second_path)]
    entry = read_results(paths[0])["tasks"][name]
    if NDCG in entry:
        first, second = (load_pairs_of(path, name, ["ndcg"]) for path in paths)
        if first is None or second is None:
            return None
        return _mean_differences(first["ndcg"], second["ndcg"], draws, seed)
    first, second = (load_pairs_of(path, name) for path in paths)
    if first is None or second is None or not _same_pairs(first, second):
        return None
    return bootstrap_differences(first, second, entry["aggregation"], draws, seed)


def difference_of(
    name: str, first: np.ndarray, second: np.ndarray, gold: np.ndarray, draws: int = 1000, seed: int = 0
) -> Difference:
    """Two models' cosines of the same graded pairs: their Spearman ×100, and the 95 % interval of the difference."""
    subset = np.zeros(len(gold))
    models = [{"cosine": cosine, "gold": gold, "subset": subset} for cosine in (first, second)]
    scores = [100 * float(spearman_rows(cosine[None], gold[None])[0]) for cosine in (first, second)]
    row = Difference(name, *scores)
    _add_interval(row, bootstrap_differences(models[0], models[1], "all", draws, seed), 0.95)
    return row


def difference_of_means(
    name: str, first: np.ndarray, second: np.ndarray, draws: int = 1000, seed: int = 0
) -> Difference:
    """Two models' values of the same queries, 0 to 1: their means ×100, and the 95 % interval of the difference."""
    row = Difference(name, 100 * float(first.mean()), 100 * float(second.mean()))
    _add_interval(row, _mean_differences(first, second, draws, seed), 0.95)
    return row


def _mean_differences(first: np.ndarray, second: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """(draws,) mean differences second - first ×100 of queries that are drawn with replacement."""
    random, gained = np.random.default_rng(seed), second - first
    found = [gained[random.integers(len(gained), size=len(gained))].mean() for _ in range(draws)]
    return 100 * np.array(found)


def _check_same_protocol(name: str, entries: Sequence[dict[str, Any]], modes: Sequence[str | None]) -> None:
    if entries[0].get("data") != entries[1].get("data"):
        raise UserError(f"{name} was scored on two different sets; evaluate both on the same one")
    ways = [entry.get("aggregation") for entry in entries]
    if ways[0] != ways[1]:
        raise UserError(f"{name} was scored in two ways: {ways[0]} and {ways[1]}; evaluate both with one --aggregation")
    if "acc" in entries[0] and modes[0] != modes[1]:  # the classifiers' settings; a cosine has none
        raise UserError(f"{name} was scored in two modes: {modes[0]} and {modes[1]}; evaluate both with one --mode")


def _same_pairs(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return np.array_equal(first["gold"], second["gold"]) and np.array_equal(first["subset"], second["subset"])


def _add_interval(row: Difference, values: np.ndarray, confidence: float) -> None:
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return
    tail = 50 * (1 - confidence)
    row.low, row.high = (float(value) for value in np.percentile(values, [tail, 100 - tail]))
    row.share_above = float((values > 0).mean())


def comparison_rows(rows: Sequence[Difference]) -> list[list[str]]:
    """The cells of a table: task, both scores, difference, interval, verdict."""
    cells = []
    for row in rows:
        interval = "" if row.low is None else f"[{row.low:+.2f}, {row.high:+.2f}]"
        verdict = {None: "", True: "clear", False: "within chance"}[row.is_clear]
        numbers = ["-" if math.isnan(value) else f"{value:.2f}" for value in (row.first, row.second)]
        change = "-" if math.isnan(row.difference) else f"{row.difference:+.2f}"
        cells.append([row.name, *numbers, change, interval, verdict])
    return cells
