"""After the training: the share of it that is kept, the verdict, the encoder's folder, the report."""

import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cacse_trainer.adaptation.averaging import SHARES, Averaging, can_be_averaged
from cacse_trainer.adaptation.plan import BETTER, DEV, GENERAL, NOT_BETTER, STATIC, TEST, TRAINING, Plan
from cacse_trainer.adaptation.report import card_section, write_report
from cacse_trainer.adaptation.verdict import HELPED, Contender, Verdict, bm25, judge, pace_of, truncations
from cacse_trainer.compute.half import keep_copies
from cacse_trainer.data.documents import Counts
from cacse_trainer.data.retrieval import RetrievalSet
from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.encoding.onnx import OnnxEncoder
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.compare import Difference
from cacse_trainer.evaluation.dev_sets import Answers, Retrieval, load_named
from cacse_trainer.export.onnx import export_onnx
from cacse_trainer.export.static import export_static
from cacse_trainer.files import write_text, writing_folder
from cacse_trainer.runs.folder import REPORT as TRAINED
from cacse_trainer.settings.adaptation import AdaptArguments
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments
from cacse_trainer.settings.recipes import Parsed

logger = logging.getLogger(__name__)


@dataclass
class AdaptResult:
    """What an adaptation has left.

    Args:
        folder: the output folder.
        verdict: start against result; None: only checked.
        recommended: the folder of the adapted encoder, or the start.
        facts: all of ``adaptation.json``.
    """

    folder: Path
    verdict: Verdict | None = None
    recommended: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Reading:
    """The start's answers to one of the parts.

    Args:
        embedder: by which they came, with the prompts of the run.
        answers: of each query.
        seconds: that they took.
        letters: of all that was read.
    """

    embedder: Embedder
    answers: Answers
    seconds: float
    letters: int

    def cost(self, texts: Iterable[str]) -> float:
        """Seconds in which so much text is read."""
        return self.seconds / max(1, self.letters) * sum(map(len, texts))


@dataclass
class Start:
    """The encoder that is adapted, and how it reads what chooses and what judges."""

    name: str
    encoder: SentenceEncoder
    dev: Reading
    test: Reading


def load(path: str, args: CacseTrainingArguments, trust_remote_code: bool = False) -> SentenceEncoder:
    """An encoder on the device of the run, in float32: a verdict must not hang on a precision."""
    return SentenceEncoder(path, device=args.device, trust_remote_code=trust_remote_code)


def choosing(encoder: SentenceEncoder, args: CacseTrainingArguments) -> Embedder:
    """The way by which an encoder reads what chooses: in the precision of the run, as its own evaluations are."""
    if not args.bf16:
        return encoder.embedder
    keep_copies(encoder.model)
    return replace(encoder.embedder, dtype=torch.bfloat16)


def choose(
    settings: AdaptArguments,
    start: SentenceEncoder,
    trained: SentenceEncoder,
    dev: RetrievalSet,
    args: CacseTrainingArguments,
) -> tuple[SentenceEncoder, float, dict[float, float]]:
    """The trained encoder with the chosen share of its training, that share, and what the dev part says of each.

    The smallest share is chosen that the dev part does not clearly take for worse than the best one (the 95 % interval
    of their difference holds 0): where it cannot tell them apart, that one forgets least.
    """
    wanted = settings.shares or SHARES
    if not can_be_averaged(start, trained):
        if settings.shares:
            raise UserError(f"shares: {start.name} and the trained encoder differ in more than weights; leave them out")
        return trained, 1.0, {1.0: Retrieval(dev).read(choosing(trained, args)).scores[Retrieval.metric]}
    mixture = Averaging(start, trained)
    found = {share: Retrieval(dev).read(choosing(mixture.set(share), args)) for share in wanted}
    share = smallest_of_the_best(Retrieval(dev), found)
    return mixture.set(share), share, {one: answers.scores[Retrieval.metric] for one, answers in found.items()}


def smallest_of_the_best(dev: Retrieval, found: Mapping[float, Answers]) -> float:
    """The smallest share whose answers are not clearly worse than the best share's."""
    best = max(found, key=lambda share: (found[share].scores[dev.metric], -share))
    return next(
        share
        for share in sorted(found)
        if share == best or not _is_worse(dev.difference("", found[share], found[best]))
    )


def _is_worse(found: Difference) -> bool:
    return found.low is not None and found.low > 0


def watched_files(folder: Path, data_args: DataArguments) -> list[str]:
    """The sets that are scored beside the dev part, ``name=path`` each: general pairs, and those of the user."""
    return [f"general={folder / GENERAL}", *(data_args.dev_file or [])]


def watched(folder: Path, data_args: DataArguments, *encoders: Embedder) -> dict[str, list[float]]:
    """The score of each encoder on what is watched."""
    sets = load_named(watched_files(folder, data_args), "dev_file")
    return {name: [one.read(encoder).scores[one.metric] for encoder in encoders] for name, one in sets.items()}


