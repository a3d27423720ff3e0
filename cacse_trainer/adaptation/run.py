"""`adapt`: raw text → rows and held-out queries → training by a budget → a choice on one part, a verdict on the other.

OUTPUT_DIR/
  plan.json            what was decided: a second call with the same settings goes on where the first one stopped
  rows.jsonl           the rows, in the order in which they are trained
  dev/ test/           the held-out queries, as BEIR has them; general.tsv: general pairs with the start's own cosines
  training/            the run, as `cacse-trainer train` leaves it
  encoder/             the result, where it is better than the start; else encoder_not_better/
  report.html  adaptation.json
"""

import copy
import logging
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cacse_trainer.adaptation import budget
from cacse_trainer.adaptation.averaging import SHARES
from cacse_trainer.adaptation.given import given_rows
from cacse_trainer.adaptation.outcome import AdaptResult, Start, finish, load
from cacse_trainer.adaptation.parts import Parts, halves, part
from cacse_trainer.adaptation.plan import DEV, GENERAL, PLAN, ROWS, TEST, TRAINING, Plan, key_of, open_folder, read_plan
from cacse_trainer.adaptation.rows import Rows, default_shares
from cacse_trainer.data import load_sentences
from cacse_trainer.data.documents import Document, load_documents
from cacse_trainer.data.retrieval import RetrievalSet, load_retrieval, save_retrieval
from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.dev_sets import Retrieval
from cacse_trainer.files import write_json, write_text
from cacse_trainer.runs.baseline import take_stated_pooling
from cacse_trainer.runs.folder import REPORT as TRAINED
from cacse_trainer.runs.train import train
from cacse_trainer.settings.adaptation import AdaptArguments
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.settings.recipes import Parsed
from cacse_trainer.settings.resources import public_name, resolve_resource
from cacse_trainer.training.checkpoints import newest_whole

logger = logging.getLogger(__name__)

GENERAL_TEXT = "sample:sentences.txt"
GENERAL_PAIRS = 2000
"""Pairs of general sentences whose cosines are watched."""
DEFAULT_BUDGET = 30.0


def adapt(
    settings: AdaptArguments,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: CacseTrainingArguments,
    parsed: Parsed | None = None,
) -> AdaptResult:
    """What ``cacse-trainer adapt`` does.

    Args:
        settings: which text, rows and judges, and how long.
        model_args, data_args, args: as of a training; the text, the dev sets and the steps are chosen here.
        parsed: the command line that they come from, for the report.

    Returns:
        The verdict, and the folder that it recommends.

    Raises:
        UserError: with what to mend.
        RunError: the training failed for a known reason.
    """
    begun = time.monotonic()
    parsed = parsed or Parsed((settings, model_args, data_args, args))
    check(settings, model_args, data_args)
    take_stated_pooling(model_args)
    folder, groups = Path(str(args.output_dir)), (model_args, data_args, args)
    documents, counts = load_documents(
        [resolve_resource(place) for place in settings.text or []],
        title_column=settings.title_column,
        body_column=settings.body_column,
        txt=settings.txt,
        near_duplicates=settings.near_duplicates,
    )
    parts, sets = hold_out(settings, documents, args.seed)
    key = key_of(parsed, documents)
    with open_folder(folder, key, args):
        plan = read_plan(folder)
        start = read_start(model_args, sets, args)
        if plan is None:
            given = given_rows(settings, parts, folder, args)
            shares = settings.row_shares() or {**default_shares(parts.train), **dict.fromkeys(given, 1.0)}
            rows = Rows(parts.train, shares, args.train_batch_size * args.world_size, args.seed, given)
            plan = make_plan(key, settings, groups, rows, start, begun)
            if args.check:
                facts = {"plan": plan.as_dict(), "samples": rows.samples(), "documents": asdict(counts)}
                return AdaptResult(folder, facts=facts)
            write_parts(folder, sets, start, rows, plan, batch_of(args))
        run_training(folder, groups, parsed, plan)
        return finish(folder, settings, groups, parsed, sets, start, plan, counts, begun)


def check(settings: AdaptArguments, model_args: ModelArguments, data_args: DataArguments) -> None:
    """Refuse settings that have no meaning here.

    Raises:
        UserError: with what to give instead.
    """
    if not settings.text:
        raise UserError("no text: give --text FOLDER or FILE")
    if model_args.model is None or model_args.tower_a is not None or model_args.generator is not None:
        raise UserError("adapt trains one encoder: give --model, a folder or a hub id, and no towers and no generator")
    for name in ("train_file", "text_columns", "label_column", "test_file"):
        if getattr(data_args, name) is not None:
            raise UserError(f"{name} has no effect here: rows and held-out queries are made of --text; leave it out")
    if settings.test_queries and not settings.dev_queries:
        raise UserError("test_queries judge, and something must choose: give --dev_queries, too")


def hold_out(settings: AdaptArguments, documents: list[Document], seed: int) -> tuple[Parts, dict[str, RetrievalSet]]:
    """The text's parts, and the queries that choose and judge: a user's own, else made of two parts of the text.

    Raises:
        UserError: there is nothing to make queries of.
    """
    own = settings.dev_queries is not None
    parts = part(
        documents,
        held_out=0 if own else settings.held_out,
        distractors=settings.distractors,
        words=settings.passage_words,
        seed=seed,
    )
    if settings.dev_queries is not None:
        dev = together(settings.dev_queries)
        if settings.test_queries is not None:
            return parts, {DEV: dev, TEST: together(settings.test_queries)}
        first, second = halves(dev, seed)
        return parts, {DEV: first, TEST: second}
    if parts.dev is None or parts.test is None:
        raise UserError(
            f"{', '.join(settings.text or [])}: {len(documents)} texts without titles, headings or passages of several "
            "sentences: nothing in them tells what belongs together, so nothing could be chosen or judged; give whole "
            "documents, or queries with the texts that answer them (--dev_queries)"
        )
    return parts, {DEV: parts.dev, TEST: parts.test}


