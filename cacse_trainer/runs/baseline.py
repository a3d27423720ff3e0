"""What training is measured against, the start as its own folder states it, and the verdict on what it made of it.

A folder of sentence-transformers' states how it is read (pooling, layers above it, length, prompt). Trained and read in
another way it may gain on that other reading and still lose to what the user had, so the verdict is against the former.
A plain checkpoint states nothing: there the model before its first step is the baseline.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from cacse_trainer.encoding.sentence_transformers import DOCUMENTS, QUERY, read_modules, read_prompts
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.evaluation.compare import Difference
from cacse_trainer.evaluation.dev_sets import DevSet
from cacse_trainer.models.base import CLS_WITH_MLP
from cacse_trainer.models.pretrained import is_decoder, load_config
from cacse_trainer.settings.arguments import DataArguments, ModelArguments
from cacse_trainer.settings.resources import resolve_resource
from cacse_trainer.training.baseline import Reading, read, read_stated
from cacse_trainer.training.trainer import CacseTrainer

logger = logging.getLogger(__name__)

UNTRAINED = "the model before training"


def take_stated_pooling(settings: ModelArguments) -> None:
    """Pooling that nobody gave: the one that the start's folder states; of a plain checkpoint the method's own.

    Raises:
        UserError: the start cannot be read.
    """
    if settings.pooling == CLS_WITH_MLP and settings.tower_a is None:  # the words of evaluation
        if settings.mlp_only_train:
            raise UserError(
                "pooling cls_with_mlp keeps the head at inference, mlp_only_train drops it: give one of them"
            )
        settings.pooling, settings.mlp_only_train = "cls", False
    if settings.pooling is not None:
        return
    starts = [name for name in (settings.model, settings.tower_a, settings.tower_b) if name is not None]
    stated = {stated_pooling(name) for name in starts}
    settings.pooling = stated.pop() if len(stated) == 1 else None
    if settings.pooling == "cls" and settings.model is not None and settings.mlp_only_train is None:
        settings.mlp_only_train = True  # the folder states the raw first token: a head may help to train, and goes
    if settings.pooling is None:
        settings.pooling = own_pooling(settings.model, settings.trust_remote_code) if settings.model else "cls"


def stated_pooling(name: str) -> str | None:
    """The pooling that an encoder's folder states; None: it states none, or one with layers above it."""
    with user_errors(f"model {name}", KeyError, RuntimeError):
        stated = read_modules(resolve_resource(name))
    return None if stated.above or stated.pooling == CLS_WITH_MLP else stated.pooling


def take_stated_prompts(data_args: DataArguments, starts: Sequence[str]) -> None:
    """Prompts that nobody gave: those that the start's folder states; none where several state others.

    Raises:
        UserError: a start cannot be read.
    """
    prompts = set()
    for name in starts:
        with user_errors(f"model {name}", KeyError, RuntimeError):
            stated = read_prompts(resolve_resource(name))
        prompts.add((stated.get(QUERY, ""), next((stated[key] for key in DOCUMENTS if key in stated), "")))
    query, document = prompts.pop() if len(prompts) == 1 else ("", "")
    data_args.query_prompt = query if data_args.query_prompt is None else data_args.query_prompt
    data_args.document_prompt = document if data_args.document_prompt is None else data_args.document_prompt


def own_pooling(name: str, trust_remote_code: bool = False) -> str:
    """The methods' own pooling of a plain checkpoint: the first token, of a decoder the last."""
    with user_errors(f"model {name}", KeyError, RuntimeError):
        config = load_config(resolve_resource(name), trust_remote_code=trust_remote_code)
    return "last_token" if is_decoder(config) else "cls"


def read_start(
    trainer: CacseTrainer,
    starts: Sequence[str],
    sets: Mapping[str, DevSet],
    trust_remote_code: bool,
    sentences: Sequence[str] = (),
) -> Reading | None:
    """The baseline: the best of the starts as their folders state them, else the model before training.

    Args:
        trainer: of the run, which has not begun.
        starts: folders or hub ids.
        sets: dev sets; the first one tells which of several starts is the best.
        trust_remote_code: run model code that comes with a start.
        sentences: whose vectors are kept, too.

    Returns:
        None where there are no sets, or the model is spread over processes before its first step.
    """
    if not sets:
        return None
    start = read_stated(starts, sets, trainer.args.device, bool(trainer.args.bf16), trust_remote_code, sentences)
    trained_by = trainer.model.stated_pooling
    if start is None:
        spread = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        return None if spread else read_model(trainer, sets, UNTRAINED, sentences)
    if trainer.is_world_process_zero():
        scores = ", ".join(f"{key} {score:.2f}" for key, score in start.scores.items())
        logger.info("the start as its folder states it, %s by %s pooling: %s", start.name, start.pooling, scores)
        if start.pooling != trained_by:
            logger.warning(
                "%s states %s pooling, and this run reads it by %s: it is measured against the start as it is; "
                "leave pooling out to train what is stated",
                start.name,
                start.pooling,
                trained_by,
            )
    return start


def read_model(
    trainer: CacseTrainer, sets: Mapping[str, DevSet], name: str = "", sentences: Sequence[str] = ()
) -> Reading:
    """The trainer's model as it is."""
    model = trainer.model_of_run
    was_training = model.training
    model.eval()
    try:
        return read(name, model.stated_pooling, trainer.embedder, sets, sentences)
    finally:
        model.train(was_training)


def judge(start: Reading, trained: Reading, sets: Mapping[str, DevSet], held_out: Sequence[str]) -> dict[str, Any]:
    """What training made of the start, on the first held-out set, else on the set that also chose.

    Returns:
        For the report: ``set``, ``held_out``, ``metric``, ``start`` and ``trained`` (by it, ×100), ``low`` and
        ``high`` (95 % interval of the difference, see `compare`), and ``outcome``: ``helped``, ``did not help`` or
        ``unclear``.
    """
    name = next(iter(held_out or sets))
    found = sets[name].difference(name, start.answers[name], trained.answers[name])
    return {
        "set": name,
        "held_out": name in held_out,
        "metric": sets[name].metric,
        "start": found.first,
        "trained": found.second,
        "low": found.low,
        "high": found.high,
        "outcome": outcome(found),
    }


def outcome(found: Difference) -> str:
    """``helped``, ``did not help``, or ``unclear`` where the interval holds 0."""
    if found.low is not None and found.low > 0:
        return "helped"
    return "unclear" if found.high is not None and found.high > 0 and found.difference > 0 else "did not help"
