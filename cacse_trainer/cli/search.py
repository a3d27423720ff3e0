"""``cacse-trainer search``: the nearest sentences of a corpus or of a saved index."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.encoders import add_running_flags, chosen, open_encoder
from cacse_trainer.cli.output import tell_json
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.vectors.disk_index import ASKED, NEAREST
from cacse_trainer.encoding.vectors.index import EXACT, Hits, index_on_disk, open_vectors, read_facts
from cacse_trainer.encoding.vectors.precision import PRECISIONS
from cacse_trainer.errors import UserError
from cacse_trainer.settings.command_line import count
from cacse_trainer.settings.resources import resolve_resource

logger = logging.getLogger(__name__)

QUERIES_AT_ONCE = 1_024

EPILOG = """examples:
  cacse-trainer search --model A --corpus sentences.txt --query "a man plays music" --query "rain"
  cacse-trainer search --model A --corpus docs.csv --text_column body --save_index docs_index
  cacse-trainer search --index docs_index                               (asks for queries; Ctrl-D ends)
  cacse-trainer search --index docs_index --input queries.txt --top_k 10 --format jsonl > hits.jsonl
  cacse-trainer search --model A --corpus big.txt --kind hnsw --save_index big (pip install 'cacse-trainer[faiss]')
  cacse-trainer search --model A --corpus big.txt --vectors big.npy --query "rain"     (of cacse-trainer encode)
  cacse-trainer search --model A --corpus big.txt --vectors big.npy --kind ivf --save_index on_disk

An index remembers its encoder by name and by a hash of its weights. Where the encoder's folder states prompts, queries
are encoded behind its "query" and the corpus behind its "document" (or "passage") prompt.

--vectors with --kind ivf (or a faiss string such as IVF65536,SQ8) makes an index on the disk that may be larger than
memory: a search maps it and reads the cells that it looks into. The recall against the exact search is printed.
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    settings = parser().parse_args(arguments)
    if (settings.corpus is None) == (settings.index is None):
        raise UserError("search: give either --corpus FILE or --index FOLDER")
    if settings.vectors is not None and settings.index is not None:
        raise UserError("--vectors: belong to a --corpus, and an index has its own; leave them out")
    if settings.corpus is not None and settings.model is None and settings.adapter is None:
        raise UserError("search: --corpus needs the encoder, too: --model FOLDER_OR_HUB_ID")
    if settings.index is not None:
        made_by = read_facts(settings.index)["made_by"]
        settings.truncate_dim = settings.truncate_dim or made_by.get("truncate_dim")
        settings.compute = settings.compute or made_by.get("dtype")
        encoder = open_encoder(settings, settings.model or made_by["model"], settings.device)
        encoder.load_index(settings.index, settings.search_effort)
    else:
        encoder = open_encoder(settings, settings.model, settings.device)
        _build(encoder, settings)
    if settings.save_index is not None:
        if settings.vectors is None or settings.kind == EXACT:
            encoder.save_index(settings.save_index)
        logger.info("%s: %d sentences", settings.save_index, len(encoder.index or ()))
        if not settings.query and settings.input is None:
            tell_json({"index": str(settings.save_index), "sentences": len(encoder.index or ())})
            return
    at_once = QUERIES_AT_ONCE if settings.input is not None or settings.query else 1  # a person waits for each
    queries, results = _queries(settings), []
    while part := list(islice(queries, at_once)):
        for query, hits in zip(
            part, encoder.search(part, top_k=settings.top_k, threshold=settings.threshold), strict=True
        ):
            result = {"query": query, "hits": [{"sentence": text, "score": round(score, 6)} for text, score in hits]}
            if settings.json:
                results.append(result)
            elif settings.format == "jsonl":
                print(json.dumps(result, ensure_ascii=False), flush=True)
            else:
                print(_as_text(query, hits), flush=True)
    tell_json({"results": results})


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser("search", "Find the sentences nearest to a query, by cosine.", EPILOG)
    add = made.add_argument_group("what is searched").add_argument
    add("--model", help="folder, hub id or package:NAME/FOLDER; default with --index: the one that made it")
    add(
        "--corpus",
        help="txt (one sentence a line), csv, tsv, jsonl or parquet file, a folder of such, or a hub data set",
    )
    add("--text_column", help="of a corpus with several columns")
    add(
        "--vectors",
        type=Path,
        help="the corpus's vectors, from cacse-trainer encode: .npy, or a folder of finished shards; not read at once",
    )
    add("--index", type=Path, metavar="FOLDER", help="an index that --save_index wrote")
    add = made.add_argument_group("what is asked").add_argument
    add("--query", action="append", default=[], help="may be repeated; none and no --input: asks, or reads lines")
    add("--input", help="a file of queries, of the kinds that --corpus takes")
    add("--top_k", type=count, default=5, help="at most so many a query; default 5")
    add("--threshold", type=float, default=-1.0, help="cosine from which a sentence counts; default: any")
    add("--format", default="table", choices=["table", "jsonl"], help="jsonl: an object a query, a line each")
    add = made.add_argument_group("the index").add_argument
    add("--kind", default="exact", help="exact, or through faiss: flat, ivf, hnsw, a faiss factory string")
    add("--precision", default="float32", choices=PRECISIONS, help="of the exact index's vectors")
    add("--search_effort", type=count, help="cells (ivf, default 32), candidates (hnsw, default 128) that a query sees")
    add("--save_index", type=Path, metavar="FOLDER", help="keep the index there; without a query that is all")
    add("--batch_size", type=count, help="rows a batch; default: by a budget of tokens, which is faster")
    add_running_flags(made)
    return made


