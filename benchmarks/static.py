"""A static table beside its encoder: sentences a second of both in one run, and what it costs on a dev set.

python benchmarks/static.py --file wiki.txt --sentences 20000 --dev_file sts-dev.csv --output static.json
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from common import MINILM, in_turn, lines_of, print_rates, quiet, rates, save

from cacse_trainer import SentenceEncoder, load_pairs
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.evaluation.sts import spearman_by_set
from cacse_trainer.export.static import export_static
from cacse_trainer.settings.resources import resolve_resource


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MINILM)
    parser.add_argument("--file", default="sample:sentences.txt", help="one sentence a line: measured on, weighted by")
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--dims", type=int, default=256)
    parser.add_argument("--words", type=int, default=0, help="of the file that get a row of their own")
    parser.add_argument("--dev_file", default="sample:dev.tsv", help="graded pairs")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="JSON file; a plot beside it")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    quiet()
    encoder = SentenceEncoder(settings.model, device="cpu")
    pairs = {"dev": load_pairs(resolve_resource(settings.dev_file), score_range=(0.0, 5.0))}
    with tempfile.TemporaryDirectory() as folder:
        report = {}
        encoders = {"the encoder": encoder}
        ways = {
            "static, weights by Zipf's law": None,
            "static, weights by the text": Corpus(resolve_resource(settings.file)),
        }
        for name, text in ways.items():
            started = time.perf_counter()
            words = settings.words if text is not None else 0
            made = export_static(encoder, Path(folder) / name, dims=settings.dims, text=text, words=words)
            report[name] = {**made, "export_seconds": time.perf_counter() - started}
            encoders[name] = SentenceEncoder(Path(folder) / name, device="cpu")
        # distinct ones: a repeated sentence is encoded once
        sentences = [f"{line} {i}" for i, line in enumerate(lines_of(settings.file, settings.sentences))]

        def seconds(one: SentenceEncoder) -> float:
            started = time.perf_counter()
            one.encode(sentences)
            return time.perf_counter() - started

        taken = in_turn({name: lambda one=one: seconds(one) for name, one in encoders.items()}, settings.runs)
        table = rates(taken, len(sentences), "the encoder")
        print_rates(f"{len(sentences)} sentences, {settings.threads} threads", table)
        scores = {name: spearman_by_set(one.embedder, pairs)["dev"] for name, one in encoders.items()}
        for name, score in scores.items():
            print(f"{name:44}{settings.dev_file}: {score:.2f}")
        bars = {"sentences a second": {name: row["sentences_per_second"] for name, row in table.items()}}
        save(settings.output, {"rates": table, "scores": scores, "tables": report}, bars, "sentences a second")


if __name__ == "__main__":
    main()
