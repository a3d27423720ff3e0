"""What the demo shows: tables of scores and ranks, matrices of cosines, maps of embeddings; all in light and dark."""

import textwrap
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import escape

from cacse_trainer.encoding.vectors.index import Hits
from cacse_trainer.errors import extra_needed

SCORES = jinja2.Template(
    """<table class="scores">{% for sentence, score in hits %}<tr><td class="number">{{ "%.3f" % score }}</td>
<td class="bar"><div class="track"><div style="width:{{ 100 * [score, 0] | max }}%;background:{{ colour }}"></div></div>
</td><td>{{ sentence }}</td></tr>{% endfor %}</table>""",
    autoescape=True,
)
RANKS = jinja2.Template(
    """<div class="model-name">Ranks in both</div><table class="scores ranks"><tr><th class="number">A</th>
<th class="number">B</th><th class="number">change</th><th></th></tr>{% for sentence, first, second in rows %}
<tr><td class="number">{{ first }}</td><td class="number">{{ second }}</td>
<td class="number {{ "up" if second < first else "down" if second > first }}">{{
"↑ %d" % (first - second) if second < first else "↓ %d" % (second - first) if second > first else "=" }}</td>
<td>{{ sentence }}</td></tr>{% endfor %}</table><div class="nothing">A is {{ names[0] }}, B is {{ names[1] }}; 1 is the
nearest.</div>""",
    autoescape=True,
)
INK, RULE = "#7b8794", "rgba(128,128,128,0.22)"
"""Of axes and their names: readable on white and on black."""
PALETTE = (
    *("#3b82f6", "#ea580c", "#14b8a6", "#a855f7", "#eab308", "#ec4899"),
    *("#84cc16", "#06b6d4", "#b45309", "#8b5cf6", "#ef4444", "#94a3b8"),
)
LONGEST_LABEL = 34
LABELLED = 30
"""Points up to which each bears its sentence."""
LINE_OF_HOVER = 44
MOST_OF_HOVER = 300


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


def rank_table(sentences: Sequence[str], cosines: Sequence[np.ndarray], names: Sequence[str], top_k: int) -> str:
    """What two models find of one query: where each of their nearest sentences stands in either list.

    Args:
        sentences: of the corpus.
        cosines: (n,) of the query with each, a model each.
        names: of the models.
        top_k: nearest sentences of each.
    """
    ranks = [np.argsort(np.argsort(-values, kind="stable"), kind="stable") + 1 for values in cosines]
    rows = np.flatnonzero((ranks[0] <= top_k) | (ranks[1] <= top_k))
    rows = rows[np.argsort(ranks[1][rows])]
    shown = [(sentences[i], int(ranks[0][i]), int(ranks[1][i])) for i in rows.tolist()]
    return RANKS.render(rows=shown, names=names)


def matrix_figure(lines: Sequence[str], cosines: np.ndarray) -> Any:
    """A coloured table of cosines, its numbers in it where there is room; the sentences where one points."""
    numbers = [str(i + 1) for i in range(len(lines))]
    pairs = [[f"{_hover(a)}<br>—<br>{_hover(b)}" for b in lines] for a in lines]
    shown = {"texttemplate": "%{z:.2f}"} if len(lines) <= 15 else {}
    heat = load_plotly().Heatmap(
        z=np.round(cosines, 4).tolist(),
        x=numbers,
        y=[f"{escape(_label(line))}  {number}" for line, number in zip(lines, numbers, strict=True)],
        customdata=pairs,
        hovertemplate="%{customdata}<br><b>%{z:.3f}</b><extra></extra>",
        **{"zmin": -0.2, "zmax": 1, "colorscale": "Blues", "showscale": False, "xgap": 1, "ygap": 1, **shown},
    )
    layout = _layout(height=min(900, 170 + 34 * len(lines)))
    layout["yaxis"] |= {"autorange": "reversed", "automargin": True, "showgrid": False, "zeroline": False}
    layout["xaxis"] |= {"side": "top", "showgrid": False, "zeroline": False, "type": "category"}
    return load_plotly().Figure(heat, layout)


