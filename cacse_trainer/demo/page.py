"""A page in the browser around one encoder or two: similarity, search, two models side by side, an interactive map.

Everything stays on the machine: no share link, no telemetry, and all that the page loads comes from the server itself.
"""

import html
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from cacse_trainer.demo.corpus import Loaded, read_corpus
from cacse_trainer.demo.serving import load_gradio, serve_page
from cacse_trainer.demo.views import (
    LABELLED,
    clusters,
    map_figure,
    matrix_figure,
    principal_components,
    rank_table,
    score_table,
)
from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.errors import UserError

EXAMPLES = [
    "A man is playing a guitar.",
    "Someone plays an instrument.",
    "A musician tunes his violin.",
    "The weather will be cold tomorrow.",
    "It is going to snow this week.",
    "Bring an umbrella, it may rain.",
    "The company raised its prices.",
    "Shares fell after the announcement.",
    "The bank lowered interest rates.",
]
MOST_SENTENCES = 100
COLOURS = ("#3b82f6", "#ea580c")
MOST_POINTS = 1_500
"""Of a map: more would be slow to point at."""
CLUSTERS, CLUSTER_COUNT = "clusters", 8
NEIGHBOURS = 10
CSS = """
.scores { width: 100%; border-collapse: collapse; font-size: 0.95rem; border: 0 !important; }
.scores td { padding: 0.35rem 0.6rem !important; border: 0 !important; vertical-align: middle; }
.scores tr { border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.scores td.number { width: 4.5rem; text-align: right; font-variant-numeric: tabular-nums; }
.scores td.bar { width: 30%; min-width: 5rem; }
.scores .track { background: var(--border-color-primary); border-radius: 3px; height: 0.6rem; overflow: hidden; }
.scores .track div { height: 100%; border-radius: 3px; }
.model-name { font-weight: 600; margin: 0.4rem 0; overflow-wrap: anywhere; }
.scores th { text-align: left; font-weight: 500; opacity: 0.7; border: 0 !important; }
.scores th { padding: 0.2rem 0.6rem !important; }
.scores th.number { text-align: right; }
.scores td:last-child { overflow-wrap: anywhere; }
.ranks .up { color: #16a34a; }
.ranks .down { color: #dc2626; }
.dark .ranks .up { color: #4ade80; }
.dark .ranks .down { color: #f87171; }
#clicked { display: none; }
.chosen { font-size: 1.1rem; font-weight: 600; margin-top: 0.6rem; overflow-wrap: anywhere; }
@media (max-width: 640px) { .scores td.bar { width: 3.5rem; min-width: 3.5rem; } .scores td.number { width: 3.2rem; } }
@media (max-width: 640px) { .gradio-container button[role="tab"] { padding: 0 0.5rem !important; } }
.nothing { opacity: 0.7; padding: 0.5rem 0; }
"""
CLICKS = """<script>
function tellPoint(event) {
  const field = document.querySelector("#clicked textarea, #clicked input");
  field.value = String(event.points[0].customdata);
  field.dispatchEvent(new Event("input", {bubbles: true}));
}
document.addEventListener("pointerdown", event => {  // a map that is drawn anew has forgotten its listeners
  const plot = event.target.closest && event.target.closest(".map .js-plotly-plot");
  if (plot && plot.on) { plot.removeListener("plotly_click", tellPoint); plot.on("plotly_click", tellPoint); }
}, true);
</script>"""
"""Tells the page which point of a map was clicked."""


