"""Results as the papers print them: terminal, Markdown, CSV and LaTeX tables, and a bar chart."""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cacse_trainer.evaluation.results import NDCG, WITHOUT_DEV, score_of, suites_of
from cacse_trainer.evaluation.retrieval import METRICS
from cacse_trainer.files import write_text

SHORT = {"STSBenchmark": "STS-B", "SICKRelatedness": "SICK-R", "SST2": "SST"}
TITLES = {
    "sts": "semantic textual similarity, Spearman ×100",
    "transfer": "transfer, accuracy",
    "probing": "probing, accuracy",
    "more": "further tasks",
    "test": "test sets, which have no dev part: nothing is to be chosen by them",
    "mteb": "MTEB, main score ×100",
}


@dataclass
class Table:
    """A table of one row of figures.

    Args:
        name: sts, transfer, probing, test, more, mteb or retrieval_NAME.
        title: what the figures are.
        header: task names, the last one the average.
        scores: NaN where a score is undefined.
    """

    name: str
    title: str
    header: list[str]
    scores: list[float]

    @property
    def cells(self) -> list[str]:
        """The scores with two decimals."""
        return ["-" if math.isnan(score) else f"{score:.2f}" for score in self.scores]


def tables_of(results: dict[str, Any]) -> list[Table]:
    """One table a suite of which there are results, in the order of the papers' columns.

    A suite that is not whole has no ``Avg.`` but ``Avg. of k``: it is no figure to compare with a paper's.
    """
    tasks, mteb = results["tasks"], results.get("mteb", {})
    suites = suites_of(results["settings"].get("mode", "test"))
    groups = {
        suite: {SHORT.get(name, name): tasks[name] for name in names if name in tasks}
        for suite, names in suites.items()
    }
    known = {name for names in suites.values() for name in names}
    own = {name: entry for name, entry in tasks.items() if name not in known}
    searched = {name: entry for name, entry in own.items() if NDCG in entry}
    groups["test"] = {name: own[name] for name in WITHOUT_DEV if name in own}
    groups["more"] = {name: entry for name, entry in own.items() if name not in searched and name not in WITHOUT_DEV}
    found = []
    for name, entries in {**groups, "mteb": mteb}.items():
        table = Table(name, TITLES[name], list(entries), [score_of(entry) for entry in entries.values()])
        if name == "sts":
            ways = [entry["aggregation"] for task, entry in entries.items() if task in WITHOUT_DEV]
            table.title += f" (aggregation: {ways[0]})" if ways else ""
        if entries and name not in ("more", "test"):
            table.header.append("Avg." if len(entries) == len(suites.get(name, mteb)) else f"Avg. of {len(entries)}")
            table.scores.append(sum(table.scores) / len(entries))
        found.append(table)
    for name, entry in searched.items():  # one a set, as each has several figures
        values = [math.nan if entry[metric] is None else entry[metric] for metric in METRICS]
        found.append(Table(f"retrieval_{name}", f"{name}: retrieval ×100", list(METRICS), values))
    return [table for table in found if table.header]


def head(results: dict[str, Any]) -> dict[str, str]:
    """Model, pooling (and that it was guessed where it was), and the mode where it is not the papers'.

    ``dev`` reports dev scores, ``fasttest`` those of quick classifiers.
    """
    found = {"model": results["model"], "pooling": results["pooling"], "mode": results["settings"].get("mode", "test")}
    if results.get("pooling_guessed"):
        found["pooling"] += " (guessed)"
    if found["mode"] == "test":
        del found["mode"]
    return found


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A boxed table for the terminal, first column and all others centred.

    >>> print(text_table(["a", "bc"], [["1.00", "2"]]))
    +------+----+
    |  a   | bc |
    +------+----+
    | 1.00 | 2  |
    +------+----+
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    line = "+" + "+".join("-" * (width + 2) for width in widths) + "+"

    def row_text(cells: Sequence[str]) -> str:
        return "|" + "|".join(f" {cell:^{width}} " for cell, width in zip(cells, widths, strict=True)) + "|"

    return "\n".join([line, row_text(header), line, *(row_text(row) for row in rows), line])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int | None = None) -> str:
    """A table in Markdown; the columns after the first ``texts`` are flush right.

    >>> print(markdown_table(["a", "b"], [["1|2", "3"]], texts=1))
    | a | b |
    |---|---:|
    | 1/2 | 3 |
    """
    rules = ["---:" if texts is not None and i >= texts else "---" for i in range(len(header))]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in [header, *rows]]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])


