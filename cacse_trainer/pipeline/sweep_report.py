"""What a sweep found: mean and standard deviation over the seeds of each point, and the best run's cards."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cacse_trainer.errors import RunError
from cacse_trainer.evaluation.environment import environment
from cacse_trainer.evaluation.tables import markdown_table
from cacse_trainer.files import read_object, write_json, write_text
from cacse_trainer.pipeline.stages import PROOF
from cacse_trainer.pipeline.sweep import SweepRun
from cacse_trainer.report.training import score_text

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
        report = read_object(path, "run it anew: delete its folder", exported=dict, settings=dict)
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
    """Write ``sweep_report.json`` and ``sweep_report.md``, and the table into the cards of the best run.

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
    paths = [root / "sweep_report.md", root / "sweep_report.json"]
    write_text(paths[0], text)
    write_json(paths[1], found)
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
    return f"{text}\n{paths[0]}", found


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
    return {
        "n": len(defined),
        "mean": statistics.fmean(defined) if defined else None,
        "std": statistics.stdev(defined) if len(defined) > 1 else None,
        "least": min(defined, default=None),
        "largest": max(defined, default=None),
    }


def _shown(spread: dict[str, Any] | None) -> str:
    if not spread or not spread["n"]:
        return "undefined"
    return f"{spread['mean']:.2f}" + (f" ± {spread['std']:.2f}" if spread["std"] is not None else "")