def together(places: list[str]) -> RetrievalSet:
    """One retrieval set; several would need a choice between them."""
    if len(places) > 1:
        raise UserError(f"{', '.join(places)}: give one set of queries to choose by, and one to judge by")
    return load_retrieval(resolve_resource(places[0]))


def read_start(model_args: ModelArguments, sets: dict[str, RetrievalSet], args: CacseTrainingArguments) -> Start:
    """The start as its own folder states it, and its answers."""
    name = public_name(str(model_args.model))
    encoder = load(resolve_resource(str(model_args.model)), args, model_args.trust_remote_code)
    queries = len(sets[DEV].queries) + len(sets[TEST].queries)
    logger.info("reading the start, %s by %s pooling, by %d held-out queries", name, encoder.pooling, queries)
    answers, seconds = {}, {}
    for which, one in sets.items():
        begun = time.monotonic()
        answers[which] = Retrieval(one).read(encoder.embedder)
        seconds[which] = time.monotonic() - begun
    return Start(name, encoder, answers[DEV], answers[TEST], seconds[DEV], seconds[TEST])


def batch_of(args: CacseTrainingArguments) -> int:
    """Rows that a step reads, on all processes."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def make_plan(
    key: str, settings: AdaptArguments, groups: tuple[Any, Any, Any], rows: Rows, start: Start, begun: float
) -> Plan:
    """The steps: those given, else what the budget leaves here, of a small text no more than some passes.

    Raises:
        UserError: the budget leaves none.
    """
    args = groups[2]
    counts, batch = rows.counts, batch_of(args)
    most = max(budget.FEWEST_STEPS, budget.MOST_PASSES * sum(counts.values()) // batch)
    if settings.budget is None and args.max_steps > 0:
        return Plan(key, args.max_steps, None, None, counts, {})
    logger.info("timing %d steps", budget.TIMED)
    step = budget.pace(train, groups, rows.write)
    shares = len(settings.shares or SHARES)
    costs = budget.Costs(time.monotonic() - begun, step, start.dev_seconds, start.test_seconds, 0.0, shares)
    wanted = costs.steps(settings.budget or DEFAULT_BUDGET)
    steps = min(wanted, most)
    if steps < wanted:
        logger.info("%d steps are %d passes over all rows: more would learn them by heart", steps, budget.MOST_PASSES)
    return Plan(key, steps, step, costs.minutes(steps), counts, {})


def write_parts(folder: Path, sets: dict[str, RetrievalSet], start: Start, rows: Rows, plan: Plan, batch: int) -> None:
    """The rows, the held-out parts and the general pairs; the plan last, which says that they are whole."""
    (folder / PLAN).touch()  # the folder is this adaptation's, whatever falls in between
    plan.rows = rows.write(folder / ROWS, plan.steps * batch)
    for name, one in sets.items():
        save_retrieval(one, folder / name)
    write_text(folder / GENERAL, general_pairs(start.encoder))
    write_json(folder / PLAN, plan.as_dict())


def general_pairs(encoder: SentenceEncoder) -> str:
    """General sentences in pairs, with the cosine that the start gives them: what the training is to leave as it is."""
    sentences = load_sentences(resolve_resource(GENERAL_TEXT))["text"]
    draws = random.Random("general pairs")
    pairs = [draws.sample(sentences, 2) for _ in range(GENERAL_PAIRS)]
    first, second = (encoder.encode([pair[side].replace("\t", " ") for pair in pairs]) for side in (0, 1))
    lines = ["sentence1\tsentence2\tscore"]
    for pair, cosine in zip(pairs, (first * second).sum(axis=1), strict=True):
        lines.append("\t".join((*(one.replace("\t", " ") for one in pair), f"{2.5 * (1 + float(cosine)):.6f}")))
    return "\n".join(lines) + "\n"


def run_training(folder: Path, groups: tuple[Any, Any, Any], parsed: Parsed, plan: Plan) -> None:
    """Train by the plan, or go on; nothing where it is done."""
    model_args, data_args, args = (copy.copy(group) for group in groups)
    output = folder / TRAINING
    if (output / TRAINED).is_file():
        return
    data_args.train_file = str(folder / ROWS)
    watched = [f"general={folder / GENERAL}", *(data_args.dev_file or [])]
    data_args.dev_file = [f"{DEV}={folder / DEV}", *watched]
    args.output_dir, args.max_steps, args.overwrite_output_dir = str(output), plan.steps, False
    args.train_sampling_strategy = "sequential"  # the rows' own order keeps a document's apart
    args.resume_from_checkpoint = "last" if newest_whole(output) is not None else None
    args.metric_for_best_model, args.greater_is_better = f"{DEV}_{Retrieval.metric}", True
    if "eval_steps" not in parsed.given():
        args.eval_steps = args.save_steps = max(1, plan.steps // budget.EVALUATIONS)
    given = {name for group in groups for name in vars(group)}
    flags, recipe = ([name for name in names if name in given] for names in (parsed.flags, parsed.from_recipe))
    train(model_args, data_args, args, Parsed((model_args, data_args, args), parsed.recipe, flags, recipe))
