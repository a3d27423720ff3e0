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
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cacse_trainer.adaptation import budget
from cacse_trainer.adaptation.averaging import SHARES
from cacse_trainer.adaptation.general import GENERAL_PAIRS, general_pairs, general_sentences
from cacse_trainer.adaptation.given import given_kinds, given_rows
from cacse_trainer.adaptation.negatives import JUDGED, check_judge, judge_of, learns_scores, miner, seconds_a_pair
from cacse_trainer.adaptation.outcome import AdaptResult, Reading, Start, choosing, finish, load, watched_files
from cacse_trainer.adaptation.parts import Parts, Size, halves, part, sizes, untitled, without
from cacse_trainer.adaptation.plan import DEV, GENERAL, PLAN, ROWS, TEST, TRAINING, Plan, key_of, open_folder, read_plan
from cacse_trainer.adaptation.rows import Rows, of_sentences_alone, shares_of
from cacse_trainer.data.documents import Document, load_documents
from cacse_trainer.data.retrieval import RetrievalSet, load_retrieval, save_retrieval
from cacse_trainer.encoding.loading import check_folder
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.dev_sets import Retrieval
from cacse_trainer.files import write_json, write_text
from cacse_trainer.runs.baseline import take_stated_pooling, take_stated_prompts
from cacse_trainer.runs.build import check_start
from cacse_trainer.runs.folder import REPORT as TRAINED
from cacse_trainer.runs.train import train
from cacse_trainer.settings.adaptation import AdaptArguments
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.settings.recipes import Parsed
from cacse_trainer.settings.resources import public_name, resolve_resource
from cacse_trainer.training import automatic
from cacse_trainer.training.checkpoints import newest_whole

logger = logging.getLogger(__name__)

STATIC_COST = 10_000
"""Passages in whose time a static table is made."""
BATCH_NEIGHBOURS = 32
"""Rows of near anchors that stand together, where these are titles, headings, questions or a user's own."""
DRAWN = 256
"""Rows by whose anchors the cost of seeking their neighbours is told."""
DEFAULT_BUDGET = 30.0
INSTEAD = {
    "push_to_hub": "the verdict stands at the end; push the folder that it recommends then",
    "num_train_epochs": "give --budget MINUTES, or --max_steps",
    "metric_for_best_model": "nDCG@10 on the dev part chooses; leave it out",
    "do_train": "adapt always trains; cacse-trainer evaluate scores an encoder",
    "do_eval": "the dev part chooses; leave it out",
    "held_out_rows": "parts of the text are held out anyway; --held_out says how many documents",
    "teachers": "they rank single sentences, and rows here are pairs; cacse-trainer train learns from them",
    "train_sampling_strategy": "the rows are drawn and mixed already; leave it out",
}
"""Settings of a training that adapt sets itself, and what to do instead."""


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
    check(settings, model_args, data_args, args, parsed)
    take_stated_pooling(model_args)
    take_stated_prompts(data_args, [str(model_args.model)])
    folder, groups = Path(str(args.output_dir)), (model_args, data_args, args)
    documents, counts = load_documents(
        [resolve_resource(place) for place in settings.text or []],
        title_column=settings.title_column,
        body_column=settings.body_column,
        txt=settings.txt,
        near_duplicates=settings.near_duplicates,
        leave_out=folder,
    )
    parts, sets = hold_out(settings, documents, args)
    shares = shares_of(parts.train, settings.row_shares(), given_kinds(settings))
    limit_rate(settings, args, parsed, shares)
    key = key_of(parsed, documents, sets)
    automatic.choose(args)  # what chooses is read as the training's evaluations read it
    with open_folder(folder, key, args):
        plan = None if args.check else read_plan(folder)
        start = read_start(model_args, data_args, sets, args)
        if plan is None:
            given = given_rows(settings, parts, folder, args)
            rows = Rows(parts.train, shares, args.train_batch_size * args.world_size, args.seed, given)
            plan = make_plan(key, settings, groups, rows, start, begun)
            if args.check:
                facts = {"plan": plan.as_dict(), "samples": rows.samples(), "documents": asdict(counts)}
                return AdaptResult(folder, facts=facts)
            write_parts(folder, sets, start, rows, plan, settings, groups)
        run_training(folder, groups, parsed, plan)
        return finish(
            folder,
            settings,
            groups,
            parsed,
            sets,
            start,
            plan,
            counts,
            [passage.text for passage in parts.train],
            begun,
        )


