"""``cacse-trainer evaluate``: any encoder through SentEval's suites and MTEB.

cacse-trainer evaluate --model runs/cacse/export/ensemble --suite sts --data_dir SentEval/data
torchrun --nproc_per_node 4 -m cacse_trainer.cli.evaluate --model … --suite full
"""

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cacse_trainer.cli.common import OneLineParser, run
from cacse_trainer.cli.encoders import add_bf16_flag, add_decoder_flags, decoder_flags, dtype_of, join_processes
from cacse_trainer.cli.output import tell_json
from cacse_trainer.compute.distributed import rank
from cacse_trainer.data import load_sentences
from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.encoding.loading import CHOICES
from cacse_trainer.encoding.weighted import WeightedEncoders
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.contamination import TrainingText
from cacse_trainer.evaluation.results import RESULTS, ResultStore, undefined
from cacse_trainer.evaluation.senteval_suite import Scoring, check_data, run_tasks, task_names
from cacse_trainer.evaluation.tables import terminal, write_tables
from cacse_trainer.files import sha256_of
from cacse_trainer.runs.build import public_name
from cacse_trainer.settings.resources import CHECKOUT, resolve_resource

logger = logging.getLogger(__name__)

EPILOG = """examples:
  cacse-trainer evaluate --model runs/cacse/export/ensemble --suite sts
  cacse-trainer evaluate --model bert-base-uncased --pooling avg_first_last --tasks STS12 STSBenchmark MR
  cacse-trainer evaluate --model A --model B --weights 0.25 0.75 --suite sts
  cacse-trainer evaluate --model A --mteb STS12 Banking77Classification cacse-reranking
  torchrun --nproc_per_node 4 -m cacse_trainer.cli.evaluate --model A --suite full

A second call with the same output folder goes on where the first one stopped.
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = OneLineParser(
        prog="cacse-trainer evaluate", description="Score an encoder on SentEval and MTEB.", epilog=EPILOG
    )
    add = made.add_argument
    add(
        "--model",
        action="append",
        help="folder, hub id or package:NAME/FOLDER; several are summed. With --adapter: its base, by default",
    )
    add("--weights", nargs="+", type=float, help="of several models, one number each; default: 1 each")
    add("--pooling", nargs="+", help=f"{', '.join(CHOICES)}; one, or one a model. Default: what the folder states")
    add_decoder_flags(add)
    add("--suite", nargs="+", default=[], choices=["sts", "transfer", "probing", "full"], help="the papers' tables")
    add("--tasks", nargs="+", default=[], metavar="TASK", help="SentEval tasks by name, such as STS12 STSBenchmark MR")
    add(
        "--mteb",
        nargs="+",
        default=[],
        metavar="TASK",
        help="MTEB tasks or suites (cacse-sts22, …)",
    )
    add("--data_dir", help="SentEval's data folder. Default: SentEval/data, here or in the checkout")
    add("--mode", default="test", choices=["test", "dev", "fasttest"], help="classifier settings; dev: dev scores")
    add("--aggregation", default="all", choices=["all", "mean", "wmean"], help="of the subsets of STS12 to STS16")
    add("--output_dir", help="for results.json, pairs/, tables and the chart. Default: results/MODEL_POOLING")
    add("--overwrite", action="store_true", help="forget the results that are in the output folder")
    add("--skip_missing", action="store_true", help="leave out tasks whose data files are not there")
    add("--train_text", metavar="FILE", help="training text: count the evaluation sentences in it, score without them")
    add_bf16_flag(add)
    add("--device", help="cpu, cuda, cuda:1, …; default: a GPU where there is one")
    add("--max_seq_length", type=int, help="in tokens; default: what the model states")
    add("--tokens_per_batch", type=int, help="padded tokens a batch; default: by kind of device")
    add("--seed", type=int, default=1111, help="of SentEval's classifiers")
    add("--trust_remote_code", action="store_true", help="run the model code that comes with the checkpoint")
    add("--disable_tqdm", action="store_true", help="no progress bars")
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    settings = parser().parse_args(arguments)
    if settings.model is None:
        if settings.adapter is None:
            raise UserError("command line: give --model, or --adapter (cacse-trainer evaluate --help)")
        settings.model, settings.adapter = [settings.adapter], None
    names, data_dir = senteval_tasks(settings)
    mteb_chosen = mteb_tasks(settings.mteb)
    if not names and not mteb_chosen:
        raise UserError("nothing to evaluate: give --suite sts|transfer|probing|full, --tasks NAME …, or --mteb NAME …")
    if settings.tokens_per_batch is not None and settings.tokens_per_batch < 1:
        raise UserError(f"tokens_per_batch is {settings.tokens_per_batch}; it must be at least 1")
    join_processes([settings.device] if settings.device else None)
    started = time.perf_counter()
    encoder = build_encoder(settings)
    scoring = Scoring(settings.mode, settings.aggregation, settings.seed)
    store = ResultStore(
        output_folder(settings, encoder),
        model=" + ".join(public_name(name) for name in settings.model),
        pooling=encoder.pooling,
        pooling_guessed=encoder.pooling_guessed,
        settings={
            "pooling": encoder.pooling,
            "fingerprint": encoder.fingerprint(),
            **encoder.settings(),
            **vars(scoring),
        },
        overwrite=settings.overwrite,
        writes=rank() == 0,
    )
    if rank() == 0:
        logger.info("%s: pooling %s, results in %s", encoder.name, encoder.pooling, store.folder)
    progress = not settings.disable_tqdm
    if names:
        text = training_text(settings.train_text) if settings.train_text else None
        run_tasks(encoder, names, data_dir, store, scoring, training_text=text, progress=progress)
    try:
        if mteb_chosen:
            from cacse_trainer.evaluation.mteb_adapter import run_mteb

            run_mteb(encoder, mteb_chosen, store, progress=progress)
    finally:
        if rank() == 0:
            store.save()
            report(store, time.perf_counter() - started)


def senteval_tasks(settings: argparse.Namespace) -> tuple[list[str], Path]:
    """The SentEval tasks to run and the data folder.

    Raises:
        UserError: unknown names, or missing data.
    """
    names = task_names(settings.suite, settings.tasks)
    data_dir = Path(settings.data_dir) if settings.data_dir else Path("SentEval/data")
    if settings.data_dir is None and not data_dir.is_dir():
        data_dir = CHECKOUT / "SentEval" / "data"
    if not names:
        return [], data_dir
    if not data_dir.is_dir():
        raise UserError(f"data_dir {data_dir}: no such folder; it holds downstream/ and probing/")
    found = check_data(names, data_dir, settings.skip_missing)
    if not found:
        raise UserError(f"none of the tasks has its data in {data_dir}")
    return found, data_dir


def mteb_tasks(names: Sequence[str]) -> list[Any]:
    """MTEB's tasks, suites resolved; mteb is only imported where it is asked for."""
    if not names:
        return []
    from cacse_trainer.evaluation.mteb_adapter import resolve_tasks

    return resolve_tasks(names)


