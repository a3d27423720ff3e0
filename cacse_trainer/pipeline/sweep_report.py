"""What a sweep found: mean, deviation and interval over the seeds of each point, curves, and the best run's cards."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from scipy.stats import t

from cacse_trainer.errors import RunError
from cacse_trainer.evaluation.environment import environment
from cacse_trainer.evaluation.tables import markdown_table
from cacse_trainer.files import read_object, write_json, write_text
from cacse_trainer.pipeline.stages import PROOF
from cacse_trainer.pipeline.sweep import SweepRun
from cacse_trainer.report import Section, page
from cacse_trainer.report.comparison import overlaid
from cacse_trainer.report.training import facts, score_text
from cacse_trainer.runs.folder import PAGE

KINDS: dict[str, Any] = {"exported": dict, "settings": dict, "log_history": list, "steps": int}
"""What a run's report has."""
NOTE = (
    "×100. sd: the standard deviation over the seeds; interval: that of their mean, 95 %, by Student's t. The best of "
    "several runs is above what one gives on average. Rows that held_out_rows keeps are drawn by the seed: each seed "
    "then has sets of its own."
)
SECTION = "\n## Seeds\n"
"""The heading of what a sweep adds at the end of a card."""


def collect(runs: Sequence[SweepRun]) -> dict[str, Any]:
    """Scores of all finished runs, by run and by point.

    Returns:
        ``metric``, ``runs`` (name, point, seed, best, baseline, exported scores), ``points`` (point, seeds, and for
        each measure its n, mean, sample standard deviation, least and largest) and ``best`` (a run's name).

    Raises:
        RunError: no run is finished.
    """
    rows: list[dict[str, Any]] = []
    metric, larger = None, True
    for run in runs:
        path = run.stage.folder / PROOF["train"]
        if not path.is_file():
            continue
        report = read_object(path, "run it anew: delete its folder", **KINDS)
        metric = report.get("metric") or metric
        larger = report["settings"].get("greater_is_better") is not False
        measures = {"best on dev": report.get("best"), "before training": report.get("baseline")}
        for folder, scores in report["exported"].items():
            measures.update({f"{folder}: {dev}": score for dev, score in scores.items()})
        rows.append({"run": run.stage.name, "point": run.point, "seed": run.seed, "scores": measures})
    if not rows:
        raise RunError("sweep: no run is finished, there is nothing to report")
    points = []
    for point in list({json.dumps(row["point"], default=str): row["point"] for row in rows}.values()):
        of_point = [row for row in rows if row["point"] == point]
        names = list(dict.fromkeys(name for row in of_point for name in row["scores"]))
        scores = {name: _spread([row["scores"].get(name) for row in of_point]) for name in names}
        points.append({"point": point, "seeds": [row["seed"] for row in of_point], "scores": scores})
    scored = [row for row in rows if row["scores"]["best on dev"] is not None]
    chosen = max if larger else min
    best = chosen(scored, key=lambda row: row["scores"]["best on dev"])["run"] if scored else None
    return {"metric": metric, "best": best, "points": points, "runs": rows}


def write_sweep_report(root: Path, recipe: str, runs: Sequence[SweepRun]) -> tuple[str, dict[str, Any]]:
    """Write ``sweep_report.html``, ``.md`` and ``.json``, and the table into the cards of the best run.

    Returns:
        A text for the terminal, and what ``sweep_report.json`` holds.
    """
    found = collect(runs)
    found["environment"] = environment()
    table = _point_table(found)
    lines = [
        f"# Sweep of {Path(recipe).stem if Path(recipe).is_file() else recipe}",
        "",
        f"{len(found['runs'])} of {len(runs)} runs are finished. ",
    ]
    if found["metric"]:
        lines[-1] += f"Chosen by {found['metric']} (×100); the best run is `{found['best']}`."
    text = "\n".join([*lines, "", table, "", _run_table(found), ""])
    path = root / "sweep_report.html"
    write_text(root / "sweep_report.md", text)
    write_json(root / "sweep_report.json", found)
    write_text(path, sweep_page(lines[0].removeprefix("# "), lines[-1].replace("`", ""), found, runs))
    for run in runs:
        note = ""
        if run.stage.name == found["best"]:
            note = (
                f"The best of {len(found['runs'])} runs by {found['metric']}, and so above what one run gives on "
                "average. Mean ± standard deviation over the seeds of each setting:\n\n" + table
            )
        for card in sorted(run.stage.folder.glob("export/*/README.md")):
            before = card.read_text(encoding="utf-8")
            after = before.partition(SECTION)[0] + (f"{SECTION}\n{note}\n" if note else "")
            if after != before:
                write_text(card, after)
    return f"{text}\n{path}", found


