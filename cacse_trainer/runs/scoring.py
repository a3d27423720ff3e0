"""``do_train false``: what a run has made, else the model that it would start from, is scored; nothing is written."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.loading import states_pooling
from cacse_trainer.encoding.weighted import open_encoders
from cacse_trainer.errors import UserError
from cacse_trainer.models.objectives import SCORED
from cacse_trainer.runs import preparation
from cacse_trainer.runs.baseline import own_pooling
from cacse_trainer.runs.held_out import with_held_out
from cacse_trainer.runs.run import RunResult
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments
from cacse_trainer.settings.recipes import Parsed
from cacse_trainer.settings.resources import public_name
from cacse_trainer.training.automatic import choose
from cacse_trainer.training.baseline import read
from cacse_trainer.training.checkpoints import newest_whole

logger = logging.getLogger(__name__)

RAW = "cls_before_pooler"
"""The first token as it is, in every place the same."""


def score_only(
    parsed: Parsed, models: Sequence[str | None], pooling: str | None, *, head: bool = False, **options: Any
) -> RunResult:
    """Score on the dev sets, the held-out sets and the transfer tasks what the settings name.

    That is the model in the output folder, of a finished run or imported; else the newest checkpoint there; else the
    encoders that training would start from, several of them summed, each as its folder states it, a plain checkpoint
    by the pooling that training would take.

    Args:
        parsed: the settings.
        models: the encoders that training would start from.
        pooling: of these, where the user states it.
        head: its ``cls`` is read through the checkpoint's head.
        options: more arguments of `SentenceEncoder` for these.

    Raises:
        UserError: there is nothing to score, or no set to score it on; or the encoder cannot be loaded.
    """
    data_args: DataArguments = parsed.groups[1]
    args: CacseTrainingArguments = parsed.groups[2]
    for name in ("push_to_hub", "resume_from_checkpoint", "overwrite_output_dir"):
        if getattr(args, name) and name in parsed.given():
            raise UserError(f"{name} has no effect with do_train false, which writes nothing: leave it out")
    sets = preparation.load_sets(data_args, args)
    if data_args.held_out_rows:
        rows, _ = preparation.load_training_text(data_args, args, parsed.groups[0].objective in SCORED)
        _, sets = with_held_out(rows, sets, data_args, args)
    if not sets.every:
        raise UserError("do_train false scores the dev sets, and there is none: leave evaluation as it is")
    choose(args)
    made = _made(args)
    if made is not None:
        encoder = _open_made(made, parsed, args, pooling, data_args.eval_max_seq_length, options)
    else:
        named = [name for name in models if name is not None]
        if pooling == "cls" and not head:
            pooling = RAW
        encoder = _open(args, named, pooling, max_seq_length=data_args.eval_max_seq_length, **options)
    if args.check:
        return RunResult(Path(str(args.output_dir)))
    found = read(public_name(encoder.name), encoder.pooling, encoder, sets.every)
    scores = {f"{name}_{metric}": value for name, metric, value in found.every_score()}
    for scorer in sets.scorers:
        scores.update(scorer(encoder))
    facts = {"scored": found.name, "pooling": found.pooling, "scores": scores}
    return RunResult(Path(str(args.output_dir)), summary=facts)


def _made(args: CacseTrainingArguments) -> Path | None:
    """The model in the output folder, else its newest checkpoint."""
    folder = Path(str(args.output_dir))
    return folder if (folder / "config.json").is_file() else newest_whole(folder)


def _reading(args: CacseTrainingArguments) -> dict[str, Any]:
    return {"device": args.device, "dtype": torch.bfloat16 if args.bf16 else torch.float32}


def _open_made(
    made: Path,
    parsed: Parsed,
    args: CacseTrainingArguments,
    pooling: str | None,
    max_seq_length: int | None,
    options: Mapping[str, Any],
) -> BaseEncoder:
    """What a run has made, as it states it; a pooling on the command line reads it otherwise.

    Raises:
        UserError: a flag would change what the model is made of.
    """
    fixed = ("adapter", "prompt_template", "append_eos", "bidirectional_start_layer")
    for name in (name for name in fixed if name in parsed.flags):
        raise UserError(f"{name} has no effect with do_train false here, {made} holds its own: leave it out")
    poolings = [pooling if "pooling" in parsed.flags else None]
    trusted = options.get("trust_remote_code", False)
    return open_encoders(
        [str(made)], poolings, max_seq_length=max_seq_length, trust_remote_code=trusted, **_reading(args)
    )


def _open(args: CacseTrainingArguments, starts: Sequence[str], pooling: str | None, **options: Any) -> BaseEncoder:
    if not starts:
        raise UserError(f"nothing to score: no model is in output_dir {args.output_dir}, and none is named")
    logger.info("no trained model in output_dir %s: the start itself is scored", args.output_dir)
    poolings = [pooling or _pooling_of(name, options.get("trust_remote_code", False)) for name in starts]
    return open_encoders(starts, poolings, **_reading(args), **options)


def _pooling_of(name: str, trust_remote_code: bool) -> str | None:
    """None where the folder states its pooling, else the one that training takes of a plain checkpoint."""
    if states_pooling(name):
        return None
    own = own_pooling(name, trust_remote_code)
    return RAW if own == "cls" else own
