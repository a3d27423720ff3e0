"""Which method is worth its hours: several of them, with seeds, from one start, one text and one number of steps.

Two arms have their own start, text and sets; both are made from a folder of data (``--data``) that holds ``senteval/``,
``wiki/wiki.txt`` and ``domain/{train,corpus,dev_queries}.jsonl``, as SentEval's scripts and one's own text leave them:

    python benchmarks/quality.py                                               (the shipped sample, one method, 2 steps)
    python benchmarks/quality.py --arm sts --data DATA --full --folder race    (a night on 2 cores)
    python benchmarks/quality.py --arm domain --data DATA --full --folder race
    python benchmarks/quality.py --full --text mine.txt --dev dev.tsv --test test.tsv --folder race

A race goes on where it was stopped.

The first row is the start as its own folder states it, the second the start by the pooling that is trained, the third
sentence-transformers' trainer with MultipleNegativesRankingLoss over dropout views. Each trained encoder is the
checkpoint that its run chose on the dev set; the figures are from sets that chose nothing. The interval is that of a
paired bootstrap over pairs or queries of the mean over the seeds; how the seeds differ stands beside it. All train, and
are judged, in bfloat16 where that is faster here.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import MINILM, quiet, save, train_mnrl
from quality_methods import JOINED, METHODS, Arm, race
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import set_seed

from cacse_trainer.adaptation.parts import Size, part
from cacse_trainer.data import load_sentences
from cacse_trainer.data.documents import load_documents
from cacse_trainer.data.retrieval import save_retrieval
from cacse_trainer.encoding.weighted import open_encoders
from cacse_trainer.evaluation.compare import drawn_differences
from cacse_trainer.evaluation.results import read_results, score_of
from cacse_trainer.evaluation.run import choose_tasks, evaluate_encoder
from cacse_trainer.files import write_json, writing
from cacse_trainer.pipeline.runner import run_stages
from cacse_trainer.pipeline.stages import Stage
from cacse_trainer.settings.precision import bf16_is_fast
from cacse_trainer.settings.resources import resolve_resource

STS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICKRelatedness")
UNDO_STEPS = 500
GENERATOR = Path(__file__).parent.parent / "scripts" / "make_generator.py"
START, TRAINED_POOLING, PEER = "start", "start, pooling as trained", "sentence-transformers MNRL"


def sample_arm(settings: argparse.Namespace) -> Arm:
    """The shipped sample, or what is given."""
    return Arm(settings.arm, settings.start, settings.pooling, settings.text, settings.dev, [f"test={settings.test}"])


def sts_arm(settings: argparse.Namespace) -> Arm:
    """A start whose sentence training is undone, general sentences, STS."""
    data, start = settings.data, settings.folder / "undone"
    text, senteval = str(data / "wiki" / "wiki.txt"), data / "senteval"
    if not start.is_dir():
        make_generator(MINILM, text, start, UNDO_STEPS)
    tasks = choose_tasks(tasks=STS, data_dir=senteval, skip_missing=True).names
    dev = str(senteval / "downstream" / "STS" / "STSBenchmark" / "sts-dev.csv")
    return Arm("sts", str(start), "cls", text, dev, tasks=[*tasks], data=senteval)


def domain_arm(settings: argparse.Namespace) -> Arm:
    """A sentence encoder as it is, single sentences of a domain's documents, retrieval."""
    domain, folder = settings.data / "domain", settings.folder / "domain-text"
    if not (folder / "sentences.txt").is_file():
        documents, _ = load_documents([str(domain / "train.jsonl")])
        parts = part(documents, most=(Size(500, 2000), Size(20, 0)), words=120, seed=1)
        assert parts.dev is not None
        save_retrieval(parts.dev, folder / "dev")
        sentences = list(dict.fromkeys(line for one in parts.train for line in one.sentences if len(line.split()) > 3))
        random.Random(1).shuffle(sentences)
        with writing(folder / "sentences.txt") as staged:
            staged.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    tests = [f"queries={domain / 'corpus.jsonl'}+{domain / 'dev_queries.jsonl'}"]
    return Arm("domain", MINILM, "mean", str(folder / "sentences.txt"), str(folder / "dev"), tests)


def make_generator(model: str, text: str, folder: Path, steps: int) -> None:
    """A masked language model made from an encoder: the start without its sentence training, DiffCSE's generator."""
    words = ["--model", model, "--train_file", text, "--output_dir", str(folder), "--max_steps", str(steps)]
    subprocess.run([sys.executable, str(GENERATOR), *words], check=True, stdout=subprocess.DEVNULL)