def sweep_page(title: str, lead: str, found: dict[str, Any], runs: Sequence[SweepRun]) -> str:
    """The page: a line a point in each chart, its seeds shaded around it; the tables of points and runs.

    Args:
        title, lead: on top.
        found: see `collect`.
        runs: whose curves are read from their folders.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run.stage.is_finished():
            report = read_object(run.stage.folder / PROOF["train"], "run it anew: delete its folder", **KINDS)
            groups.setdefault(_point_name(run.point), []).append(report)
    measures = dict.fromkeys(name for point in found["points"] for name in point["scores"])
    rows = [
        [measure, _point_name(point["point"]), *_cells(spread)]
        for measure in measures
        for point in found["points"]
        if (spread := point["scores"].get(measure)) and spread["n"]
    ]
    names = ("before training", "best on dev")
    each = [
        [Markup('<a href="{}/{}">{}</a>').format(quote(row["run"]), PAGE, row["run"])]
        + [score_text(row["scores"][name]) for name in names]
        for row in found["runs"]
    ]
    head = ("measure", "settings", "seeds", "mean", "sd", "95 % interval", "least", "largest")
    sections = [
        Section("Scores", NOTE, rows=rows, head=head, numeric=range(2, 8)),
        Section("Dev scores over the steps", charts=overlaid(groups, dev=True)),
        Section("Loss", charts=overlaid(groups, dev=False)),
        Section("Runs", rows=each, head=("run", *names), numeric=[1, 2]),
        Section("Environment", rows=facts(found["environment"])),
    ]
    return page(title, lead, sections)


def _point_name(point: dict[str, Any]) -> str:
    """``learning_rate 3e-5, …``; of a sweep of seeds alone, which has one point, ``all seeds``."""
    return ", ".join(f"{field} {value}" for field, value in point.items()) or "all seeds"


def _cells(spread: dict[str, Any]) -> list[str]:
    interval = "–" if spread["low"] is None else f"[{spread['low']:.2f}, {spread['high']:.2f}]"
    mean, std, least, largest = (score_text(spread[key], "–") for key in ("mean", "std", "least", "largest"))
    return [str(spread["n"]), mean, std, interval, least, largest]


def _point_table(found: dict[str, Any]) -> str:
    """A row a point: its values, the number of seeds, mean ± standard deviation of each measure."""
    fields = list(found["points"][0]["point"])
    measures = list(dict.fromkeys(name for point in found["points"] for name in point["scores"]))
    measures = [name for name in measures if any(point["scores"][name]["n"] for point in found["points"])]
    rows = []
    for point in found["points"]:
        values = [str(point["point"][field]) for field in fields]
        rows.append([*values, str(len(point["seeds"])), *(_shown(point["scores"].get(name)) for name in measures)])
    return markdown_table([*fields, "seeds", *measures], rows)


def _run_table(found: dict[str, Any]) -> str:
    names = ("before training", "best on dev")
    rows = [[row["run"], *(score_text(row["scores"][name]) for name in names)] for row in found["runs"]]
    return markdown_table(["run", *names], rows)


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    defined = [value for value in values if value is not None and math.isfinite(value)]
    mean = statistics.fmean(defined) if defined else None
    std = low = high = None
    if mean is not None and len(defined) > 1:
        std = statistics.stdev(defined)
        half = float(t.ppf(0.975, len(defined) - 1)) * std / math.sqrt(len(defined))
        low, high = mean - half, mean + half
    return {
        "n": len(defined),
        "mean": mean,
        "std": std,
        "low": low,
        "high": high,
        "least": min(defined, default=None),
        "largest": max(defined, default=None),
    }


def _shown(spread: dict[str, Any] | None) -> str:
    if not spread or not spread["n"]:
        return "undefined"
    return f"{spread['mean']:.2f}" + (f" ± {spread['std']:.2f}" if spread["std"] is not None else "")
