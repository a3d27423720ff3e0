"""Sentence pairs and their scores as an instruction data set in Alpaca form (instruction, input, output).

The scores are those of a sentence encoder, whose knowledge the data set so carries, or the gold ones for comparison.
Source: the last part of the CACSE release's description, which names STS-B and SICK-R and Alpaca's form; how scores are
scaled and written is not published, so that all of it is a setting.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import senteval
from datasets import Dataset
from senteval.sts import SICK_FILES, STS_BENCHMARK_FILES

from cacse_trainer.data import load_pairs
from cacse_trainer.data.readers import json_records
from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.sts import correlations, cosines
from cacse_trainer.files import write_json, writing
from cacse_trainer.instruct.arguments import InstructDataArguments
from cacse_trainer.instruct.prompts import Record
from cacse_trainer.settings.resources import nearest, resolve_resource

TRAIN, VALIDATION, FACTS = "train.jsonl", "validation.jsonl", "data.json"

NAMED = {
    "stsb": ("STSBenchmark", STS_BENCHMARK_FILES, (0.0, 5.0)),
    "sickr": ("SICKRelatedness", SICK_FILES, (1.0, 5.0)),
}
"""SentEval's task, its files by part, and the range of its gold scores."""


class PairSource(NamedTuple):
    """Where one set of pairs comes from: the files of its parts, and the lowest and highest gold score.

    Without a file for validation a share of the training pairs is held out.
    """

    name: str
    train: str
    validation: str | None
    gold_range: tuple[float, float]


def pair_sources(args: InstructDataArguments) -> list[PairSource]:
    """The files of ``pairs``.

    Raises:
        UserError: an unknown name, a name given twice, or a file that is not there.
    """
    if not args.pairs:
        raise UserError(f"pairs: give {', '.join(NAMED)} or name=path")
    sources: list[PairSource] = []
    for entry in args.pairs:
        name, is_file, path = entry.partition("=")
        if name in [source.name for source in sources]:
            raise UserError(f"pairs: {name} is given twice")
        if is_file:
            sources.append(PairSource(name, resolve_resource(path), None, (args.gold_range[0], args.gold_range[1])))
            continue
        if name not in NAMED:
            raise UserError(f"pairs {name!r}: give {', '.join(NAMED)} or name=path{nearest(name, list(NAMED))}")
        task, files, gold_range = NAMED[name]
        spec = senteval.task_spec(task)
        train, validation = (Path(args.data_dir) / spec.folder / files[part] for part in ("train", "dev"))
        missing = next((file for file in (train, validation) if not file.is_file()), None)
        if missing is not None:
            raise UserError(
                f"pairs {name}: no file {missing}; fetch it with bash {spec.script}, or point data_dir to SentEval's "
                "data folder"
            )
        sources.append(PairSource(name, str(train), str(validation), gold_range))
    return sources


def read_parts(source: PairSource, share: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """The pairs for training and for validation.

    Of a source without a part of its own for validation a ``share`` is held out, drawn by the seed; of 0 none.

    Raises:
        UserError: a file is wrong, or the share leaves one side empty.
    """
    pairs = load_pairs(source.train, score_range=source.gold_range)
    if source.validation is not None:
        return pairs, load_pairs(source.validation, score_range=source.gold_range)
    if share == 0:
        return pairs, None
    held_out = round(share * len(pairs))
    if not 0 < held_out < len(pairs):
        raise UserError(f"pairs {source.name}: validation_share {share:g} of {len(pairs)} pairs leaves one side empty")
    order = np.random.default_rng(seed).permutation(len(pairs))
    return pairs.select(sorted(order[held_out:])), pairs.select(sorted(order[:held_out]))


def rescale(values: np.ndarray, source: Sequence[float], target: Sequence[float]) -> np.ndarray:
    """Linear from one range to another, cut off at its ends.

    ``low' + (high' − low') · min(1, max(0, (x − low) / (high − low)))``

    Args:
        values: (n,).
        source: (low, high).
        target: (low', high').

    >>> rescale(np.array([-0.1, 0.0, 0.5, 1.0]), (0, 1), (0, 5))
    array([0. , 0. , 2.5, 5. ])
    """
    share = np.clip((np.asarray(values, dtype=np.float64) - source[0]) / (source[1] - source[0]), 0.0, 1.0)
    return target[0] + (target[1] - target[0]) * share


def make_records(pairs: Dataset, scores: np.ndarray, args: InstructDataArguments) -> list[Record]:
    """One record a pair.

    Args:
        pairs: columns sentence1, sentence2.
        scores: (n,), in ``score_range``.
        args: the three texts, and how a score is written.

    Raises:
        UserError: a text names a field that there is not, or leaves out a sentence or the score.
    """
    low, high = (f"{end:g}" for end in args.score_range)
    instruction = _filled("instruction", args.instruction, {"low": low, "high": high}, ())
    records = []
    for first, second, score in zip(pairs["sentence1"], pairs["sentence2"], scores, strict=True):
        sentences = {"sentence1": first, "sentence2": second}
        written = {"score": f"{score:.{args.score_decimals}f}"}
        records.append(
            {
                "instruction": instruction,
                "input": _filled("input_format", args.input_format, sentences, tuple(sentences)),
                "output": _filled("output_format", args.output_format, written, ("score",)),
            }
        )
    return records


def _filled(name: str, form: str, fields: dict[str, str], required: Iterable[str]) -> str:
    for field in required:
        if f"{{{field}}}" not in form:
            raise UserError(f"{name} {form!r}: must contain {{{field}}}")
    try:
        return form.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{field}}}" for field in fields)
        raise UserError(f"{name} {form!r}: only {known} may stand in braces; write others as {{{{ }}}}") from error