class Demo:
    """What the page's buttons do; nothing here knows of Gradio.

    Args:
        encoders: one or two, by the names that are shown.
        corpus: the file that is searched and mapped from the start; None: the page asks for one.
        text_column: of a corpus with several.
        show_progress_bar: while it is encoded.

    Raises:
        UserError: more encoders than two, or a corpus that cannot be read.
    """

    def __init__(
        self,
        encoders: dict[str, BaseEncoder],
        corpus: str | None = None,
        text_column: str | None = None,
        show_progress_bar: bool = False,
    ):
        if not 1 <= len(encoders) <= len(COLOURS):
            raise UserError(f"demo: shows one model or two side by side, not {len(encoders)}")
        self.encoders = encoders
        self._working = threading.Lock()  # tokenizers are not made for several threads at once
        self.corpus = self.load(corpus, text_column, show_progress_bar) if corpus is not None else None

    def load(self, path: str, text_column: str | None = None, show_progress_bar: bool = False) -> Loaded:
        """A file's sentences, their vectors by each model, and the columns that they may be coloured by."""
        sentences, columns = read_corpus(path, text_column or None)
        return Loaded(sentences, self._encoded(sentences, show_progress_bar), columns)

    def similarity(self, sentence: str, others: str) -> list[str]:
        """HTML, a table a model: the other sentences by their cosine with the first; of two models the ranks, too."""
        lines = _lines(others, 1)
        if not sentence.strip():
            raise UserError("write a sentence to compare with the others")
        tables = self._encoded([sentence.strip(), *lines])
        cosines = [table[1:] @ table[0] for table in tables]
        return self._told(Loaded(lines, [table[1:] for table in tables]), cosines, len(lines))

    def search(self, query: str, top_k: int, threshold: float, session: Loaded | None) -> list[str]:
        """HTML, a table a model: the nearest sentences of the corpus; of two models their ranks, too."""
        searched = session or self.corpus
        if searched is None:
            raise UserError("there is nothing to search yet: upload a corpus, or start with --corpus FILE")
        if not query.strip():
            raise UserError("write what to search for")
        wanted = self._encoded([query.strip()])
        cosines = [table @ one[0] for table, one in zip(searched.tables, wanted, strict=True)]
        return self._told(searched, cosines, int(top_k), threshold)

    def neighbours(self, row: int, mapped: Loaded) -> list[str]:
        """HTML: a sentence of a map, and a table a model of those nearest to it; of two models their ranks, too."""
        cosines = [table @ table[row] for table in mapped.tables]
        chosen = f'<div class="chosen">{html.escape(mapped.sentences[row])}</div>'
        return [chosen, *self._told(mapped, cosines, NEIGHBOURS, leave=row)]

    def matrices(self, text: str) -> list[Any]:
        """A figure a model: the cosines of all pairs of sentences."""
        lines = _lines(text, 2)
        return [matrix_figure(lines, vectors @ vectors.T) for vectors in self._encoded(lines)]

    def maps(self, text: str, colour_by: str | None, session: Loaded | None) -> tuple[Loaded, list[Any]]:
        """What is mapped, and a figure a model: its sentences on their first two principal components.

        Args:
            text: sentences, one a line; none: those of the corpus, of a long one a part that is drawn at random.
            colour_by: a column of the corpus; `CLUSTERS`, or none.
            session: the corpus that the page was given.
        """
        corpus = session or self.corpus
        mapped = corpus if corpus is not None and not text.strip() else None
        if mapped is None:
            lines = _lines(text, 3)
            mapped = Loaded(lines, self._encoded(lines))
        count = len(mapped.sentences)
        rows = np.sort(np.random.default_rng(0).permutation(count)[:MOST_POINTS])
        sentences = [mapped.sentences[i] for i in rows]
        groups: Any = [""] * len(rows)
        if colour_by in mapped.columns:
            column = mapped.columns[str(colour_by)]
            groups = column[rows] if isinstance(column, np.ndarray) else [column[i] for i in rows]
        elif colour_by == CLUSTERS and len(rows) > LABELLED:
            groups = clusters(mapped.tables[0][rows], sentences, CLUSTER_COUNT)
        return mapped, [
            map_figure(sentences, rows.tolist(), *principal_components(table[rows]), groups, colour)
            for table, colour in zip(mapped.tables, COLOURS, strict=False)
        ]

    def _told(
        self,
        searched: Loaded,
        cosines: Sequence[np.ndarray],
        top_k: int,
        threshold: float = -1.0,
        leave: int | None = None,
    ) -> list[str]:
        found = [
            score_table(searched.nearest(values, top_k, threshold, leave), colour)
            for values, colour in zip(cosines, COLOURS, strict=False)
        ]
        if len(found) > 1:
            others = [i for i in range(len(searched.sentences)) if i != leave]
            values = [one[others] for one in cosines]
            found.append(rank_table([searched.sentences[i] for i in others], values, list(self.encoders), top_k))
        return found

    def _encoded(self, lines: list[str], show_progress_bar: bool = False) -> list[np.ndarray]:
        with self._working:
            return [encoder.encode(lines, show_progress_bar=show_progress_bar) for encoder in self.encoders.values()]