def write_encoder(folder: Path, name: str, encoder: SentenceEncoder) -> None:
    """The encoder's folder: the training's export with these weights."""
    with writing_folder(folder / name) as staged:
        shutil.copytree(folder / TRAINING / "export" / "encoder", staged, dirs_exist_ok=True)
        encoder.model.save_pretrained(staged)


def write_card(card: Path, facts: dict[str, Any]) -> None:
    """Put the verdict in the place of the card's scores."""
    text = card.read_text(encoding="utf-8")
    begin, end = text.index("## Scores"), text.index("## Training")
    write_text(card, f"{text[:begin]}## On held-out queries\n\n{card_section(facts)}\n\n{text[end:]}")


def other_forms(
    settings: AdaptArguments,
    folder: Path,
    name: str,
    encoder: SentenceEncoder,
    test: RetrievalSet,
    texts: Sequence[str],
) -> list[Contender]:
    """The encoder as ONNX graphs and as a static table, where they are asked for, on the test part."""
    made: list[tuple[str, BaseEncoder, Path]] = []
    if settings.onnx:
        export_onnx(folder / name)
        for backend, graph in OnnxEncoder.graphs.items():
            one = OnnxEncoder(folder / name, backend)
            made.append((f"adapted, {backend.replace('_', ' ')}", one, folder / name / "onnx" / graph))
    if settings.static:
        export_static(encoder, folder / STATIC, text=texts)
        made.append(("adapted, static table", SentenceEncoder(folder / STATIC), folder / STATIC / "model.safetensors"))
    return [
        Contender(what, Retrieval(test).read(one.embedder).scores, pace_of(one.encode, test), path.stat().st_size / 1e6)
        for what, one, path in made
    ]


def weights_mb(encoder: SentenceEncoder) -> float:
    """Size of an encoder's weights in float32."""
    return sum(tensor.numel() for tensor in encoder.model.state_dict().values()) * 4 / 1e6


def finish(
    folder: Path,
    settings: AdaptArguments,
    groups: tuple[Any, Any, Any],
    parsed: Parsed,
    sets: dict[str, RetrievalSet],
    start: Start,
    plan: Plan,
    counts: Counts,
    texts: Sequence[str],
    begun: float,
) -> AdaptResult:
    """Choose the share, judge, write the encoder, its other forms and the report.

    Args:
        texts: the passages that were trained on, by whose words a static table is weighted.
    """
    model_args, data_args, args = groups
    trained = load(str(folder / TRAINING / "export" / "encoder"), args, model_args.trust_remote_code)
    encoder, share, shares = choose(settings, start.encoder, trained, sets[DEV], args)
    test = Retrieval(sets[TEST])
    answers = test.read(encoder.embedder)
    found = judge(sets[TEST], start.test.answers, answers)
    logger.info("%s", found.sentence)
    name = BETTER if found.outcome == HELPED else NOT_BETTER
    forms = [
        Contender(
            f"the start, {start.name}",
            start.test.answers.scores,
            pace_of(start.encoder.encode, sets[TEST]),
            weights_mb(start.encoder),
        ),
        bm25(sets[TEST]),
        Contender("adapted", answers.scores, pace_of(encoder.encode, sets[TEST]), weights_mb(encoder)),
        *truncations(encoder, sets[TEST], model_args.matryoshka_dims or []),
    ]
    write_encoder(folder, name, encoder)
    forms += other_forms(settings, folder, name, encoder, sets[TEST], texts)
    words = bm25(sets[DEV])
    report = json.loads((folder / TRAINING / TRAINED).read_text(encoding="utf-8"))
    facts = {
        "verdict": found.as_dict(),
        "recommended": str(folder / name) if name == BETTER else start.name,
        "encoder": name,
        "share": share,
        "shares": {f"{one:g}": score for one, score in shares.items()},
        "forms": [asdict(one) for one in forms if one is not None],
        "watched": watched(folder, data_args, start.test.embedder, encoder.embedder),
        "documents": asdict(counts),
        "plan": plan.as_dict(),
        "training": {name: report[name] for name in ("steps", "best_step")},
        "start": {
            "name": start.name,
            "pooling": start.encoder.pooling,
            "dev": start.dev.answers.scores,
            "test": start.test.answers.scores,
        },
        "dev": {
            "queries": len(sets[DEV].queries),
            "documents": len(sets[DEV].documents),
            "bm25": None if words is None else words.scores,
        },
        "test": {"queries": len(sets[TEST].queries), "documents": len(sets[TEST].documents)},
        "wall_seconds": time.monotonic() - begun,
        "command": parsed.command,
        "settings": {name: value for group in parsed.groups[:1] for name, value in vars(group).items()},
    }
    write_card(folder / name / "README.md", facts)
    write_report(folder, facts, report)
    return AdaptResult(folder, found, str(facts["recommended"]), facts)
