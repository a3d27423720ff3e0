"""`adapt` beside sentence-transformers' own trainer: the same text, the same minutes, the same queries at the end.

The peer trains MultipleNegativesRankingLoss on (title, passage) rows, the natural reading of its documentation, for as
many steps as fit into the minutes (its own pace, measured here), at each of some rates; the best by adapt's own dev
part counts. Both are scored on queries that neither has seen, with a paired bootstrap interval of the difference.

    python benchmarks/adapt.py                                                 (the shipped handbook, a minute or two)
    python benchmarks/adapt.py --text train.jsonl --queries corpus.jsonl+queries.jsonl --budget 45 --seeds 1 2 3

With ``--parts`` adapt runs again with each of its parts left out, or put in where it is none of the defaults (`PARTS`),
for as many steps; what each adds is the difference of the queries' scores over all seeds, with its interval.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import MINILM, quiet, save, train_mnrl
from sentence_transformers import SentenceTransformer

from cacse_trainer import SentenceEncoder
from cacse_trainer.adaptation.run import adapt
from cacse_trainer.cli.adapt import DEFAULT_RECIPE, parser
from cacse_trainer.data.documents import load_documents
from cacse_trainer.data.retrieval import load_retrieval
from cacse_trainer.data.structure import draw_rows, passages_of
from cacse_trainer.evaluation.compare import difference_of_means
from cacse_trainer.evaluation.dev_sets import Answers, Retrieval
from cacse_trainer.settings.precision import bf16_is_fast
from cacse_trainer.settings.recipes import parse_run
from cacse_trainer.settings.resources import resolve_resource

TIMED = 8
PARTS = {
    "without averaging with the start": ["--shares", "1"],
    "random batches": ["--batch_neighbours", "1"],
    "titles alone": ["--rows", "title=1"],
    "three mined negatives": ["--mined_negatives", "3"],
    "a guide": ["--guide", "start"],
    "Matryoshka": ["--matryoshka_dims", "384", "192", "96"],
}
HANDBOOK = ["--title_column", "in_plain_words", "--body_column", "sentence"]


def ours(
    settings: argparse.Namespace, seed: int, folder: Path, more: Sequence[str] = ()
) -> tuple[Path, dict[str, Any]]:
    """The adapted encoder's folder, whether or not its verdict recommends it, and what it tells. Done once.

    Raises:
        SystemExit: the folder holds a run of other settings.
    """
    told = folder / "adaptation.json"
    words = ["--config", settings.config, "--text", settings.text, "--model", settings.model]
    words += ["--max_steps", str(settings.steps)] if settings.budget is None else ["--budget", str(settings.budget)]
    words += ["--seed", str(seed), "--output_dir", str(folder), "--disable_tqdm", "true"]
    parsed = parse_run(parser(), [*words, *settings.more, *more])
    if not told.is_file():
        adapt(*parsed.groups, parsed)
    found = json.loads(told.read_text(encoding="utf-8"))
    if found["command"] != parsed.command:
        raise SystemExit(f"{folder} holds an adaptation by other settings; choose another --folder, or delete it")
    facts = {"minutes": found["wall_seconds"] / 60, "steps": found["plan"]["steps"], "share": found["share"]}
    facts |= {"verdict": found["verdict"]["sentence"], "watched": found["watched"]}
    return folder / found["encoder"], facts


def peer(settings: argparse.Namespace, seed: int, rate: float, steps: int | None, folder: Path) -> tuple[str, float]:
    """sentence-transformers' trainer; returns the folder of its model and the seconds of its training."""
    documents, _ = load_documents([resolve_resource(settings.text)], **columns(settings))
    held_out = titles_of(folder.parent)
    documents = [document for document in documents if document.title not in held_out]
    count = (steps or TIMED) * settings.batch
    rows = draw_rows(passages_of(documents), {"title": 1.0}, count, settings.batch, seed)
    model = SentenceTransformer(resolve_resource(settings.model), device=settings.device)
    model.max_seq_length = settings.length
    texts = [row.anchor for row in rows], [row.positive for row in rows]
    how = {"steps": steps or TIMED, "batch": settings.batch, "rate": rate, "seed": seed, "device": settings.device}
    seconds = train_mnrl(model, *texts, folder, **how)
    model.max_seq_length = SentenceTransformer(resolve_resource(settings.model), device="cpu").max_seq_length
    model.save(str(folder))
    return str(folder), seconds