def terminal(results: dict[str, Any], most: int = 11) -> str:
    """All tables as text, named, with model and pooling on top; more than ``most`` columns go below each other."""
    lines = [f"{name:9}{value}" for name, value in head(results).items()]
    for table in tables_of(results):
        lines.append(f"\n{table.title}")
        if table.name == "mteb":  # long names: one a line
            lines.append(text_table(["task", "score"], list(zip(table.header, table.cells, strict=True))))
            continue
        for start in range(0, len(table.header), most):
            lines.append(text_table(table.header[start : start + most], [table.cells[start : start + most]]))
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    """All tables in Markdown."""
    lines = ["M" + ", ".join(f"{name} `{value}`" for name, value in head(results).items())[1:] + "."]
    for table in tables_of(results):
        lines += ["", f"**{table.title}**", "", markdown_table(table.header, [table.cells], texts=0)]
    return "\n".join(lines) + "\n"


def comma_separated(results: dict[str, Any]) -> str:
    """``table,task,score`` a line, averages included."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["table", "task", "score"])
    for table in tables_of(results):
        for name, cell in zip(table.header, table.cells, strict=True):
            writer.writerow([table.name, name, "" if cell == "-" else cell])
    return stream.getvalue()


def latex(results: dict[str, Any]) -> str:
    """All tables as ``tabular`` (needs booktabs)."""
    lines = []
    measured = ", ".join(f"{name} {value}" for name, value in head(results).items())
    for table in tables_of(results):
        lines += [
            f"% {table.title}; {measured}",
            f"\\begin{{tabular}}{{{'c' * len(table.header)}}}",
            "\\toprule",
            " & ".join(re.sub("([_&%])", r"\\\1", name) for name in table.header) + r" \\",
            "\\midrule",
            " & ".join(table.cells) + r" \\",
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    return "\n".join(lines)


def bar_chart(path: Path, results: dict[str, Any]) -> None:
    """One panel a table, one bar a task, the average in another colour."""
    from matplotlib.figure import Figure

    tables = tables_of(results)
    if not tables:
        return
    figure = Figure(figsize=(9, 3 * len(tables)), layout="tight")
    panels = figure.subplots(len(tables), 1, squeeze=False)
    for axis, table in zip(panels[:, 0], tables, strict=True):
        heights = [0.0 if math.isnan(score) else score for score in table.scores]
        colours = ["tab:orange" if name.startswith("Avg.") else "tab:blue" for name in table.header]
        bars = axis.bar(range(len(heights)), heights, color=colours)
        axis.bar_label(bars, labels=table.cells, fontsize=8)
        axis.set_xticks(range(len(heights)), table.header, rotation=30, ha="right", fontsize=8)
        axis.set_title(table.title, fontsize=9)
        axis.set_ylim(min(0.0, *heights), max(100.0, *heights) * 1.08)
    model, *more = head(results).values()
    figure.suptitle(f"{model} ({', '.join(more)})", fontsize=10)
    figure.savefig(path, dpi=120)


def write_tables(folder: Path, results: dict[str, Any]) -> None:
    """``tables.md``, ``tables.csv``, ``tables.tex`` and ``scores.png``."""
    for name, text in (("md", markdown(results)), ("csv", comma_separated(results)), ("tex", latex(results))):
        write_text(folder / f"tables.{name}", text)
    bar_chart(folder / "scores.png", results)
