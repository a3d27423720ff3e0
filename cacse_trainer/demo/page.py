"""A page in the browser around one encoder or two: similarity, search, two models side by side, a map of embeddings.

Everything stays on the machine: no share link, no telemetry, and all that the page loads comes from the server itself.
"""

import html
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cacse_trainer.data.corpus import Corpus
from cacse_trainer.demo.serving import load_gradio, serve_page
from cacse_trainer.demo.views import map_figure, matrix_figure, principal_components, score_table
from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.vectors.index import SearchIndex
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
COLOURS = ("#2563eb", "#c2410c")
CSS = """
.scores { width: 100%; border-collapse: collapse; font-size: 0.95rem; border: 0 !important; }
.scores td { padding: 0.35rem 0.6rem !important; border: 0 !important; vertical-align: middle; }
.scores tr { border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.scores td.number { width: 4.5rem; text-align: right; font-variant-numeric: tabular-nums; }
.scores td.bar { width: 30%; min-width: 5rem; }
.scores .track { background: var(--border-color-primary); border-radius: 3px; height: 0.6rem; overflow: hidden; }
.scores .track div { height: 100%; border-radius: 3px; }
.model-name { font-weight: 600; margin: 0.4rem 0; overflow-wrap: anywhere; }
.nothing { opacity: 0.7; padding: 0.5rem 0; }
"""


class Demo:
    """What the page's buttons do; nothing here knows of Gradio.

    Args:
        encoders: one or two, by the names that are shown.
        corpus: the file that is searched from the start; None: the page asks for one.
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
        self.indexes = self.index(corpus, text_column, show_progress_bar) if corpus is not None else []

    def index(self, path: str, text_column: str | None = None, show_progress_bar: bool = False) -> list[SearchIndex]:
        """An index a model over a file's sentences."""
        sentences = [text for text in Corpus(path, text_column or None) if text.strip()]
        if not sentences:
            raise UserError(f"{Path(path).name}: no sentences in it")
        return [SearchIndex.build(sentences, vectors) for vectors in self._encoded(sentences, show_progress_bar)]

    def similarity(self, sentence: str, others: str) -> list[str]:
        """HTML, a table a model: the other sentences by their cosine with the first."""
        lines = _lines(others, 1)
        if not sentence.strip():
            raise UserError("write a sentence to compare with the others")
        tables = []
        for colour, encoder in zip(COLOURS, self.encoders.values(), strict=False):
            with self._working:
                scores = np.asarray(encoder.similarity(sentence.strip(), lines))
            hits = [(lines[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]
            tables.append(score_table(hits, colour))
        return tables

    def search(self, query: str, top_k: int, threshold: float, indexes: list[SearchIndex] | None) -> list[str]:
        """HTML, a table a model: the nearest sentences of the corpus."""
        searched = indexes or self.indexes
        if not searched:
            raise UserError("there is nothing to search yet: upload a corpus, or start with --corpus FILE")
        if not query.strip():
            raise UserError("write what to search for")
        return [
            score_table(index.search(wanted, top_k=int(top_k), threshold=threshold)[0], colour)
            for colour, wanted, index in zip(COLOURS, self._encoded([query.strip()]), searched, strict=False)
        ]

    def matrices(self, text: str) -> list[Any]:
        """A figure a model: the cosines of all pairs of sentences."""
        lines = _lines(text, 2)
        return [matrix_figure(lines, vectors @ vectors.T) for vectors in self._encoded(lines)]

    def maps(self, text: str) -> list[Any]:
        """A figure a model: the sentences on their first two principal components."""
        lines = _lines(text, 3)
        return [
            map_figure(lines, *principal_components(vectors), colour)
            for vectors, colour in zip(self._encoded(lines), COLOURS, strict=False)
        ]

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
                with gr.Column(min_width=360):
                    gr.HTML(f'<div class="model-name">{html.escape(name)}</div>')
                    made.append(kind(elem_id=f"{tab}-{i}", **settings))
        return made

    def indexed(path: str | None, column: str) -> list[Any]:
        indexes = demo.index(path, column.strip()) if path is not None else None
        return [indexes, _corpus_text(indexes or demo.indexes)]

    with gr.Blocks(analytics_enabled=False, title="Sentence encoder") as page:
        gr.Markdown("# " + ("Two sentence encoders" if len(names) > 1 else "Sentence encoder"))
        with gr.Tab("Similarity"):
            sentence = gr.Textbox(EXAMPLES[0], label="Sentence", elem_id="sentence")
            others = gr.Textbox("\n".join(EXAMPLES[1:5]), label="Compare with (one a line)", lines=4, elem_id="others")
            button = gr.Button("Compare", variant="primary", elem_id="compare")
            places = outputs(gr.HTML, "similarity")
            gr.on([button.click, sentence.submit], told(demo.similarity, len(names)), [sentence, others], places)
        with gr.Tab("Search"):
            session = gr.State(None)
            status = gr.Markdown(_corpus_text(demo.indexes), elem_id="status")
            query = gr.Textbox(label="Search for", elem_id="query", placeholder="a question, a topic, a sentence")
            with gr.Row():
                top_k = gr.Slider(1, 50, 10, step=1, label="At most")
                threshold = gr.Slider(-1, 1, 0.3, step=0.05, label="Cosine from")
            button = gr.Button("Search", variant="primary", elem_id="search")
            places = outputs(gr.HTML, "hits")
            with gr.Accordion("A corpus of your own", open=not demo.indexes, elem_id="own-corpus"):
                column = gr.Textbox(label="Text column (of csv, tsv, jsonl, parquet with several)", elem_id="column")
                upload = gr.File(
                    label="One sentence a line, or a table",
                    file_types=[".txt", ".csv", ".tsv", ".jsonl", ".parquet"],
                    type="filepath",
                    elem_id="corpus",
                )
            upload.change(told(indexed, 2), [upload, column], [session, status])
            gr.on(
                [button.click, query.submit], told(demo.search, len(names)), [query, top_k, threshold, session], places
            )
        with gr.Tab("Side by side" if len(names) > 1 else "All pairs"):
            text = gr.Textbox("\n".join(EXAMPLES), label="Sentences, one a line", lines=6, elem_id="pairs-text")
            button = gr.Button("Show all pairs", variant="primary", elem_id="pairs")
            button.click(told(demo.matrices, len(names)), text, outputs(gr.Plot, "matrix", show_label=False))
        with gr.Tab("Map"):
            text = gr.Textbox("\n".join(EXAMPLES), label="Sentences, one a line", lines=6, elem_id="map-text")
            button = gr.Button("Draw the map", variant="primary", elem_id="map")
            button.click(told(demo.maps, len(names)), text, outputs(gr.Plot, "points", show_label=False))
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
    return serve_page(build_page(demo), "demo", host, port, CSS)


def _lines(text: str, least: int) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < least:
        raise UserError(f"write at least {least} sentence{'s' if least > 1 else ''}, one a line")
    if len(lines) > MOST_SENTENCES:
        raise UserError(f"{len(lines)} sentences: at most {MOST_SENTENCES} here; for more use cacse-trainer encode")
    return lines


def _corpus_text(indexes: Sequence[SearchIndex]) -> str:
    if not indexes:
        return "No corpus yet: upload one below."
    return f"Searching **{len(indexes[0]):,}** sentences."
