"""One HTML page of sections, self-contained: its style is in it (page.html), and it loads nothing."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

Rows = Sequence[Sequence[str]]


@dataclass
class Section:
    """A heading with what stands below it; one with nothing below is left out.

    Args:
        heading, note: plain text: the heading and one sentence under it.
        charts: see `line_chart`; empty ones are left out.
        rows: a table of plain texts.
        head: its column names; none: no head row.
        numeric: indices of its columns that are set flush right.
        command: a command line, shown with a flag a line where it is long.
        all_rows: a table that is folded away until it is asked for.
    """

    heading: str
    note: str = ""
    charts: Sequence[Markup] = ()
    rows: Rows = ()
    head: Sequence[str] = ()
    numeric: Sequence[int] = ()
    command: str | None = None
    all_rows: Rows = ()

    def __post_init__(self) -> None:
        self.charts = [chart for chart in self.charts if chart]
        self.command = folded(self.command or "")

    def has_body(self) -> bool:
        """Whether there is anything below the heading."""
        return any((self.charts, self.rows, self.command, self.all_rows))


def page(
    title: str,
    lead: str,
    sections: Sequence[Section],
    *,
    verdict: str = "",
    mood: str = "",
    tiles: Sequence[tuple[str, str]] = (),
) -> str:
    """The whole document.

    Args:
        title, lead: the heading and the line below it.
        sections: in order.
        verdict: one sentence on top.
        mood: its colour: ``good``, ``bad`` or none.
        tiles: a row of figures below it: (label, value) each.
    """
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html").render(
        title=title, lead=lead, sections=sections, verdict=verdict, mood=mood, tiles=tiles
    )


def folded(command: str) -> str:
    """A command as it is; a long one with a flag a line, as the shell takes it."""
    lines: list[list[str]] = [[]]
    for word in shlex.split(command):
        if word.startswith("--") and len(command) > 100:
            lines.append([])
        lines[-1].append(word)
    return " \\\n    ".join(map(shlex.join, lines))
