"""The pipeline's report: every stage's scores and times, and the curves, as Markdown and as one HTML file."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cacse_trainer.evaluation.environment import environment
from cacse_trainer.evaluation.tables import markdown_table
from cacse_trainer.files import check_entries, read_object, write_text
from cacse_trainer.pipeline.stages import PROOF, TRAINING, Stage
from cacse_trainer.report import Section, Series, line_chart, page
from cacse_trainer.report.curves import points_of
from cacse_trainer.report.training import dev_charts, duration, facts, loss_charts, score_text, space_charts

MARKDOWN, HTML = "pipeline_report.md", "report.html"
SCORE_HEAD = ("stage", "model", "set", "score")
Rows = list[tuple[str, ...]]
TRAINED = {"model": str, "exported": dict, "log_history": list, "settings": dict}
"""What the report of a training has."""
EVALUATED = {"model": str, "averages": dict, "tasks": dict}
"""What the results of an evaluation have."""


def stage_scores(stage: Stage) -> Rows:
    """(stage, model, set, score) of whatever a stage has measured."""
    found = _proof(stage)
    if not found:
        return []
    if stage.command in TRAINING:
        return _training_scores(stage.name, found)
    measured = [(f"average {name}", value) for name, value in found["averages"].items()]
    measured += [(name, task.get("spearman", task.get("acc"))) for name, task in found["tasks"].items()]
    return [(stage.name, found["model"], what, score_text(value)) for what, value in measured]


def _proof(stage: Stage) -> dict[str, Any]:
    """The JSON that a finished stage leaves; empty where there is none."""
    proof = stage.folder / PROOF.get(stage.command, "none")
    if not proof.is_file() or proof.suffix != ".json":
        return {}
    mend = f"run the stage {stage.name} anew: delete its folder"
    found = read_object(proof, mend)
    if found:
        check_entries(found, str(proof), mend, **(TRAINED if stage.command in TRAINING else EVALUATED))
    return found


def _training_scores(name: str, report: dict[str, Any]) -> Rows:
    if report.get("metric") is None:
        return []
    metric = report["metric"].rpartition("_")[0].removeprefix("eval_") or report["metric"]
    is_sum = report["model"].startswith("Cacse")
    untrained = "sum of the towers, before the joint training" if is_sum else "before training"
    rows: Rows = [(name, untrained, metric, score_text(report.get("untrained", report["baseline"])))]
    if start := report.get("start"):
        rows.insert(0, (name, f"{start['name']} as it is", metric, score_text(report["baseline"])))
    for encoder, score in report.get("teacher", {}).get("scores", {}).items():
        rows.append((name, "teacher", encoder, score_text(score)))
    for encoder, scores in report["exported"].items():
        shown = {"ensemble": "sum of the towers, exported"}.get(encoder, f"{encoder}, exported")
        rows += [(name, shown, dev, score_text(score)) for dev, score in scores.items()]
    return rows


def comparison_chart(reports: dict[str, dict[str, Any]]) -> Markup:
    """The dev score of every training stage over its steps, in one chart."""
    lines = [
        Series(f"{name}: {metric}", points_of(report["log_history"], f"eval_{metric.removeprefix('eval_')}"))
        for name, report in reports.items()
        if (metric := report.get("metric")) is not None
    ]
    return line_chart(lines, "chosen metric of every stage, ×100", x_label="step of the stage")


def write_pipeline_report(
    root: Path, stages: Sequence[Stage], record: dict[str, dict[str, Any]], recipe: str, command: str
) -> list[Path]:
    """Write ``pipeline_report.md`` and ``report.html``; returns their paths.

    Args:
        root: the pipeline's output folder.
        stages, record: what was to be done, and what is recorded of it.
        recipe: name or path.
        command: the words that repeat it.
    """
    times: Rows = []
    for stage in stages:
        entry = record.get(stage.name)
        state = "not run" if entry is None else "finished" if stage.is_finished() else "unfinished"
        times.append((stage.name, stage.command, state, f"{entry['seconds']:.0f}" if entry else "", stage.folder.name))
    scores = [row for stage in stages for row in stage_scores(stage)]
    reports = {stage.name: found for stage in stages if stage.command in TRAINING and (found := _proof(stage))}
    total = sum(entry["seconds"] for entry in record.values())
    title = f"Pipeline {Path(recipe).stem}"
    written = time.strftime("%Y-%m-%d %H:%M")
    score_note = "Spearman's ρ or nDCG@10 ×100 on the dev sets; evaluations have their own measures."
    time_note = "Wall time in seconds, over all starts of a stage."
    tables = [
        Section("Scores", score_note, rows=scores, head=SCORE_HEAD, numeric=[3]),
        Section("Stages", time_note, rows=times, head=("stage", "command", "state", "seconds", "folder"), numeric=[3]),
    ]
    sections = [
        *tables,
        Section("All stages", charts=[comparison_chart(reports)]),
        *(
            Section(f"Stage {name}", charts=[*dev_charts(report), *loss_charts(report), *space_charts(report)])
            for name, report in reports.items()
        ),
        Section("Repeat it", command=command),
        Section("Environment", rows=facts(environment())),
    ]
    finished = f"{sum(stage.is_finished() for stage in stages)} of {len(stages)}"
    tiles = [("stages finished", finished), ("wall time of all stages", duration(total))]
    versions = ", ".join(f"{name} {value}" for name, value in environment().items())
    lines = [f"# {title}", "", f"Wall time of all stages: {duration(total)}. Written {written}. {versions}.", ""]
    for section in tables:
        lines += [f"## {section.heading}", "", section.note, "", markdown_table(section.head, section.rows), ""]
    for stage in stages:
        picture = stage.folder / "training_curves.png"
        if picture.is_file():
            lines += [f"### {stage.name}", "", f"![loss and dev score]({stage.folder.name}/{picture.name})", ""]
    lines += ["## Repeat it", "", "```bash", command, "```", ""]
    paths = [root / MARKDOWN, root / HTML]
    write_text(paths[0], "\n".join(lines))
    write_text(paths[1], page(title, written, sections, tiles=tiles))
    return paths