def train_peer(arm: Arm, settings: argparse.Namespace, seed: int, folder: Path) -> float:
    """sentence-transformers' trainer on (sentence, sentence) pairs, as its documentation has it; the seconds."""
    took = folder / "seconds.json"
    if took.is_file():
        return float(json.loads(took.read_text(encoding="utf-8"))["seconds"])
    set_seed(seed)
    transformer = Transformer(resolve_resource(arm.start), max_seq_length=32)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), arm.pooling)]
    model = SentenceTransformer(modules=modules, device=settings.device)
    count = settings.steps * settings.batch
    lines = list(load_sentences(resolve_resource(arm.text), None)["text"])
    random.Random(seed).shuffle(lines)
    lines = (lines * (1 + count // len(lines)))[:count]
    how = {"steps": settings.steps, "batch": settings.batch, "rate": settings.peer_rate, "seed": seed}
    how["bf16"] = bf16_is_fast(use_cpu=settings.device == "cpu")  # as ours by default
    seconds = train_mnrl(model, lines, lines, folder / "run", **how, device=settings.device)
    transformer.max_seq_length = 128
    model.save(str(folder / "encoder"))
    write_json(took, {"seconds": seconds})
    return seconds


def judged(arm: Arm, models: Sequence[str], folder: Path, **options: Any) -> dict[str, float]:
    """The scores by set, ``dev`` among them; what the folder has is not computed again."""
    chosen = choose_tasks(tasks=arm.tasks, dev_files=[f"dev={arm.dev}", *arm.tests], data_dir=arm.data)
    compute = "bf16" if bf16_is_fast() else "float32"
    store = evaluate_encoder(open_encoders(models, compute=compute, **options), chosen, folder, progress=False)
    return {name: score_of(entry) for name, entry in store.contents()["tasks"].items()}


def mean_of(scores: dict[str, float]) -> float:
    """The mean over the sets that judge."""
    return statistics.fmean(value for name, value in scores.items() if name != "dev")


def against(runs: Sequence[Path], others: Sequence[Path]) -> list[float] | None:
    """Mean difference over seeds and sets from the other's, and the ends of its 95 % interval."""
    names = [name for name in read_results(runs[0])["tasks"] if name != "dev"]
    found: list[Any] = [
        drawn_differences(other, run, name, seed=number)
        for number, name in enumerate(names)
        for run, other in zip(runs, others, strict=True)
    ]
    gained = [
        mean_of({name: score_of(entry) for name, entry in read_results(run)["tasks"].items()})
        - mean_of({name: score_of(entry) for name, entry in read_results(other)["tasks"].items()})
        for run, other in zip(runs, others, strict=True)
    ]
    low, high = np.percentile(np.mean(found, axis=0), [2.5, 97.5])
    return [statistics.fmean(gained), float(low), float(high)]


def seconds_of(stage: str, stages: Sequence[Stage], record: dict[str, dict[str, Any]]) -> float:
    """Of a stage and all that it needs."""
    names, by_name = [stage], {one.name: one for one in stages}
    for name in names:
        names += [other for other in by_name[name].needs if other not in names]
    return sum(record[name]["seconds"] for name in names)


def run_arm(arm: Arm, settings: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every encoder's line, as soon as it is judged."""
    root = settings.folder / arm.name
    results = root / "results"
    for name, pooling in ((START, None), (TRAINED_POOLING, arm.pooling)):
        scores = judged(arm, [arm.start], results / name, poolings=[pooling])
        yield {"row": name, "seed": None, "scores": scores, "seconds": 0.0, "results": str(results / name)}
    if {"diffcse", "uc", "uc_student"} & {*settings.methods} and not (root / "generator").is_dir():
        steps = 600 if settings.full else settings.steps
        make_generator(arm.start, resolve_resource(arm.text), root / "generator", steps)
    for seed in settings.seeds:
        folder = root / f"seed-{seed}"
        seconds = train_peer(arm, settings, seed, folder / "peer")
        place = results / f"{PEER}-{seed}"
        scores = judged(arm, [str(folder / "peer" / "encoder")], place)
        yield {"row": PEER, "seed": seed, "scores": scores, "seconds": seconds, "results": str(place)}
        stages, entrants = race(arm, settings, seed, folder)
        record: dict[str, dict[str, Any]] = {}
        for stage in stages:  # a method is judged as soon as it is trained
            record = run_stages(folder, stages, [stage.name])
            for one in (entrant for entrant in entrants if entrant.stage == stage.name):
                place = results / f"{one.name}-{seed}"
                scores = judged(arm, [str(folder / path) for path in one.models], place, weights=one.weights)
                seconds = seconds_of(one.stage, stages, record)
                if one.name in JOINED:
                    made = {path.partition("/")[0] for path in one.models}
                    seconds = sum(seconds_of(name, stages, record) for name in made)
                yield {"row": one.name, "seed": seed, "scores": scores, "seconds": seconds, "results": str(place)}


def table(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each encoder, in order: mean and standard deviation over the seeds, and the differences."""
    by_row: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_row.setdefault(line["row"], []).append(line)
    rows = []
    for name, found in by_row.items():
        means = [mean_of(line["scores"]) for line in found]
        row: dict[str, Any] = {"row": name, "seeds": len(found), "mean": statistics.fmean(means)}
        row["sd"] = statistics.stdev(means) if len(means) > 1 else None
        row["sets"] = {one: statistics.fmean(line["scores"][one] for line in found) for one in found[0]["scores"]}
        row["seconds"] = statistics.fmean(line["seconds"] for line in found)
        for other in (START, TRAINED_POOLING, PEER):
            if other != name and other in by_row:
                at = {line["seed"]: Path(line["results"]) for line in by_row[other]}
                pairs = [(Path(line["results"]), at.get(line["seed"], at.get(None))) for line in found]
                if all(base is not None for _, base in pairs):
                    row[f"over {other}"] = against([one for one, _ in pairs], [base for _, base in pairs if base])
        rows.append(row)
    return rows


def print_table(arm: Arm, rows: Sequence[dict[str, Any]]) -> None:
    """As markdown."""
    sets = list(rows[0]["sets"])
    others = [START, TRAINED_POOLING, PEER]
    print(f"\n### {arm.name}\n")
    print("| | " + " | ".join([*sets, "mean of the tests", "seconds", *(f"over {other}" for other in others)]) + " |")
    print("|---|" + "---|" * (len(sets) + 2 + len(others)))
    for row in rows:
        spread = "" if row["sd"] is None else f" ± {row['sd']:.2f}"
        cells = [*(f"{row['sets'][one]:.2f}" for one in sets), f"{row['mean']:.2f}{spread}", f"{row['seconds']:.0f}"]
        for other in others:
            found = row.get(f"over {other}")
            cells.append("" if found is None else f"{found[0]:+.2f} [{found[1]:+.2f}, {found[2]:+.2f}]")
        print(f"| {row['row']} | " + " | ".join(cells) + " |")


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--arm", choices=["sample", "sts", "domain"], default="sample")
    made.add_argument("--data", type=Path, help="of the arms sts and domain")
    made.add_argument("--full", action="store_true", help="all methods, three seeds, 180 steps (an epoch of wiki.txt)")
    made.add_argument("--methods", nargs="+", choices=METHODS, help="default: simcse; --full: all")
    made.add_argument("--seeds", type=int, nargs="+", help="default: 1; --full: 1 2 3")
    made.add_argument("--steps", type=int, help="default: 2; --full: 180")
    made.add_argument("--batch", type=int, help="default: 8; --full: 64")
    made.add_argument("--peer_rate", type=float, default=3e-5, help="of sentence-transformers' trainer")
    made.add_argument("--start", default=MINILM, help="of the arm sample, as the four that follow")
    made.add_argument("--pooling", default="mean")
    made.add_argument("--text", default="sample:sentences.txt")
    made.add_argument("--dev", default="sample:dev.tsv")
    made.add_argument("--test", default="sample:dev.tsv", help="the sample has no other: its figures say nothing")
    made.add_argument("--device", default="cpu", help="of sentence-transformers' trainer")
    made.add_argument("--folder", type=Path, help="where all stays, to go on there; default: nowhere")
    made.add_argument("--output", type=Path, help="the report, and a plot beside it")
    settings = made.parse_args()
    settings.methods = settings.methods or (METHODS if settings.full else ["simcse"])
    settings.seeds = settings.seeds or ([1, 2, 3] if settings.full else [1])
    settings.steps = settings.steps or (180 if settings.full else 2)
    settings.batch = settings.batch or (64 if settings.full else 8)
    settings.folder = (settings.folder or Path(tempfile.mkdtemp())).absolute()
    if settings.arm != "sample" and settings.data is None:
        made.error(f"--arm {settings.arm} needs --data, the folder of its text and sets")
    quiet()
    settings.folder.mkdir(parents=True, exist_ok=True)
    arm = {"sample": sample_arm, "sts": sts_arm, "domain": domain_arm}[settings.arm](settings)
    lines = []
    for line in run_arm(arm, settings):
        lines.append(line)
        print(json.dumps(line), flush=True)
    rows = table(lines)
    print_table(arm, rows)
    bars = {arm.name: {row["row"]: row["mean"] for row in rows}}
    report = {"arm": vars(arm), "lines": lines, "rows": rows, "settings": vars(settings)}
    save(settings.output, report, bars, "mean ×100")


if __name__ == "__main__":
    main()
