"""The curves of a run: one metric over the steps, drawn as SVG into a page and as a picture of loss and dev scores.

A page's drawing takes its colours from the page (see page.html), so that one serves light and dark ones.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

INK, RULE, GOOD = "#5b6875", "#d9dee4", "#15803d"
LINES = ("#2563eb", "#d97706", "#0d9488", "#9333ea")
VARIABLES = {INK: "--soft", RULE: "--rule", GOOD: "--good"} | {line: f"--line-{i + 1}" for i, line in enumerate(LINES)}
"""The page's variables by the colours of a picture."""
DASHES = ("-", "--", ":")
BORDERS = {"-": "solid", "--": "dashed", ":": "dotted"}
"""The dashes of a picture as a page's style names them."""
DOTS = 40  # points up to which each is drawn, too
PLAIN: dict[Any, Any] = {"text.parse_math": False}  # a dollar in a dev set's name is a dollar
METADATA = ("Creator", "Date", "Format", "Type")  # what matplotlib would write of itself
FIGURE = jinja2.Template(
    """<figure{% if keys %} class="wide"{% endif %}><figcaption>{{ title }}</figcaption>
{% if note %}<div class="note">{{ note }}</div>{% endif %}
{% if keys %}<div class="keys">{% for name, colour, border in keys %}
<span><i style="border-top:3px {{ border }} var({{ colour }})"></i>{{ name }}</span>{% endfor %}</div>{% endif %}
<svg viewBox="0 0 {{ box }}" role="img" aria-label="{{ title }}">{{ drawing }}</figure>""",
    autoescape=True,
)


def curve(log_history: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """``[{step, value}, …]`` of one logged metric, one entry a step."""
    points = {entry["step"]: entry[metric] for entry in log_history if metric in entry}
    return [{"step": step, "value": value} for step, value in sorted(points.items())]


def points_of(log_history: list[dict[str, Any]], metric: str) -> list[tuple[float, float | None]]:
    """(step, value) of one logged metric, one entry a step."""
    return [(point["step"], point["value"]) for point in curve(log_history, metric)]


@dataclass
class Series:
    """One line.

    Args:
        name: for the legend.
        points: (x, y) in order of x; a y of None or NaN is a gap.
        band: (x, low, high) in order of x: what is shaded around the line.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    band: Sequence[tuple[float, float, float]] = ()

    def finite(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


def draw(
    axis: Any,
    lines: Sequence[Series],
    *,
    legend: bool,
    x_label: str = "step",
    x_end: float | None = None,
    reference: tuple[str, float] | None = None,
    mark: tuple[float, float] | None = None,
) -> None:
    """Draw lines on an axis of matplotlib; see `line_chart`."""
    for i, line in enumerate(lines):
        points = line.finite()
        style = {"color": LINES[i % 4], "linestyle": DASHES[i // 4 % 3], "label": line.name}
        if line.band:
            axis.fill_between(*zip(*line.band, strict=True), color=LINES[i % 4], alpha=0.18, linewidth=0, clip_on=False)
        # not clipped: that takes a mask by url(), and a ring at the edge would be cut
        axis.plot(*zip(*points, strict=True), marker="." if len(points) <= DOTS else "", clip_on=False, **style)
    if reference is not None:
        label, height = reference
        axis.axhline(height, color=INK, linewidth=1, linestyle=(0, (4, 3)), clip_on=False)
        where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "ha": "right"}
        axis.annotate(label, (1, height), textcoords="offset points", color=INK, **where)
    if mark is not None:
        axis.plot(*mark, "o", markersize=9, fillstyle="none", color=GOOD, clip_on=False)
    axis.margins(y=0.12)
    if x_end:
        axis.set_xlim(-0.02 * x_end, 1.02 * x_end)
    axis.set_xlabel(x_label, color=INK)
    if x_label == "step":
        axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(axis="y", color=RULE, clip_on=False)
    axis.tick_params(colors=INK, length=0)
    axis.spines[:].set_visible(False)
    axis.ticklabel_format(useOffset=False)
    if legend:
        axis.legend(labelcolor=INK, frameon=False)


def line_chart(series: Sequence[Series], title: str, *, note: str = "", wide: bool = False, **more: Any) -> Markup:
    """A figure for a page: the title, how to read it, and the drawing.

    Args:
        series: the lines; those without a finite point are left out.
        title: what the y axis shows.
        note: one sentence below the title on how to read it.
        wide: a larger drawing with the names of many lines above it, not in it.
        more: ``x_label``; ``x_end``, the right end of the x axis, so that charts of one run line up (default: the last
            x); ``reference``, label and height of a dashed line; ``mark``, a point to ring, such as the best one.

    Returns:
        HTML; empty where there is nothing to draw.
    """
    import matplotlib
    from matplotlib.figure import Figure

    lines = [line for line in series if line.finite()]
    if not lines:
        return Markup()
    stream = io.StringIO()
    with matplotlib.rc_context({**PLAIN, "svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}):
        figure = Figure(figsize=(4.2, 2.5) if wide else (3, 1.9), layout="constrained")
        draw(figure.subplots(), lines, legend=len(lines) > 1 and not wide, **more)
        figure.savefig(stream, format="svg", transparent=True, metadata=dict.fromkeys(METADATA))
    # the page's own font and colours; names of groups, which are equal in all drawings, go
    svg = re.sub(r' id="[a-z.]*[a-z0-9]+_\d+"| font-family: [^;"]+;?', "", stream.getvalue())
    svg = svg[svg.index("</defs>") + len("</defs>") :]
    svg = re.sub("|".join(VARIABLES), lambda found: f"var({VARIABLES[found.group()]})", svg)
    box = " ".join(f"{72 * inches:g}" for inches in figure.get_size_inches())
    styles = [(f"--line-{i % 4 + 1}", BORDERS[DASHES[i // 4 % 3]]) for i in range(len(lines))]
    keys = [(line.name, *style) for line, style in zip(lines, styles, strict=True)] if wide else []
    return Markup(FIGURE.render(title=title, note=note, keys=keys, box=box, drawing=Markup(svg)))


def plot_run(
    path: Path, log_history: list[dict[str, Any]], dev_metrics: list[str], dev_label: str = "Spearman ×100"
) -> None:
    """A picture of the loss and its parts (left) and the dev scores (right) over the steps."""
    import matplotlib
    from matplotlib.figure import Figure

    losses = sorted({key for entry in log_history for key in entry if key == "loss" or key.startswith("loss_")})
    with matplotlib.rc_context(PLAIN):
        figure = Figure(figsize=(11, 4), layout="constrained")
        for axis, names, label in zip(figure.subplots(1, 2), (losses, dev_metrics), ("loss", dev_label), strict=True):
            lines = [Series(name.removeprefix("eval_"), points_of(log_history, name)) for name in names]
            drawn = [line for line in lines if line.finite()]
            draw(axis, drawn, legend=bool(drawn))
            axis.set_ylabel(label, color=INK)
        figure.savefig(path, dpi=120)