def build_page(demo: Demo) -> Any:
    """The page as Gradio blocks.

    Raises:
        UserError: gradio is not installed.
    """
    gr = load_gradio()
    names = list(demo.encoders)

    def told(work: Any, places: int) -> Any:
        """The function, with wrong input said in the page, where nothing else changes then."""

        def run(*inputs: Any) -> Any:
            try:
                found = work(*inputs)
            except UserError as error:
                gr.Warning(str(error), title="Not yet")
                found = [gr.skip()] * places
            return found if places > 1 else found[0]

        return run

    def outputs(kind: Any, tab: str, **settings: Any) -> list[Any]:
        """A place a model, side by side, under the models' names."""
        made = []
        with gr.Row():
            for i, name in enumerate(names):
                with gr.Column(min_width=280):
                    gr.HTML(f'<div class="model-name">{html.escape(name)}</div>')
                    made.append(kind(elem_id=f"{tab}-{i}", **settings))
        return made

    def tables(tab: str) -> list[Any]:
        """Places for a table a model, and below them one for the ranks of two."""
        return outputs(gr.HTML, tab) + ([gr.HTML(elem_id=f"{tab}-ranks")] if len(names) > 1 else [])

    def loaded(path: str | None, column: str) -> list[Any]:
        session = demo.load(path, column.strip()) if path is not None else None
        return [session, _corpus_text(session or demo.corpus), "", gr.Dropdown(_colours(session or demo.corpus))]

    def mapped(text: str, colour_by: str, session: Loaded | None) -> list[Any]:
        shown, figures = demo.maps(text, colour_by, session)
        return [shown, _map_text(shown), *figures]

    def neighbours(clicked: str, shown: Loaded | None) -> list[Any]:
        if shown is None or not clicked:
            raise UserError("draw the map, then click a point")
        return demo.neighbours(int(clicked), shown)

    places_of_tables = len(names) + (len(names) > 1)
    with gr.Blocks(analytics_enabled=False, title="Sentence encoder") as page:
        gr.Markdown("# " + ("Two sentence encoders" if len(names) > 1 else "Sentence encoder"))
        session = gr.State(None)
        with gr.Tab("Similarity"):
            sentence = gr.Textbox(EXAMPLES[0], label="Sentence", elem_id="sentence")
            others = gr.Textbox("\n".join(EXAMPLES[1:5]), label="Compare with (one a line)", lines=4, elem_id="others")
            button = gr.Button("Compare", variant="primary", elem_id="compare")
            places = tables("similarity")
            gr.on([button.click, sentence.submit], told(demo.similarity, len(places)), [sentence, others], places)
        with gr.Tab("Search"):
            status = gr.Markdown(_corpus_text(demo.corpus), elem_id="status")
            query = gr.Textbox(label="Search for", elem_id="query", placeholder="a question, a topic, a sentence")
            with gr.Row():
                top_k = gr.Slider(1, 50, 10, step=1, label="At most")
                threshold = gr.Slider(-1, 1, 0.3, step=0.05, label="Cosine from")
            button = gr.Button("Search", variant="primary", elem_id="search")
            places = tables("hits")
            with gr.Accordion("A corpus of your own", open=demo.corpus is None, elem_id="own-corpus"):
                column = gr.Textbox(label="Text column (of csv, tsv, jsonl, parquet with several)", elem_id="column")
                upload = gr.File(
                    label="One sentence a line, or a table",
                    file_types=[".txt", ".csv", ".tsv", ".jsonl", ".parquet"],
                    type="filepath",
                    elem_id="corpus",
                )
            asked = [query, top_k, threshold, session]
            gr.on([button.click, query.submit], told(demo.search, len(places)), asked, places)
        with gr.Tab("Pairs"):
            text = gr.Textbox("\n".join(EXAMPLES), label="Sentences, one a line", lines=6, elem_id="pairs-text")
            button = gr.Button("Show all pairs", variant="primary", elem_id="pairs")
            button.click(told(demo.matrices, len(names)), text, outputs(gr.Plot, "matrix", show_label=False))
        with gr.Tab("Map"):
            text = gr.Textbox(
                "\n".join(EXAMPLES) if demo.corpus is None else "",
                label="Sentences, one a line; none: the corpus",
                lines=3,
                elem_id="map-text",
            )
            colour_by = gr.Dropdown(_colours(demo.corpus), value=CLUSTERS, label="Colour by", elem_id="colour")
            button = gr.Button("Draw the map", variant="primary", elem_id="map")
            note = gr.Markdown(elem_id="map-note")
            shown, clicked = gr.State(None), gr.Textbox(elem_id="clicked")
            figures = outputs(gr.Plot, "points", show_label=False, elem_classes="map")
            chosen = gr.HTML(elem_id="chosen")
            found = [chosen, *tables("near")]
            button.click(told(mapped, 2 + len(names)), [text, colour_by, session], [shown, note, *figures])
            gr.on([clicked.input, clicked.change], told(neighbours, 1 + places_of_tables), [clicked, shown], found)
        upload.change(told(loaded, 4), [upload, column], [session, status, text, colour_by])
    return page


def serve(demo: Demo, host: str, port: int) -> tuple[Any, str]:
    """Show the page at ``http://host:port``.

    Args:
        demo: what it shows.
        host: 127.0.0.1 is seen from this machine only, 0.0.0.0 from others too.
        port: 0 takes a free one from 7860 on.

    Returns:
        The page, with ``block_thread()`` and ``close()``, and its address.

    Raises:
        UserError: gradio is not installed, or the port is taken.
    """
    return serve_page(build_page(demo), "demo", host, port, CSS, CLICKS)


def _lines(text: str, least: int) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < least:
        raise UserError(f"write at least {least} sentence{'s' if least > 1 else ''}, one a line")
    if len(lines) > MOST_SENTENCES:
        raise UserError(f"{len(lines)} sentences: at most {MOST_SENTENCES} here; for more use cacse-trainer encode")
    return lines


def _corpus_text(corpus: Loaded | None) -> str:
    if corpus is None:
        return "No corpus yet: upload one below."
    return f"Searching **{len(corpus.sentences):,}** sentences."


def _map_text(shown: Loaded) -> str:
    count = len(shown.sentences)
    part = f"{MOST_POINTS:,} of {count:,} sentences, drawn at random" if count > MOST_POINTS else f"{count:,} sentences"
    return f"{part}. Point to read one, drag to zoom in, double-click to zoom out, click for its neighbours."


def _colours(corpus: Loaded | None) -> list[str]:
    return [CLUSTERS, *(corpus.columns if corpus is not None else ()), "nothing"]
