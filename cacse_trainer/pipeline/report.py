"""The pipeline's report: every stage's scores and times, and the curves, as Markdown and as one HTML file."""

import base64
import html
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cacse_trainer.evaluation.report import curve, environment
from cacse_trainer.pipeline.stages import PROOF, TRAINING, Stage

CURVES = "pipeline_curves.png"
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #bbb;padding:.3em .7em;text-align:left}"
    "img{max-width:100%}"
)
Rows = list[tuple[str, ...]]


def stage_scores(stage: Stage) -> Rows:
    """(stage, model, set, score) of whatever a stage has measured."""
    proof = stage.folder / PROOF.get(stage.command, "none")
    if not proof.is_file() or proof.suffix != ".json":
        return []
    found = json.loads(proof.read_text(encoding="utf-8"))
    if stage.command in TRAINING:
        return _training_scores(stage.name, found)
    measured = [(f"average {name}", value) for name, value in found["averages"].items()]
    measured += [(name, task.get("spearman", task.get("acc"))) for name, task in found["tasks"].items()]
    return [(stage.name, found["model"], what, _number(value)) for what, value in measured]


def _training_scores(name: str, report: dict[str, Any]) -> Rows:
    if report.get("metric") is None:
        return []
    metric = report["metric"].rpartition("_")[0].removeprefix("eval_") or report["metric"]
    is_sum = report["model"].startswith("Cacse")
    start = "sum of the towers, before the joint training" if is_sum else "before training"
    rows: Rows = [(name, start, metric, _number(report["baseline"]))]
    for encoder, score in report.get("teacher", {}).get("scores", {}).items():
        rows.append((name, "teacher", encoder, _number(score)))
    for encoder, scores in report["exported"].items():
        shown = {"ensemble": "sum of the towers, exported"}.get(encoder, f"{encoder}, exported")
        rows += [(name, shown, dev, _number(score)) for dev, score in scores.items()]
    return rows


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def plot_curves(path: Path, stages: Sequence[Stage]) -> bool:
    """The dev score of every training stage over its steps; false where there is none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = []
    for stage in stages:
        proof = stage.folder / PROOF["train"]
        if stage.command in TRAINING and proof.is_file():
            report = json.loads(proof.read_text(encoding="utf-8"))
            if report.get("metric") is not None:
                points = curve(report["log_history"], f"eval_{report['metric'].removeprefix('eval_')}")
                lines.append((f"{stage.name}: {report['metric']}", points))
    if not lines:
        return False
    figure, axis = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    for label, points in lines:
        axis.plot([p["step"] for p in points], [p["value"] for p in points], marker=".", label=label)
    axis.set_xlabel("step of the stage")
    axis.set_ylabel("×100")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def write_pipeline_report(
    root: Path, stages: Sequence[Stage], record: dict[str, dict[str, Any]], recipe: str
) -> list[Path]:
    """Write ``pipeline_report.md``, ``pipeline_report.html`` and the curves; returns the two reports' paths."""
    times: Rows = []
    for stage in stages:
        entry = record.get(stage.name)
        state = "not run" if entry is None else "finished" if stage.is_finished() else "unfinished"
        times.append((stage.name, stage.command, state, f"{entry['seconds']:.0f}" if entry else "", stage.folder.name))
    scores = [row for stage in stages for row in stage_scores(stage)]
    total = sum(entry["seconds"] for entry in record.values())
    has_curves = plot_curves(root / CURVES, stages)
    versions = ", ".join(f"{name} {value}" for name, value in environment().items())
    title = f"Pipeline {Path(recipe).stem}"
    facts = f"Wall time of all stages: {total / 60:.1f} minutes. Written {time.strftime('%Y-%m-%d %H:%M')}. {versions}."
    tables = [
        (
            "Scores",
            "Spearman's ρ ×100 on the dev sets; evaluations have their own measures.",
            ("stage", "model", "set", "score"),
            scores,
        ),
        (
            "Stages",
            "Wall time in seconds, over all starts of a stage.",
            ("stage", "command", "state", "seconds", "folder"),
            times,
        ),
    ]
    markdown, page = [f"# {title}", "", facts, ""], [f"<h1>{html.escape(title)}</h1><p>{html.escape(facts)}</p>"]
    for heading, note, head, rows in tables:
        markdown += [f"## {heading}", "", note, "", _markdown_table(head, rows), ""]
        page.append(f"<h2>{heading}</h2><p>{html.escape(note)}</p>{_html_table(head, rows)}")
    if has_curves:
        markdown += ["## Curves", "", f"![dev scores of all stages]({CURVES})", ""]
        page.append(f"<h2>Curves</h2>{_image(root / CURVES, 'dev scores of all stages')}")
    for stage in stages:
        picture = stage.folder / "training_curves.png"
        if picture.is_file():
            markdown += [f"### {stage.name}", "", f"![loss and dev score]({stage.folder.name}/{picture.name})", ""]
            page.append(f"<h3>{html.escape(stage.name)}</h3>{_image(picture, 'loss and dev score')}")
    paths = [root / "pipeline_report.md", root / "pipeline_report.html"]
    document = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(page)}</body></html>\n"
    )
    for path, text in zip(paths, ("\n".join(markdown), document), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def _markdown_table(head: Sequence[str], rows: Rows) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _html_table(head: Sequence[str], rows: Rows) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _image(path: Path, text: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'
