"""What the demo shows: tables of scores, matrices of cosines, maps of embeddings."""

from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np

from cacse_trainer.encoding.vectors.index import Hits

SCORES = jinja2.Template(
    """<table class="scores">{% for sentence, score in hits %}<tr><td class="number">{{ "%.3f" % score }}</td>
<td class="bar"><div class="track"><div style="width:{{ 100 * [score, 0] | max }}%;background:{{ colour }}"></div></div>
</td><td>{{ sentence }}</td></tr>{% endfor %}</table>""",
    autoescape=True,
)
LONGEST_LABEL = 34
CHARACTER_WIDTH, LINE_HEIGHT = 0.013, 0.042  # of a label, in parts of the map


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) coordinates on the first two principal components, and the shares of the variance that these explain."""
    left, sizes, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    missing = max(0, 2 - len(sizes))
    points = np.pad((left * sizes)[:, :2], ((0, 0), (0, missing)))
    shares = np.pad(sizes[:2] ** 2, (0, missing)) / (float((sizes**2).sum()) or 1.0)
    return points, shares


def score_table(hits: Hits, colour: str) -> str:
    """Rows of score, bar and sentence."""
    if not hits:
        return '<div class="nothing">Nothing above the threshold.</div>'
    return SCORES.render(hits=hits, colour=colour)


def matrix_figure(lines: Sequence[str], cosines: np.ndarray) -> Any:
    """A coloured table of cosines, its numbers in it where there is room."""
    from matplotlib.figure import Figure

    size = min(12.0, 4.0 + 0.45 * len(lines))
    figure = Figure(figsize=(size, size * 0.85), dpi=110, layout="constrained")
    axis = figure.subplots()
    axis.imshow(cosines, vmin=-0.2, vmax=1, cmap="Blues")
    labels = [_label(line) for line in lines]
    axis.set_xticks(range(len(lines)), [str(i + 1) for i in range(len(lines))])
    axis.set_yticks(range(len(lines)), [f"{label}  {i + 1}" for i, label in enumerate(labels)])
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    if len(lines) <= 15:
        for i, row in enumerate(cosines):
            for j, value in enumerate(row):
                ink, number = "white" if value > 0.6 else "black", f"{value:.2f}".replace("-0.00", "0.00")
                axis.text(j, i, number, ha="center", va="center", color=ink, fontsize=8)
    return figure


def label_places(lines: Sequence[str], points: np.ndarray) -> list[tuple[str, np.ndarray, tuple[float, float], str]]:
    """(line, point, place, ``left`` or ``right``) of each label: beside its point, moved up until none is covered."""
    (left, low), (right, high) = points.min(axis=0), points.max(axis=0)
    wide, tall = (right - left or 1.0), (high - low or 1.0)
    taken: list[tuple[float, float, float]] = []  # from, to, height
    found = []
    for i in np.argsort(points[:, 1], kind="stable"):
        x, y = (float(value) for value in points[i])
        length = CHARACTER_WIDTH * wide * len(_label(lines[i]))
        begins = x <= (left + right) / 2
        start = x + 0.02 * wide if begins else x - 0.02 * wide - length
        while any(
            start < to and begin < start + length and abs(y - at) < LINE_HEIGHT * tall for begin, to, at in taken
        ):
            y += 0.2 * LINE_HEIGHT * tall
        taken.append((start, start + length, y))
        found.append((lines[i], points[i], (start if begins else start + length, y), "left" if begins else "right"))
    return found


def map_figure(lines: Sequence[str], points: np.ndarray, shares: np.ndarray, colour: str) -> Any:
    """Points with their sentences beside them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 6), dpi=110, layout="constrained")
    axis = figure.subplots()
    axis.axhline(0, color="#ddd", linewidth=0.8, zorder=0)
    axis.axvline(0, color="#ddd", linewidth=0.8, zorder=0)
    axis.scatter(points[:, 0], points[:, 1], color=colour, s=40, zorder=2)
    arrow: dict[str, Any] = {"arrowstyle": "-", "color": "#999", "linewidth": 0.6, "shrinkB": 3}
    for line, (x, y), place, side in label_places(lines, points):
        arrow["relpos"] = (0 if side == "left" else 1, 0.5)
        axis.annotate(_label(line), (x, y), place, ha=side, va="center", fontsize=8.5, arrowprops=dict(arrow))
    axis.margins(0.12)
    axis.set_xlabel(f"1st principal component ({100 * shares[0]:.0f} % of the variance)")
    axis.set_ylabel(f"2nd principal component ({100 * shares[1]:.0f} %)")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _label(line: str) -> str:
    return line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 1].rstrip()}…"