def map_figure(
    sentences: Sequence[str],
    rows: Sequence[int],
    points: np.ndarray,
    shares: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    colour: str,
) -> Any:
    """Points that tell their sentences, coloured by group.

    Args:
        sentences: of the points.
        rows: their numbers in the corpus, which a click tells.
        points, shares: see `principal_components`.
        groups: a name each, in the legend where there are several; or a number each, on a scale.
        colour: of a single group.
    """
    go = load_plotly()
    few = len(sentences) <= LABELLED
    middle = points[:, 0].mean()
    marker = {"size": 11 if few else 7, "opacity": 0.85}

    def dots(chosen: np.ndarray, name: str, colours: Any) -> Any:
        hovers = [_hover(sentences[i]) + (f"<br><i>{escape(groups[i])}</i>" if many else "") for i in chosen]
        more = (
            {"text": [str(escape(_label(sentences[i]))) for i in chosen], "mode": "markers+text"}
            if few
            else {"mode": "markers"}
        )
        return go.Scatter(
            x=points[chosen, 0].tolist(),
            y=points[chosen, 1].tolist(),
            name=name,
            customdata=[rows[i] for i in chosen],
            hovertext=hovers,
            hovertemplate="%{hovertext}<extra></extra>",
            textposition=["middle right" if points[i, 0] <= middle else "middle left" for i in chosen],
            marker={**marker, **colours},
            **more,
        )

    layout = _layout(height=520)
    if isinstance(groups, np.ndarray):
        many = True
        scale = {"color": groups.tolist(), "colorscale": "Viridis", "showscale": True, "colorbar": {"thickness": 12}}
        traces = [dots(np.arange(len(sentences)), "", scale)]
        layout["showlegend"] = False
    else:
        names = sorted(set(groups), key=lambda name: (-list(groups).count(name), name))
        many = len(names) > 1
        colours = PALETTE if many else (colour,)
        traces = [
            dots(
                np.flatnonzero([one == name for one in groups]),
                str(escape(_label(name))),
                {"color": colours[i % len(colours)]},
            )
            for i, name in enumerate(names)
        ]
        layout["showlegend"] = many
    layout["xaxis"]["title"] = {"text": f"1st component ({100 * shares[0]:.0f} % of the variance)"}
    layout["yaxis"]["title"] = {"text": f"2nd ({100 * shares[1]:.0f} %)"}
    if few:  # room for the sentences
        wide = float(np.ptp(points[:, 0])) or 1.0
        layout["xaxis"]["range"] = [points[:, 0].min() - 0.08 * wide, points[:, 0].max() + 0.08 * wide]
    return go.Figure(traces, layout)


def clusters(vectors: np.ndarray, sentences: Sequence[str], count: int) -> list[str]:
    """The cluster of each sentence, by k-means, named after the sentence nearest to its centre."""
    from sklearn.cluster import KMeans

    found = KMeans(min(count, len(sentences)), n_init=2, random_state=0).fit(vectors)
    nearest = [int(np.argmax(vectors @ centre)) for centre in found.cluster_centers_]
    return [f"{label + 1} {_label(sentences[nearest[label]])}" for label in found.labels_.tolist()]


def load_plotly() -> Any:
    """Plotly's figures.

    Raises:
        UserError: plotly is not installed.
    """
    with extra_needed("demo", "the demo's maps need plotly"):
        import plotly.graph_objects as figures
    return figures


def _layout(height: int) -> dict[str, Any]:
    """Of a figure on either ground, which keeps its zoom when it is drawn anew."""
    axis = {"gridcolor": RULE, "zerolinecolor": RULE, "color": INK, "ticks": ""}
    return {
        "template": "none",
        "height": height,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "family": "system-ui, sans-serif", "size": 12},
        "margin": {"l": 44, "r": 8, "t": 28, "b": 44},
        "hoverlabel": {"bgcolor": "#1f2933", "font": {"color": "#fff", "size": 13}, "align": "left"},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": PALETTE[0]},
        "legend": {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0, "font": {"size": 11}},
        "uirevision": "kept",
        "xaxis": dict(axis),
        "yaxis": dict(axis),
    }


def _hover(text: str) -> str:
    """A sentence in short lines, as plotly takes it: its own markup, and no tag of the text's."""
    shown = text if len(text) <= MOST_OF_HOVER else text[: MOST_OF_HOVER - 1] + "…"
    return "<br>".join(str(escape(line)) for line in textwrap.wrap(shown, LINE_OF_HOVER))


def _label(line: str) -> str:
    return line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 1].rstrip()}…"