def build_encoder(settings: argparse.Namespace) -> BaseEncoder:
    """The model, or the weighted sum of several.

    Raises:
        UserError: another number of weights or poolings than models.
    """
    models = settings.model
    poolings = settings.pooling or [None]
    if len(poolings) not in (1, len(models)):
        raise UserError(f"pooling: {len(poolings)} for {len(models)} models; give one, or one a model")
    poolings = poolings * len(models) if len(poolings) == 1 else poolings
    if settings.weights is not None and len(settings.weights) != len(models):
        raise UserError(f"weights: {len(settings.weights)} for {len(models)} models; give one number a model")
    if settings.adapter is not None and len(models) > 1:
        raise UserError("adapter: belongs to one model; merge it first to use it in a sum")
    encoders = [
        SentenceEncoder(
            name,
            pooling,
            settings.device,
            settings.adapter,
            dtype=dtype_of(settings, settings.device),
            max_seq_length=settings.max_seq_length,
            tokens_per_batch=settings.tokens_per_batch,
            trust_remote_code=settings.trust_remote_code,
            **decoder_flags(settings),
        )
        for name, pooling in zip(models, poolings, strict=True)
    ]
    if len(encoders) == 1 and settings.weights is None:
        return encoders[0]
    return WeightedEncoders(encoders, settings.weights)


def output_folder(settings: argparse.Namespace, encoder: BaseEncoder) -> Path:
    """The folder that was asked for, or one named after model and pooling.

    Raises:
        UserError: it cannot be written.
    """
    named = "+".join(public_name(name).replace("/", "_").replace(":", "_") for name in settings.model)
    mode = "" if settings.mode == "test" else f"_{settings.mode}"
    folder = Path(settings.output_dir or f"results/{named}_{encoder.pooling.replace(' ', '')}{mode}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {folder} cannot be written: {error.strerror}") from error
    return folder


def training_text(name: str) -> TrainingText:
    """The training text, its sentences of all columns, read as they are needed."""
    source = resolve_resource(name)
    digest = sha256_of(Path(source)) if Path(source).is_file() else None  # a hub data set is known by its name
    rows = load_sentences(source, streaming=True)

    def sentences() -> Iterator[str]:
        for row in rows:
            yield from (text for text in row.values() if isinstance(text, str))

    return TrainingText(public_name(source), digest, sentences())


def report(store: ResultStore, seconds: float) -> None:
    """Print the tables and write them beside ``results.json``."""
    results = store.contents()
    write_tables(store.folder, results)
    print(terminal(results))
    contaminated: dict[str, Any] = {name: e["contamination"] for name, e in store.tasks.items() if "contamination" in e}
    if contaminated:
        print("\nevaluation sentences in the training text, and the score without them")
        for name, told in contaminated.items():
            share = 100 * told["occurring"] / max(1, told["sentences"])
            rest = told.get("score_without")
            more = f"; {rest:.2f} on the other {told['n_without']}" if rest is not None else ""
            print(f"  {name}: {told['occurring']} of {told['sentences']} ({share:.1f} %){more}")
    if names := undefined(store.tasks):
        logger.warning("undefined scores (constant similarities): %s", ", ".join(names))
    print(f"\n{store.folder / RESULTS}   ({seconds:.0f} s)")
    tell_json({"output_dir": str(store.folder), **results})


if __name__ == "__main__":
    sys.exit(run(main))