def check(
    settings: AdaptArguments,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: CacseTrainingArguments,
    parsed: Parsed,
) -> None:
    """Refuse settings that have no meaning here.

    Raises:
        UserError: with what to give instead.
    """
    if args.world_size > 1:
        raise UserError(f"adapt runs as one process, on one device, and this is one of {args.world_size}")
    if not settings.text:
        raise UserError("no text: give --text FOLDER or FILE")
    if model_args.model is None or model_args.tower_a is not None or model_args.generator is not None:
        raise UserError("adapt trains one encoder: give --model, a folder or a hub id, and no towers and no generator")
    for name in ("train_file", "text_columns", "label_column", "test_file"):
        if getattr(data_args, name) is not None:
            raise UserError(f"{name} has no effect here: rows and held-out queries are made of --text; leave it out")
    if data_args.evaluation == "none" or args.eval_strategy == "no":
        raise UserError("adapt chooses by its dev part: leave evaluation and eval_strategy as they are")
    if not args.export or args.save_strategy == "no":
        raise UserError("adapt judges what its training exports and saves: leave export and save_strategy as they are")
    if settings.budget is not None and args.max_steps > 0:
        raise UserError("budget and max_steps both tell how long to train: give one of them")
    if args.resume_from_checkpoint not in (None, "last"):
        raise UserError("resume_from_checkpoint: a second call goes on by itself, from the last one; leave it out")
    for name, instead in INSTEAD.items():
        if name in parsed.given():
            raise UserError(f"{name} has no effect here: {instead}")
    check_folder(str(model_args.model), resolve_resource(str(model_args.model)))
    check_start(
        str(model_args.model), "model", model_args.trust_remote_code
    )  # as the training does, before anything long
    check_judge(settings, model_args)
    check_places(settings, model_args, args)
    general_sentences(settings.general_text)  # before anything long
    if settings.test_queries and not settings.dev_queries:
        raise UserError("test_queries judge, and something must choose: give --dev_queries, too")


def check_places(settings: AdaptArguments, model_args: ModelArguments, args: CacseTrainingArguments) -> None:
    """Refuse an output folder that holds what is read: it is written to, and cleared to start anew.

    Raises:
        UserError: with what is in it.
    """
    folder = Path(str(args.output_dir)).resolve()
    read: dict[str, list[str | None]] = {"text": [*(settings.text or [])], "model": [model_args.model]}
    read |= {"dev_queries": [*(settings.dev_queries or [])], "test_queries": [*(settings.test_queries or [])]}
    read |= {"pairs_file": [settings.pairs_file], "question_prompt": [settings.question_prompt]}
    for name, places in read.items():
        for place in filter(None, places):
            path = Path(resolve_resource(place)).expanduser()
            if path.exists() and path.resolve().is_relative_to(folder):
                raise UserError(f"output_dir {args.output_dir} holds what {name} names, {place}; choose another folder")


def minutes_of(settings: AdaptArguments, args: CacseTrainingArguments) -> float | None:
    """For all of it; None: the steps are given."""
    return None if args.max_steps > 0 else settings.budget or DEFAULT_BUDGET


def limit_rate(
    settings: AdaptArguments, args: CacseTrainingArguments, parsed: Parsed, shares: Mapping[str, float]
) -> None:
    """Train rows of sentences alone at no higher rate than theirs, unless flags ask for one."""
    rate = settings.sentence_learning_rate
    overruled = "learning_rate" in parsed.flags and "sentence_learning_rate" not in parsed.flags
    if args.learning_rate > rate and not overruled and of_sentences_alone(shares):
        logger.info("all rows are made of sentences: learning rate %g instead of %g", rate, args.learning_rate)
        args.learning_rate = rate