def _build(encoder: BaseEncoder, settings: argparse.Namespace) -> None:
    started = time.perf_counter()
    corpus = resolve_resource(settings.corpus)
    if settings.vectors is not None:
        if settings.precision != "float32":
            raise UserError("--vectors is searched as it is; leave out --precision")
        if settings.kind != EXACT:
            _build_on_disk(encoder, settings, Corpus(corpus, settings.text_column))
            return
        encoder.index = open_vectors(settings.vectors, Corpus(corpus, settings.text_column), encoder.made_by())
        return
    encoder.build_index(
        corpus,
        **chosen(settings, "kind", "precision", "search_effort", "text_column", "batch_size"),
        show_progress_bar=not settings.disable_tqdm,
    )
    logger.info("%d sentences indexed in %.1f s", len(encoder.index or ()), time.perf_counter() - started)


def _build_on_disk(encoder: BaseEncoder, settings: argparse.Namespace, corpus: Corpus) -> None:
    started = time.perf_counter()
    if settings.save_index is None:
        raise UserError("--vectors with --kind: makes an index on the disk; say where with --save_index FOLDER")
    made = (encoder.made_by(), settings.kind, settings.search_effort)
    facts = index_on_disk(settings.save_index, settings.vectors, corpus, *made)
    encoder.load_index(settings.save_index, settings.search_effort)
    logger.info(
        "%d sentences indexed on the disk in %.1f s; recall@%d against exact %.3f (%d of its vectors looked for)",
        facts["rows"],
        time.perf_counter() - started,
        NEAREST,
        facts["recall"],
        min(ASKED, facts["rows"]),
    )


def _queries(settings: argparse.Namespace) -> Iterator[str]:
    """The queries of the flags, of the file, or of standard input."""
    yield from settings.query
    if settings.input is not None:
        yield from (text for text in Corpus(resolve_resource(settings.input)) if text.strip())
    elif not settings.query:
        asks = sys.stdin.isatty()
        while True:
            if asks:
                print("query> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line:
                break
            if line.strip():
                yield line.strip()


def _as_text(query: str, hits: Hits) -> str:
    lines = [f"  {score:6.3f}  {' '.join(sentence.split())}" for sentence, score in hits]
    return "\n".join([query, *(lines or ["  nothing above the threshold"]), ""])


if __name__ == "__main__":
    sys.exit(run(main))
