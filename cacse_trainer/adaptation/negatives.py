"""The hard negatives of an adaptation: mined by the start, judged by a cross-encoder where one is named."""

import logging
import time
from collections.abc import Sequence

from cacse_trainer.adaptation.mining import RANK_RANGE, mine_hard_negatives
from cacse_trainer.adaptation.outcome import Start
from cacse_trainer.adaptation.rows import Miner, Pair, Rows
from cacse_trainer.errors import UserError
from cacse_trainer.models.cross_encoder import CrossEncoder
from cacse_trainer.models.objectives import SCORED
from cacse_trainer.settings.adaptation import AdaptArguments
from cacse_trainer.settings.arguments import ModelArguments
from cacse_trainer.settings.resources import resolve_resource

logger = logging.getLogger(__name__)

JUDGED, TIMED_PAIRS = 10, 32
"""The best-ranked passages of each row that a cross-encoder judges, and pairs by which its pace is known."""


def learns_scores(model_args: ModelArguments) -> bool:
    """Whether the training learns the cross-encoder's scores."""
    return model_args.objective in SCORED


def check_judge(settings: AdaptArguments, model_args: ModelArguments) -> None:
    """Refuse, before anything long, a cross-encoder that cannot be read, and scores without one.

    Raises:
        UserError: with what to give.
    """
    if settings.cross_encoder is not None:
        CrossEncoder(resolve_resource(settings.cross_encoder))
    elif learns_scores(model_args):
        raise UserError(f"objective {model_args.objective} learns a cross-encoder's scores: give --cross_encoder, too")


def judge_of(settings: AdaptArguments, start: Start) -> CrossEncoder | None:
    """The cross-encoder that the settings name."""
    if settings.cross_encoder is None:
        return None
    return CrossEncoder(resolve_resource(settings.cross_encoder), start.encoder.device)


def seconds_a_pair(judge: CrossEncoder, rows: Rows) -> float:
    """What the cross-encoder takes for a pair here."""
    pairs = [(row.anchor, row.positive) for row in rows.drawn(TIMED_PAIRS)]
    begun = time.monotonic()
    judge(pairs)
    return (time.monotonic() - begun) / len(pairs)


def miner(start: Start, rows: Rows, negatives: int, judge: CrossEncoder | None = None) -> Miner:
    """Hard negatives among the passages that are trained on, by the start; those that a cross-encoder leaves in."""
    last = RANK_RANGE[1] if judge is None else JUDGED

    def mine(pairs: Sequence[Pair]) -> dict[Pair, list[str]]:
        given = [{"anchor": anchor, "positive": positive} for anchor, positive in pairs]
        texts = [passage.text for passage in rows.passages]
        found = mine_hard_negatives(
            start.encoder,
            given,
            texts,
            negatives=negatives,
            rank_range=(RANK_RANGE[0], max(last, negatives)),
            cross_encoder=judge,
            query_prompt=start.test.embedder.query_prompt,
            document_prompt=start.test.embedder.document_prompt,
        )
        logger.info("mined: %d of %d rows have %d hard negatives", len(found.rows), len(pairs), negatives)
        names = found.rows.column_names[2:]
        return {(row["anchor"], row["positive"]): [row[name] for name in names] for row in found.rows}

    return mine
