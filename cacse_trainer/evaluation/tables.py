"""Results as the papers print them: terminal, Markdown, CSV and LaTeX tables, and a bar chart."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cacse_trainer.evaluation.results import SUITES, score_of

SHORT = {"STSBenchmark": "STS-B", "SICKRelatedness": "SICK-R", "SST2": "SST"}
TITLES = {
    "sts": "semantic textual similarity, Spearman ×100",
    "transfer": "transfer, accuracy",
    "probing": "probing, accuracy",
    "more": "further tasks",
    "mteb": "MTEB, main score ×100",
}


@dataclass
class Table:
    """A table of one row of figures.

    Args:
        name: sts, transfer, probing, more or mteb.
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
    tasks = results["tasks"]
    how = next((entry["aggregation"] for name, entry in tasks.items() if name in SUITES["sts"][:5]), None)
    found = []
    for suite, names in SUITES.items():
        there = [name for name in names if name in tasks]
        if not there:
            continue
        title = TITLES[suite]
        if suite == "sts" and how:
            title += f" (aggregation: {how})"
        found.append(_table(suite, title, {SHORT.get(name, name): score_of(tasks[name]) for name in there}, len(names)))
    known = {name for names in SUITES.values() for name in names}
    more = {name: score_of(entry) for name, entry in tasks.items() if name not in known}
    if more:
        found.append(Table("more", TITLES["more"], list(more), list(more.values())))
    mteb = {name: _number(entry["main_score"]) for name, entry in results.get("mteb", {}).items()}
    if mteb:
        found.append(_table("mteb", TITLES["mteb"], mteb, len(mteb)))
    return found


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _table(name: str, title: str, scores: dict[str, float], whole: int) -> Table:
    values = list(scores.values())
    label = "Avg." if len(values) == whole else f"Avg. of {len(values)}"
    return Table(name, title, [*scores, label], [*values, sum(values) / len(values)])


def quick_mode(results: dict[str, Any]) -> str:
    """The mode, where it is not the papers' (``dev``: dev scores; ``fasttest``: quick classifiers); else nothing."""
    mode = results["settings"].get("mode", "test")
    return "" if mode == "test" else mode


def named_pooling(results: dict[str, Any]) -> str:
    """The pooling, and that it was guessed where it was."""
    return results["pooling"] + (" (guessed)" if results.get("pooling_guessed") else "")


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
        return "|" + "|".join(f" {_centre(cell, width)} " for cell, width in zip(cells, widths, strict=True)) + "|"

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


def _centre(cell: str, width: int) -> str:
    left = (width - len(cell)) // 2
    return " " * left + cell + " " * (width - len(cell) - left)


def terminal(results: dict[str, Any], most: int = 11) -> str:
    """All tables as text, named, with model and pooling on top; more than ``most`` columns go below each other."""
    lines = [f"model    {results['model']}", f"pooling  {named_pooling(results)}"]
    if mode := quick_mode(results):
        lines.append(f"mode     {mode}")
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
    mode = quick_mode(results)
    more = f", mode `{mode}`" if mode else ""
    lines = [f"Model `{results['model']}`, pooling `{named_pooling(results)}`{more}."]
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
    mode = quick_mode(results)
    more = f", mode {mode}" if mode else ""
    for table in tables_of(results):
        columns = "c" * len(table.header)
        lines += [
            f"% {table.title}; model {results['model']}, pooling {named_pooling(results)}{more}",
            f"\\begin{{tabular}}{{{columns}}}",
            "\\toprule",
            " & ".join(_escaped(name) for name in table.header) + r" \\",
            "\\midrule",
            " & ".join(table.cells) + r" \\",
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("_", r"\_").replace("&", r"\&").replace("%", r"\%")


def bar_chart(path: Path, results: dict[str, Any]) -> None:
    """One panel a table, one bar a task, the average in another colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tables = tables_of(results)
    if not tables:
        return
    figure, panels = pyplot.subplots(len(tables), 1, figsize=(9, 3 * len(tables)), squeeze=False, layout="tight")
    for axis, table in zip(panels[:, 0], tables, strict=True):
        heights = [0.0 if math.isnan(score) else score for score in table.scores]
        colours = ["tab:orange" if name.startswith("Avg.") else "tab:blue" for name in table.header]
        bars = axis.bar(range(len(heights)), heights, color=colours)
        axis.bar_label(bars, labels=table.cells, fontsize=8)
        axis.set_xticks(range(len(heights)), table.header, rotation=30, ha="right", fontsize=8)
        axis.set_title(table.title, fontsize=9)
        axis.set_ylim(min(0.0, *heights), max(100.0, *heights) * 1.08)
    named = ", ".join(filter(None, [named_pooling(results), quick_mode(results)]))
    figure.suptitle(f"{results['model']} ({named})", fontsize=10)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write_tables(folder: Path, results: dict[str, Any]) -> None:
    """``tables.md``, ``tables.csv``, ``tables.tex`` and ``scores.png``."""
    for name, text in (("md", markdown(results)), ("csv", comma_separated(results)), ("tex", latex(results))):
        (folder / f"tables.{name}").write_text(text, encoding="utf-8")
    bar_chart(folder / "scores.png", results)
