"""Line charts as SVG text: no plotting library, no script, readable on light and dark pages.

Colours are the page's CSS variables (see page.py), so that one drawing serves both. A point shows its value when the
pointer rests on it (``<title>``).
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 300, 180
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 32
DOTS = 40  # points up to which each is drawn, too
COLOURS = 4  # CSS variables --line-1 … --line-4


@dataclass
class Series:
    """One line.

    Args:
        name: for the legend.
        points: (x, y) in order of x; a y of None or NaN is a gap.
    """

    name: str
    points: Sequence[tuple[float, float | None]]

    def finite(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, 1, 2 or 5 times a power of ten apart.

    >>> nice_ticks(70.8, 72.3)
    [70.5, 71.0, 71.5, 72.0, 72.5]
    """
    if not high > low:
        pad = 1.0 if low == round(low) else abs(low) * 0.1  # a constant count keeps whole numbers around it
        low, high = low - pad, high + pad
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]


def number(value: float) -> str:
    """Four significant digits, without an exponent where that is readable.

    >>> number(72.28077), number(4075.0), number(3e-05)
    ('72.28', '4075', '3e-5')
    """
    if 0 < abs(value) < 1e-3:
        digits, _, exponent = f"{value:.2e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.0f}" if abs(value) >= 1000 and value == round(value) else f"{value:.4g}"


def line_chart(
    series: Sequence[Series],
    title: str,
    *,
    note: str = "",
    x_label: str = "step",
    x_end: float | None = None,
    reference: tuple[str, float] | None = None,
    mark: tuple[float, float] | None = None,
) -> str:
    """A figure with its title, a legend where there are several lines, and the drawing.

    Args:
        series: the lines; those without a finite point are left out.
        title: what the y axis shows.
        note: one sentence below the title on how to read it.
        x_label: of the x axis.
        x_end: right end of the x axis, so that charts of one run line up; default: the last x.
        reference: label and height of a dashed line.
        mark: a point to ring, such as the best one.

    Returns:
        HTML; empty where there is nothing to draw.
    """
    lines = [line for line in series if line.finite()]
    if not lines:
        return ""
    drawn = [point for line in lines for point in line.finite()]
    heights = [y for _, y in drawn] + ([reference[1]] if reference else [])
    ticks = nice_ticks(min(heights), max(heights))
    low, high = ticks[0], ticks[-1]
    start = min(0.0, *(x for x, _ in drawn)) if x_label == "step" else min(x for x, _ in drawn)
    end = max([x for x, _ in drawn] + ([x_end] if x_end is not None else []))
    span = end - start or 1.0

    def across(x: float) -> float:
        return round(LEFT + (x - start) / span * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(tick)}" y2="{down(tick)}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down(tick) + 3.5}" text-anchor="end">{number(tick)}</text>')
    for tick in nice_ticks(start, end, about=5):
        if start <= tick <= end:
            parts.append(f'<text x="{across(tick)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    if reference is not None:
        label, height = reference
        y = down(height)
        parts.append(f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        above = y - 5 if y > TOP + 14 else y + 13
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{above}" text-anchor="end">{html.escape(label)}</text>')
    for i, line in enumerate(lines):
        colour = f"var(--line-{i % COLOURS + 1})"
        points = line.finite()
        path = " ".join(f"{across(x)},{down(y)}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(points) <= DOTS:
            parts += [
                f'<circle cx="{across(x)}" cy="{down(y)}" r="3" fill="{colour}">'
                f"<title>{html.escape(line.name)}: {number(y)} at {x_label} {x:g}</title></circle>"
                for x, y in points
            ]
    if mark is not None:
        parts.append(f'<circle class="mark" cx="{across(mark[0])}" cy="{down(mark[1])}" r="6"/>')
    keys = "".join(
        f'<span><i style="background:var(--line-{i % COLOURS + 1})"></i>{html.escape(line.name)}</span>'
        for i, line in enumerate(lines)
    )
    legend = f'<div class="legend">{keys}</div>' if len(lines) > 1 else ""
    said = f'<div class="note">{html.escape(note)}</div>' if note else ""
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>{said}{legend}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
        "</figure>"
    )