def neighbours_of(settings: AdaptArguments, shares: Mapping[str, float]) -> int:
    """Rows of near anchors that stand together in a batch: those given, else by what the rows are made of."""
    if settings.batch_neighbours is not None:
        return settings.batch_neighbours
    return 1 if of_sentences_alone(shares) else BATCH_NEIGHBOURS


def hold_out(
    settings: AdaptArguments, documents: list[Document], args: CacseTrainingArguments
) -> tuple[Parts, dict[str, RetrievalSet]]:
    """The text's parts, and the queries that choose and judge: a user's own, else made of two parts of the text.

    Raises:
        UserError: there is nothing to make queries of.
    """
    most = sizes(settings.held_out, settings.distractors, minutes_of(settings, args))
    if settings.dev_queries is not None:
        most = Size(0, 0), Size(0, 0)
    parts = part(documents, most=most, words=settings.passage_words, seed=args.seed)
    if settings.dev_queries is not None:
        dev = together(settings.dev_queries)
        if settings.test_queries is not None:
            test = together(settings.test_queries)
            dev = without(dev, test)
        else:
            dev, test = halves(dev, args.seed)
        train, told = untitled(parts.train, [*dev.queries, *test.queries])
        if told:
            logger.warning(
                "%d passages have a dev or test query as their title or heading, which would give the answers away: "
                "no rows are made of these",
                told,
            )
        return replace(parts, train=train), {DEV: dev, TEST: test}
    if parts.dev is None or parts.test is None:
        raise UserError(
            f"{', '.join(settings.text or [])}: {len(documents)} texts without titles, headings or passages of several "
            "sentences: nothing in them tells what belongs together, so nothing could be chosen or judged; give whole "
            "documents, or queries with the texts that answer them (--dev_queries); single sentences train "
            "without being judged: cacse-trainer train --train_file FILE"
        )
    return parts, {DEV: parts.dev, TEST: parts.test}


def together(places: list[str]) -> RetrievalSet:
    """One retrieval set; several would need a choice between them."""
    if len(places) > 1:
        raise UserError(f"{', '.join(places)}: give one set of queries to choose by, and one to judge by")
    return load_retrieval(resolve_resource(places[0]))


def read_start(
    model_args: ModelArguments, data_args: DataArguments, sets: dict[str, RetrievalSet], args: CacseTrainingArguments
) -> Start:
    """The start as its own folder states it, and its answers."""
    name = public_name(str(model_args.model))
    encoder = load(resolve_resource(str(model_args.model)), args, model_args.trust_remote_code)
    queries = len(sets[DEV].queries) + len(sets[TEST].queries)
    logger.info("reading the start, %s by %s pooling, by %d held-out queries", name, encoder.pooling, queries)
    query, document = data_args.query_prompt or "", data_args.document_prompt or ""
    found = {}
    for which, embedder in ((DEV, choosing(encoder, args)), (TEST, encoder.embedder)):
        begun, one = time.monotonic(), sets[which]
        embedder = replace(embedder, query_prompt=query, document_prompt=document)
        answers = Retrieval(one).read(embedder)
        letters = sum(map(len, (*one.queries, *one.documents)))
        found[which] = Reading(embedder, answers, time.monotonic() - begun, letters)
    return Start(name, encoder, found[DEV], found[TEST])


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
    minutes = minutes_of(settings, args)
    if minutes is None:
        return Plan(key, args.max_steps, None, None, counts, {})
    logger.info("timing %d steps", budget.TIMED)
    negatives = settings.mined_negatives
    no_scores = (lambda pairs: np.zeros(len(pairs))) if learns_scores(groups[0]) else None
    step = budget.pace(train, groups, lambda path, count: rows.write(path, count, negatives, scorer=no_scores))
    if neighbours_of(settings, rows.shares) > 1:
        step += start.dev.cost(row.anchor for row in rows.drawn(DRAWN)) / DRAWN * batch
    passages = start.test.cost(passage.text for passage in rows.passages)
    mining = passages * (1 + sum(counts.values()) / 4 / len(rows.passages)) if negatives else 0.0
    if (judge := judge_of(settings, start)) is not None:
        judged = 1 + max(JUDGED, negatives) + (1 + negatives) * learns_scores(groups[0])
        mining += seconds_a_pair(judge, rows) * judged * sum(counts.values())
    forms = passages / len(rows.passages) * STATIC_COST * settings.static
    shares = len(settings.shares or SHARES)
    spent = time.monotonic() - begun + forms
    general = general_sentences(settings.general_text)
    dev = start.dev.seconds + start.dev.cost(general) * 2 * GENERAL_PAIRS / len(general)
    costs = budget.Costs(spent, step, dev, start.test.seconds, mining, shares)
    wanted = costs.steps(minutes)
    steps = min(wanted, most)
    if steps < wanted:
        logger.info("%d steps are %d passes over all rows: more would learn them by heart", steps, budget.MOST_PASSES)
    return Plan(key, steps, step, costs.minutes(steps), counts, {})


