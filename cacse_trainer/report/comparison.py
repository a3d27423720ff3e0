"""Several runs in one page: scores with paired intervals, curves overlaid, what differs in their settings."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.answers import ANSWERS, paired_differences
from cacse_trainer.evaluation.compare import Difference
from cacse_trainer.files import read_object
from cacse_trainer.report.curves import Series, line_chart, points_of
from cacse_trainer.report.page import Rows, Section, page
from cacse_trainer.report.training import HIDDEN_SETTINGS, dev_curves, duration, facts, score_text

REPORT, PAGE = "training_report.json", "report.html"
KINDS: dict[str, Any] = {"model": str, "exported": dict, "log_history": list, "settings": dict, "steps": int}
"""What a run's report has."""
PLACES = frozenset({"output_dir", "logging_dir", "run_name"})
"""Settings that say where a run lies, and differ in any two."""
Reports = Mapping[str, Mapping[str, Any]]


def read_runs(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The reports of finished runs, by the shortest ends of their paths that tell them apart.

    Raises:
        UserError: a folder holds no finished run, or is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UserError("report: a run is given twice; give each folder once")
    length = next(n for n in range(1, 99) if len({path.parts[-n:] for path in paths}) == len(paths))
    found = {}
    for folder, path in zip(folders, paths, strict=True):
        if not (path / REPORT).is_file():
            raise UserError(f"{folder}: holds no finished run of train or distill (no {REPORT}); give an output folder")
        found["/".join(path.parts[-length:])] = read_object(path / REPORT, "give another run", **KINDS)
    return found


def compare_runs(folders: Sequence[Path], beside: Path) -> tuple[str, dict[str, Any]]:
    """The page of several runs, each against the first.

    Args:
        folders: the output folders of finished runs, two at least.
        beside: the folder in which the page will lie, for its links.

    Returns:
        The page, and the same in numbers: ``scores`` by run and set, ``differences`` by set and run with their
        intervals, and ``settings``, those that differ, by run.

    Raises:
        UserError: see `read_runs`.
    """
    reports = read_runs(folders)
    names = list(reports)
    first, *others = names
    paths = dict(zip(names, folders, strict=True))
    found = {name: paired_differences(paths[first] / ANSWERS, paths[name] / ANSWERS) for name in others}
    settings = differing({name: report["settings"] for name, report in reports.items()})
    links = {name: _link(paths[name] / PAGE, beside, name) for name in names}
    groups = {name: [report] for name, report in reports.items()}
    head, rows = score_table(reports, found, links)
    sections = [
        Section("Scores", SCORE_NOTE.format(first), rows=rows, head=head, numeric=[2, 3, 4]),
        Section("Dev scores over the steps", charts=overlaid(groups, dev=True)),
        Section("Loss", LOSS_NOTE, charts=overlaid(groups, dev=False)),
        Section("What differs", rows=setting_rows(settings, names), head=("setting", *names)),
        Section("Runs", rows=run_rows(reports), head=("", *names)),
    ]
    lead = f"{len(names)} runs, each against {first}"
    numbers = {
        "scores": {name: scores_of(report) for name, report in reports.items()},
        "differences": {name: {key: vars(row) for key, row in rows.items() if row} for name, rows in found.items()},
        "settings": settings,
    }
    return page("Runs compared", lead, sections), numbers


SCORE_NOTE = (
    "×100 on each dev and held-out set, of what each run gives. The difference is to {}, with its 95 % interval where "
    "both runs keep their answers: the same pairs or queries are drawn anew for both. It covers the chance of the set, "
    "not that of another training seed."
)
SHADED = "Mean over the seeds, shaded from the least to the largest."
LOSS_NOTE = "Losses of different objectives, batches or temperatures have scales of their own."


def differing(settings: Reports) -> dict[str, dict[str, Any]]:
    """The settings that are not the same in all runs, but those that say where a run lies: by name, then by run."""
    names = dict.fromkeys(name for given in settings.values() for name in given)
    table = {name: {run: given.get(name) for run, given in settings.items()} for name in names}
    shown = {name: row for name, row in table.items() if name not in PLACES | HIDDEN_SETTINGS}
    return {name: row for name, row in shown.items() if len({str(value) for value in row.values()}) > 1}


def setting_rows(settings: Mapping[str, Mapping[str, Any]], runs: Sequence[str]) -> Rows:
    """A row a setting, a column a run."""
    columns = [dict(facts({name: row[run] for name, row in settings.items()})) for run in runs]
    return [[name, *(column[name] for column in columns)] for name in (columns[0] if columns else ())]


def scores_of(report: Mapping[str, Any]) -> dict[str, float | None]:
    """What a run's result scores by set; where older runs do not say so, the last of its exported folders."""
    trained = report.get("trained") or {"scores": dict(*list(report["exported"].values())[-1:])}
    return dict(trained["scores"])


def score_table(
    reports: Reports, differences: Mapping[str, Mapping[str, Difference | None]], links: Mapping[str, Markup]
) -> tuple[Sequence[str], Rows]:
    """Head and rows: by set, each run's score, its difference to the first, the interval, and whether that is clear."""
    first = next(iter(reports))
    scores = {name: scores_of(report) for name, report in reports.items()}
    rows = []
    for key in dict.fromkeys(key for found in scores.values() for key in found):
        for name in reports:
            value, base = scores[name].get(key), scores[first].get(key)
            row = differences[name].get(key) if name != first else None
            is_other = name != first and key in differences[name] and row is None
            change = "" if name == first or is_other or value is None or base is None else f"{value - base:+.2f}"
            interval = "" if row is None or row.low is None else f"[{row.low:+.2f}, {row.high:+.2f}]"
            verdict = "another set" if is_other else ""
            if row is not None:
                verdict = {None: "", True: "clear", False: "within chance"}[row.is_clear]
            rows.append([key, links[name], score_text(value, "–"), change, interval, verdict])
    return ("set", "run", "score", "difference", "95 % interval", ""), rows


def run_rows(reports: Reports) -> Rows:
    """Facts of each run, a column each."""
    told = {
        "model": lambda report: report["model"],
        "steps": lambda report: str(report["steps"]),
        "best step": lambda report: str(report.get("best_step") or "–"),
        "wall time": lambda report: duration(report["wall_seconds"]) if "wall_seconds" in report else "–",
        "finished": lambda report: report.get("finished", "–"),
    }
    return [[what, *(tell(report) for report in reports.values())] for what, tell in told.items()]


def overlaid(groups: Mapping[str, Sequence[Mapping[str, Any]]], *, dev: bool) -> list[Markup]:
    """A chart a dev set (or one of the loss), a line a group of reports: their mean, shaded from least to largest.

    Args:
        groups: reports by name; those of a group differ in their seed alone.
        dev: the dev sets' scores; else the loss.
    """
    curves = {
        name: [dev_curves(dict(one)) if dev else {"loss": points_of(one["log_history"], "loss")} for one in group]
        for name, group in groups.items()
    }
    end = max(one["steps"] for group in groups.values() for one in group)
    charts = []
    for what in dict.fromkeys(key for group in curves.values() for one in group for key in one):
        lines = [mean_curve(name, [one[what] for one in group if what in one]) for name, group in curves.items()]
        note = SHADED if any(line.band for line in lines) else ""
        charts.append(line_chart(lines, f"{what}, ×100" if dev else what, note=note, wide=True, x_end=end))
    return charts


def mean_curve(name: str, curves: Sequence[Sequence[tuple[float, float | None]]]) -> Series:
    """The mean of several curves at the steps that all have, and their range where there are several.

    >>> mean_curve("a", [[(0, 1.0), (5, 2.0)], [(0, 3.0), (5, 4.0), (9, 0.0)]])
    Series(name='a', points=[(0, 2.0), (5, 3.0)], band=[(0, 1.0, 3.0), (5, 2.0, 4.0)])
    """
    tables = [dict(Series(name, curve).finite()) for curve in curves]
    steps = [step for step in (tables[0] if tables else ()) if all(step in table for table in tables)]
    values = {step: [table[step] for table in tables] for step in steps}
    points = [(step, sum(found) / len(found)) for step, found in values.items()]
    band = [(step, min(found), max(found)) for step, found in values.items()] if len(tables) > 1 else []
    return Series(name, points, band)


def _link(target: Path, beside: Path, text: str) -> Markup:
    """To a page that lies elsewhere on this machine; where it is not there, the text alone."""
    if not target.is_file():
        return Markup.escape(text)
    return Markup('<a href="{}">{}</a>').format(quote(os.path.relpath(target, beside)), text)