def titles_of(adapted: Path) -> set[str]:
    """The queries that adapt holds out, so that its peer does not train on them either."""
    return {
        json.loads(line)["text"]
        for part in ("dev", "test")
        for line in (adapted / "ours" / part / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    }


def columns(settings: argparse.Namespace) -> dict[str, Any]:
    """How the peer's documents are read: as adapt's."""
    given = dict(zip(settings.more[::2], settings.more[1::2], strict=True))
    return {name: given.get(f"--{name}") for name in ("title_column", "body_column")}


def read(path: str | Path, judge: Retrieval) -> Answers:
    """An encoder's answers, in bfloat16 where that is faster here."""
    return judge.read(SentenceEncoder(path, compute="bf16" if bf16_is_fast() else "float32").embedder)


def by_parts(
    settings: argparse.Namespace, judge: Retrieval, place: Path, whole: dict[int, Answers], steps: int
) -> list[dict[str, Any]]:
    """Run adapt with each part changed, every seed; print and return what that makes of the queries' scores."""
    lines: list[dict[str, Any]] = []
    settings = argparse.Namespace(**{**vars(settings), "budget": None, "steps": steps})
    for name, more in PARTS.items():
        folder = place / name.replace(" ", "_")
        found = {seed: read(ours(settings, seed, folder / f"seed-{seed}", more)[0], judge) for seed in whole}
        pairs = [(whole[seed].values, found[seed].values) for seed in whole]
        change = difference_of_means(name, *(np.concatenate(side) for side in zip(*pairs, strict=True)))
        lines.append({"part": name, "seeds": len(whole), "change": [change.difference, change.low, change.high]})
        print(json.dumps(lines[-1]), flush=True)
    return lines


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--text", default="sample:handbook.csv")
    made.add_argument("--queries", help="of a retrieval set, see evaluate --dev_file; default: adapt's own test part")
    made.add_argument("--model", default=MINILM)
    made.add_argument("--config", default=DEFAULT_RECIPE)
    made.add_argument("--budget", type=float, help="minutes for each; default: --steps")
    made.add_argument("--steps", type=int, default=10)
    made.add_argument("--seeds", type=int, nargs="+", default=[1])
    made.add_argument("--rates", type=float, nargs="*", default=[2e-5], help="of the peer; none: it is left out")
    made.add_argument("--batch", type=int, default=64, help="of the peer")
    made.add_argument("--length", type=int, default=64, help="of the peer, in training")
    made.add_argument("--parts", action="store_true", help="what each part adds; needs --queries")
    made.add_argument("--device", default="cpu")
    made.add_argument("--folder", type=Path, help="where the runs stay; default: nowhere")
    made.add_argument("--output", type=Path)
    settings, more = made.parse_known_args()
    settings.more = more or (HANDBOOK if settings.text == "sample:handbook.csv" else [])
    if settings.parts and settings.queries is None:
        made.error("--parts compares by queries that stay the same: name them with --queries")
    quiet()
    place = settings.folder or Path(tempfile.mkdtemp())
    runs: list[dict[str, Any]] = []
    whole: dict[int, Answers] = {}
    rate, start = settings.rates[0] if settings.rates else None, None
    for seed in settings.seeds:
        folder = place / f"seed-{seed}"
        encoder, facts = ours(settings, seed, folder / "ours")
        judge = Retrieval(load_retrieval(settings.queries or folder / "ours" / "test"))
        if start is None or settings.queries is None:
            start = read(resolve_resource(settings.model), judge)
        whole[seed] = adapted = read(encoder, judge)
        gain = difference_of_means("gain", start.values, adapted.values)
        run: dict[str, Any] = {"seed": seed, **facts, "start": start.scores, "ours": adapted.scores}
        run |= {"gain": [gain.difference, gain.low, gain.high]}
        if rate is not None:
            steps = settings.steps
            if settings.budget is not None:
                steps = int(60 * settings.budget / (peer(settings, seed, rate, None, folder / "timed")[1] / TIMED))
            if len(settings.rates) > 1 and seed == settings.seeds[0]:  # chosen once, by adapt's dev part
                dev = Retrieval(load_retrieval(folder / "ours" / "dev"))
                tried = {one: peer(settings, seed, one, steps, folder / f"peer-{one:g}")[0] for one in settings.rates}
                scored = {one: read(path, dev).scores[dev.metric] for one, path in tried.items()}
                rate = max(scored, key=lambda one: scored[one])
                run["peer_rates"] = {f"{one:g}": score for one, score in scored.items()}
            made_by_peer, seconds = peer(settings, seed, rate, steps, folder / "peer")
            other = read(made_by_peer, judge)
            found = difference_of_means("over the peer", other.values, adapted.values)
            run |= {"peer": other.scores, "peer_rate": rate, "peer_steps": steps, "peer_minutes": seconds / 60}
            run["over_peer"] = [found.difference, found.low, found.high]
        runs.append(run)
        print(json.dumps(run), flush=True)
    parts = by_parts(settings, judge, place, whole, runs[0]["steps"]) if settings.parts else []
    if settings.folder is None:
        shutil.rmtree(place)
    gains, metric = [run["gain"][0] for run in runs], Retrieval.metric
    print(f"gain in {metric}: mean {np.mean(gains):+.2f} of {len(runs)} seeds, {min(gains):+.2f} to {max(gains):+.2f}")
    names = ("start", "peer", "ours")
    bars = {str(run["seed"]): {name: run[name][metric] for name in names if name in run} for run in runs}
    save(settings.output, {"runs": runs, "parts": parts, "settings": vars(settings)}, bars, metric)


if __name__ == "__main__":
    main()