def write_parts(
    folder: Path,
    sets: dict[str, RetrievalSet],
    start: Start,
    rows: Rows,
    plan: Plan,
    settings: AdaptArguments,
    groups: tuple[Any, Any, Any],
) -> None:
    """The rows, the held-out parts and the general pairs; the plan last, which says that they are whole."""
    model_args, _, args = groups
    negatives, neighbours = settings.mined_negatives, neighbours_of(settings, rows.shares)
    judge = judge_of(settings, start)
    mine = miner(start, rows, negatives, judge) if negatives else None
    near = partial(anchors, start, progress=not args.disable_tqdm) if neighbours > 1 else None
    scorer = judge if learns_scores(model_args) else None
    plan.rows = rows.write(folder / ROWS, plan.steps * batch_of(args), negatives, mine, neighbours, near, scorer)
    for name, one in sets.items():
        save_retrieval(one, folder / name)
    write_text(folder / GENERAL, general_pairs(start.encoder, settings.general_text))
    write_json(folder / PLAN, plan.as_dict())


def anchors(start: Start, texts: Sequence[str], *, progress: bool) -> np.ndarray:
    """The start's vectors of rows' anchors."""
    logger.info("the start seeks the neighbours of %d anchors", len(texts))
    embedder = start.dev.embedder
    prompt = embedder.query_prompt
    return embedder.vectors(texts, prompt=prompt, show_progress_bar=progress, description="Encoding anchors")


def run_training(folder: Path, groups: tuple[Any, Any, Any], parsed: Parsed, plan: Plan) -> None:
    """Train by the plan, or go on; nothing where it is done."""
    model_args, data_args, args = (copy.copy(group) for group in groups)
    output = folder / TRAINING
    if (output / TRAINED).is_file():
        return
    data_args.train_file = str(folder / ROWS)
    data_args.dev_file = [f"{DEV}={folder / DEV}", *watched_files(folder, data_args)]
    args.output_dir, args.max_steps, args.overwrite_output_dir = str(output), plan.steps, False
    args.train_sampling_strategy = "sequential"  # the rows' own order keeps a document's apart
    args.resume_from_checkpoint = "last" if newest_whole(output) is not None else None
    args.eval_on_start = False  # the start's own reading is the same
    args.metric_for_best_model, args.greater_is_better = f"{DEV}_{Retrieval.metric}", True
    if "eval_steps" not in parsed.given():
        args.eval_steps = args.save_steps = -(-plan.steps // budget.EVALUATIONS)
    if "load_best_model_at_end" not in parsed.given():  # a mean with the start is best of the last state
        args.load_best_model_at_end = args.early_stopping_patience is not None
    given = {name for group in groups for name in vars(group)}
    flags, recipe = ([name for name in names if name in given] for names in (parsed.flags, parsed.from_recipe))
    train(model_args, data_args, args, Parsed((model_args, data_args, args), parsed.recipe, flags, recipe))