def build_dataset(args: InstructDataArguments, folder: Path, seed: int) -> dict[str, Any]:
    """Read, score and write the data set: ``train.jsonl``, ``validation.jsonl``, and ``data.json`` last.

    Args:
        args: see `InstructDataArguments`.
        folder: is made.
        seed: of the held-out pairs, and of the order of the training records.

    Returns:
        What ``data.json`` holds: counts, scores and their correlation with gold by set and part, settings.

    Raises:
        UserError: wrong pairs, texts or encoder.
    """
    sources = pair_sources(args)
    parts = [(source, *read_parts(source, args.validation_share, seed)) for source in sources]
    make_records(parts[0][1].select([0]), np.zeros(1), args)  # wrong texts are told before the encoder runs
    encoder = None
    if args.scores == "encoder":
        if args.encoder is None:
            raise UserError("scores: encoder needs an encoder: give encoder, in a recipe or as --encoder DIR")
        encoder = SentenceEncoder(args.encoder, args.encoder_pooling, adapter=args.encoder_adapter)
    written: dict[str, list[Record]] = {TRAIN: [], VALIDATION: []}
    facts: dict[str, Any] = {}
    for source, train, validation in parts:
        for file, pairs in ((TRAIN, train), (VALIDATION, validation)):
            if pairs is None:
                continue
            values = gold = np.asarray(pairs["score"], dtype=np.float64)
            if encoder is not None:
                texts = [*pairs["sentence1"], *pairs["sentence2"]]
                both = encoder.vectors(texts, description=f"Scoring {source.name}")
                values = cosines(both[: len(pairs)], both[len(pairs) :])
            found = rescale(values, source.gold_range if encoder is None else args.cosine_range, args.score_range)
            records = make_records(pairs, found, args)
            facts.setdefault(source.name, {})[Path(file).stem] = _described(records, found, gold)
            written[file] += records
    seen = {record["input"] for record in written[TRAIN]}
    order = np.random.default_rng(seed).permutation(len(written[TRAIN]))
    written[TRAIN] = [written[TRAIN][i] for i in order]
    folder.mkdir(parents=True, exist_ok=True)
    for file, records in written.items():
        write_records(folder / file, records)
    used = None
    if encoder is not None:
        used = {"name": args.encoder, "pooling": encoder.pooling, "fingerprint": encoder.fingerprint()}
    report = {
        "records": {Path(file).stem: len(records) for file, records in written.items()},
        "validation_inputs_also_in_train": sum(record["input"] in seen for record in written[VALIDATION]),
        "sets": facts,
        "scores": args.scores,
        "encoder": used,
        "settings": {name: value for name, value in vars(args).items() if not name.startswith("encoder")},
        "seed": seed,
    }
    write_json(folder / FACTS, report)
    return report


def _described(records: list[Record], scores: np.ndarray, gold: np.ndarray) -> dict[str, Any]:
    return {
        "records": len(records),
        "distinct_outputs": len({record["output"] for record in records}),
        "mean_score": float(scores.mean()),
        "lowest_score": float(scores.min()),
        "highest_score": float(scores.max()),
        "spearman_with_gold": 100 * correlations(scores, gold)["spearman"],
    }


def write_records(path: Path, records: Iterable[Record]) -> None:
    """One JSON object a line, the file whole or not at all."""
    with writing(path) as staged, staged.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read_records(path: Path) -> list[Record]:
    """The records of a file.

    Raises:
        UserError: it is not there, or a line is no record.
    """
    if not path.is_file():
        raise UserError(f"no data set {path}; run the stage data first (--stages data)")
    records = []
    for unit, number, record in json_records(str(path)):
        if not all(isinstance(record.get(name), str) for name in ("instruction", "input", "output")):
            raise UserError(f"{path}, {unit} {number}: must be a JSON object of instruction, input and output texts")
        records.append(record)
    return records
