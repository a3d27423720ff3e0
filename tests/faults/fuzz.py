"""Good files spoiled at random, by a seed, and read by the real commands in this process.

    python -m tests.faults.fuzz 1500        so many cases; prints counts by kind of file, and every case that failed

A case passes when the command succeeds, or says in one line what is wrong and returns 2. An unexpected exception ends
in one line, too, but with 1: a fault of ours.
"""

import collections
import contextlib
import faulthandler
import io
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
import yaml
from torch import nn

from cacse_trainer import CacseBertModel, EnsembleModel, SentenceEmbeddingModel
from cacse_trainer.cli import main
from cacse_trainer.encoding.sentence_transformers import write_modules
from cacse_trainer.models.pretrained import load_encoder_model
from tests.faults.places import Place

SECONDS = 120
"""After so long a case hangs: the process ends with all its stacks."""

# ---- how a file is spoiled ----

VALUES: list[Any] = [None, True, -1, 0, 7, 2**70, 1e400, 0.5, "", "word", "é→", [], [1], {}, {"a": 1}, [[]], "\ud800"]


def truncate(data: bytes, random: random.Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def flip(data: bytes, random: random.Random) -> bytes:
    spoiled = bytearray(data)
    for _ in range(random.choice((1, 1, 4, 40))):
        if spoiled:
            spoiled[random.randrange(len(spoiled))] ^= 1 << random.randrange(8)
    return bytes(spoiled)


def insert(data: bytes, random: random.Random) -> bytes:
    place = random.randrange(len(data) + 1)
    junk = (b"\0", b"\0" * 9, b"\xff", b"\n", b"\r", b'"', b";", b"\t", b",", b"{", b"[" * 2000, b"9" * 50, b"- ")
    return data[:place] + random.choice(junk) + data[place:]


def delete(data: bytes, random: random.Random) -> bytes:
    start = random.randrange(len(data) + 1)
    return data[:start] + data[start + random.choice((1, 8, 100)) :]


def lines(data: bytes, random: random.Random) -> bytes:
    """Lines doubled, dropped or exchanged."""
    rows = data.splitlines(keepends=True) or [b""]
    one, other = random.randrange(len(rows)), random.randrange(len(rows))
    how = random.randrange(3)
    if how == 0:
        rows[one:one] = [rows[other]] * random.choice((1, 3))
    elif how == 1:
        del rows[one]
    else:
        rows[one], rows[other] = rows[other], rows[one]
    return b"".join(rows)


def delimiters(data: bytes, random: random.Random) -> bytes:
    one, other = random.sample([b",", b";", b"\t", b"|", b"\n", b"\r\n", b":", b'"', b"'"], 2)
    return data.replace(one, other)


def encode(data: bytes, random: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(random.choice(("utf-16", "utf-8-sig", "utf-32", "cp037", "utf-7")), "replace")


def empty(data: bytes, random: random.Random) -> bytes:
    return random.choice((b"", b"\n", b" ", b"null", b"[]", b"{}", b"0", b'"text"', b"\xef\xbb\xbf", b"PK\x03\x04"))


def types(data: bytes, random: random.Random) -> bytes:
    """A value of JSON (a line's, where each line is one), YAML or a table, replaced by one of another type."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        return json.dumps(_swapped(json.loads(text), random)).encode()
    if text.startswith("{"):
        rows = text.splitlines()
        row = random.randrange(len(rows))
        with contextlib.suppress(ValueError):
            rows[row] = json.dumps(_swapped(json.loads(rows[row]), random))
        return "\n".join(rows).encode("utf-8", "replace")
    with contextlib.suppress(yaml.YAMLError):
        if isinstance(found := yaml.safe_load(text), dict):
            return yaml.safe_dump(_swapped(found, random)).encode("utf-8", "replace")
    cells = text.split(" ")
    cells[random.randrange(len(cells))] = str(random.choice(VALUES))
    return " ".join(cells).encode("utf-8", "replace")


def _swapped(value: Any, random: random.Random) -> Any:
    """A value in which one thing, at any depth, is another or gone."""
    if not value or not isinstance(value, (dict, list)) or random.random() < 0.15:
        return random.choice(VALUES)
    found = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    key, item = random.choice(found)
    copy = value.copy()
    if random.random() < 0.15:
        del copy[key]
    else:
        copy[key] = _swapped(item, random)
    return copy


Mutation = Callable[[bytes, random.Random], bytes]
MUTATIONS: tuple[Mutation, ...] = (
    truncate,
    flip,
    flip,
    insert,
    delete,
    lines,
    delimiters,
    encode,
    empty,
    types,
    types,
    types,
)

# ---- what is spoiled, and who reads it ----


@dataclass(frozen=True)
class Target:
    """A kind of good file.

    Args:
        kind: for the counts.
        source: the file, or a folder with files of which one is spoiled.
        command: the words that read it from where it is put.
        pattern: of the files in a folder.
        mutations: how it is spoiled.
    """

    kind: str
    source: Path
    command: Callable[[Path], list[str]]
    pattern: str = "*"
    mutations: tuple[Mutation, ...] = MUTATIONS


class Ground:
    """Good files of all kinds, small, and the commands that read them."""

    def __init__(self, folder: Path):
        self.place = Place(folder)
        self.folder = folder
        self.good = folder / "good"
        self.good.mkdir()
        self.out = folder / "out"
        self.targets = [*self._texts(), *self._pairs(), *self._recipes(), *self._models(), *self._runs()]

    def _table(self, name: str, columns: dict[str, list[Any]]) -> dict[str, Path]:
        """The same table as a file of each format."""
        table = pa.table(columns)
        paths = {ending: self.good / f"{name}.{ending}" for ending in ("csv", "tsv", "jsonl", "json", "parquet")}
        pa.csv.write_csv(table, paths["csv"])
        rows = table.to_pylist()
        head = "\t".join(columns)
        paths["tsv"].write_text("\n".join([head, *("\t".join(map(str, row.values())) for row in rows)]) + "\n")
        paths["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths["json"].write_text(json.dumps(rows))
        pq.write_table(table, paths["parquet"], row_group_size=10)
        return paths

    def _texts(self) -> list[Target]:
        sentences = self.place.text.read_text().splitlines()
        one = self._table("text", {"text": sentences})
        two = self._table(
            "triple", {"anchor": sentences, "positive": sentences[::-1], "negative": sentences[5:] + sentences[:5]}
        )
        made = []
        for name, path in {**one, "txt": self.place.text}.items():
            made.append(Target(name, path, self._encode))
            made.append(Target(name, path, lambda path: self._train(train_file=str(path))))
        made += [Target(name, path, lambda path: self._train(train_file=str(path))) for name, path in two.items()]
        return made

    def _pairs(self) -> list[Target]:
        rows = [line.split("\t") for line in Path(self.place.dev).read_text().splitlines()[1:]]
        first, second, score = zip(*rows, strict=True)
        columns = {"sentence1": list(first), "sentence2": list(second), "score": [float(value) for value in score]}
        pairs = self._table("pairs", columns)
        made = [Target(name, path, lambda path: self._train(dev_file=f"stsb={path}")) for name, path in pairs.items()]
        angle = {"objective": "angle"}
        made += [
            Target(name, path, lambda path: self._train(train_file=str(path), **angle)) for name, path in pairs.items()
        ]
        return made

    def _recipes(self) -> list[Target]:
        recipe = self.good / "recipe.yaml"
        recipe.write_text(
            "learning_rate: 3e-5\nmax_seq_length: 32\npooling: mean\nseed: 7\nbf16: auto\ntext_columns: [text]\n"
            "weight_decay: 0.1\nwarmup_steps: 2\nlr_scheduler_type: linear\nadam_beta1: 0.9\nlogging_steps: 5\n"
        )
        pipeline = self.good / "pipeline.yaml"
        pipeline.write_text(
            f"output_dir: {self.out}\ncommon: {{train_file: {self.place.text}, seed: 3}}\nstages:\n"
            f"  tower_a: {{config: simcse/minilm, model: {self.place.tower}}}\n"
            "  joint: {config: cacse/minilm, tower_a: 'stage:tower_a/export/encoder', processes: 1}\n"
        )
        plan = ["--output_dir", str(self.out), "--plan"]
        return [
            Target("yaml", recipe, lambda path: self._train("--config", str(path), pooling=None)),
            Target("yaml", recipe, lambda path: ["sweep", "--config", str(path), "--seeds", "1", "2", *plan]),
            Target("yaml", pipeline, lambda path: ["pipeline", "--config", str(path), *plan]),
        ]

    def _models(self) -> list[Target]:
        folder = Path(shutil.copytree(self.place.tower, self.good / "encoder"))
        torch.manual_seed(0)
        settings = {"pooling": "mean", "hidden_size": 32, "max_seq_length": 64}
        write_modules(folder, **settings, dense=nn.Linear(32, 16))
        index, vectors = self.good / "index", self.good / "vectors"
        vectors.mkdir()
        quietly(["search", "--model", str(folder), "--corpus", str(self.place.text), "--save_index", str(index)])
        quietly(["encode", "--model", str(folder), *self._input(), "--output", str(vectors / "v.npy")])

        def with_vectors(path: Path) -> list[str]:
            corpus = ["--corpus", str(self.place.text), "--vectors", str(path / "v.npy")]
            return ["search", "--model", str(folder), *corpus, "--query", "a dog"]

        return [
            *[Target("sentence-transformers folder", folder, self._model, "**/*.json")] * 3,
            *[Target("safetensors", folder, self._model, "**/*.safetensors")] * 2,
            Target("safetensors", folder, lambda path: self._train(model=str(path)), "**/*.safetensors"),
            Target("sentence-transformers folder", folder, lambda path: self._train(model=str(path)), "**/*.json"),
            Target("index", index, lambda path: ["search", "--index", str(path), "--query", "a dog"]),
            Target("vectors", vectors, with_vectors),
            *[
                Target("own checkpoint", own, self._model, "config.json")
                for own in own_models(self.place, self.good).values()
                for _ in range(2)
            ],
            *[Target("config", folder, self._model, "config.json", (empty, types))] * 2,
        ]

    def _runs(self) -> list[Target]:
        run, results = self.good / "run", self.good / "results"
        short = {"evaluation": "none", "dev_file": None, "eval_strategy": None, "eval_steps": None, "save_steps": "1"}
        quietly(self._train(**short, output_dir=str(run), max_steps="2")[:-1])
        finished = Path(shutil.copytree(run / "export" / "encoder", self.good / "finished"))
        shutil.copy(run / "training_report.json", finished)
        (run / "training_report.json").unlink()
        without = Path(shutil.copytree(run, self.good / "without_manifest"))
        for path in without.glob("checkpoint-*/manifest.json"):
            path.unlink()
        tasks = {name: {"spearman": 70.5, "aggregation": "all"} for name in ("STS12", "STS13")}
        results.mkdir()
        (results / "results.json").write_text(
            json.dumps({"model": "m", "pooling": "cls", "settings": {"mode": "test"}, "tasks": tasks, "mteb": {}})
        )

        def resume(path: Path) -> list[str]:
            words = self._train(**short, output_dir=str(path), max_steps="3", export="false")[:-1]
            return [*words, "--resume_from_checkpoint", "last"]

        return [
            *[Target("json", results, lambda path: ["compare", str(path), str(results)])] * 2,
            Target("checkpoint", run, resume, "checkpoint-2/*"),
            Target("checkpoint", without, resume, "checkpoint-2/*"),
            Target(
                "json",
                finished,
                lambda path: ["export", "--checkpoint", str(path), "--output_dir", f"{path}_out"],
                "training_report.json",
            ),
        ]

    def _input(self) -> list[str]:
        return ["--input", str(self.place.text)]

    def _encode(self, path: Path) -> list[str]:
        return ["encode", "--model", self.place.tower, "--input", str(path), "--output", str(path.parent / "v.npy")]

    def _model(self, path: Path) -> list[str]:
        return ["encode", "--model", str(path), *self._input(), "--output", str(path.parent / "v.npy")]

    def _train(self, *more: str, **changes: str | None) -> list[str]:
        good = {"model": self.place.tower, "pooling": "mean", "output_dir": str(self.out)}
        words = self.place.simcse(*more, **{**good, **changes})
        return [*words, "--check"]

    def try_case(self, number: int, seed: int = 0) -> tuple[str, str]:
        """A case by its number: what was spoiled and how, and what is wrong with the outcome; "" nothing."""
        chance = random.Random(f"{seed} {number}")
        target = self.targets[number % len(self.targets)]
        place = self.folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        path = spoiled = place / target.source.name
        if target.source.is_dir():
            shutil.copytree(target.source, path)
            spoiled = chance.choice(sorted(file for file in path.glob(target.pattern) if file.is_file()))
        mutate = chance.choice(target.mutations)
        data = (spoiled if target.source.is_dir() else target.source).read_bytes()
        spoiled.write_bytes(mutate(data, chance))
        words = target.command(path)
        what = f"{number} {target.kind}: {mutate.__name__} {spoiled.relative_to(place)}, {words[0]}"
        code, said = quietly(words)
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        if "Traceback" in said or code not in (0, 2) or len(errors) != (code == 2):
            return what, f"exit {code}: {said[-600:]}"
        return what, ""


def own_models(place: Place, folder: Path) -> dict[str, Path]:
    """Checkpoints of our own models, by their kind."""
    tower = place.tower
    made = {
        "cacse": CacseBertModel.from_towers(tower, tower, cascade_start_layer=1, constraint_layers=1),
        "simcse": SentenceEmbeddingModel.from_encoder(tower),
        "ensemble": EnsembleModel.from_encoders([load_encoder_model(tower)[0] for _ in range(2)]),
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
        place.tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in made}


def quietly(words: list[str]) -> tuple[int, str]:
    """A command's exit code and all that it says."""
    said = io.StringIO()
    logging.getLogger().handlers.clear()  # or the first case's stream is written to for ever
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main.main(words)
    return code, said.getvalue()


def sweep(count: int, seed: int = 0) -> int:
    """Many cases; prints what failed, and counts by kind; returns the number of failures."""
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as temporary:
        ground = Ground(Path(temporary))
        os.chdir(temporary)
        for number in range(count):
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            started = time.perf_counter()
            what, wrong = ground.try_case(number, seed)
            kind = what.partition(" ")[2].partition(":")[0]
            counts[kind]["cases"] += 1
            counts[kind]["failed"] += bool(wrong)
            counts[kind]["seconds"] += time.perf_counter() - started
            counts[kind]["slowest"] = max(counts[kind]["slowest"], time.perf_counter() - started)
            if wrong:
                print(f"FAILED {what}\n  {wrong}", flush=True)
        faulthandler.cancel_dump_traceback_later()
    for kind, found in sorted(counts.items()):
        print(kind, {name: round(value, 1) for name, value in found.items()})
    return sum(found["failed"] for found in counts.values())


if __name__ == "__main__":
    sys.exit(bool(sweep(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
