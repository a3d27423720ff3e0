"""Early stopping that a resumed run takes as one that was never interrupted."""

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class Patience(TrainerCallback):
    """Ends a training whose choosing score has not risen in so many evaluations.

    It counts in the log, which every checkpoint holds; transformers' `EarlyStoppingCallback` begins anew at a resume.

    Args:
        evaluations: without a better score, at least 1.
    """

    def __init__(self, evaluations: int) -> None:
        self.evaluations = evaluations

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the score that was just logged."""
        name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        logged = [(entry[name], entry["step"]) for entry in state.log_history if name in entry]
        if not logged:
            return
        scores = [score for score, _ in logged]
        best = scores.index(max(scores) if args.greater_is_better else min(scores))
        if len(logged) - 1 - best >= self.evaluations and not control.should_training_stop:
            logger.info(
                "step %d: %s has not risen since step %d, in %d evaluations: the training ends",
                state.global_step,
                args.metric_for_best_model,
                logged[best][1],
                len(logged) - 1 - best,
            )
            control.should_training_stop = True
