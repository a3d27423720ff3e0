"""How many steps fit into a number of minutes: a few are trained and timed, and thrown away."""

import copy
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cacse_trainer.errors import UserError
from cacse_trainer.runs.folder import REPORT

TIMED = 8
"""Steps that are trained to know their pace."""
FEWEST_STEPS = 10
EVALUATIONS = 5
"""Of the dev part, over a training."""
MOST_PASSES = 10
"""Over the different rows that a text gives: a small text is not learned by heart, however long the budget."""
FIXED = 40.0
"""Seconds for what is done once: loading models, exporting, writing."""


def pace(train: Callable[..., Any], groups: tuple[Any, Any, Any], write_rows: Callable[[Path, int], object]) -> float:
    """Seconds that a step of training takes here, by a few of them.

    Args:
        train: `cacse_trainer.runs.train.train`.
        groups: the settings of the run; copies are used.
        write_rows: writes so many rows to a file.
    """
    model_args, data_args, args = (copy.copy(group) for group in groups)
    with TemporaryDirectory(prefix="cacse-trainer-") as folder:
        rows, output = Path(folder) / "rows.jsonl", Path(folder) / "trial"
        write_rows(rows, TIMED * args.train_batch_size * args.gradient_accumulation_steps * args.world_size)
        data_args.train_file, data_args.evaluation = str(rows), "none"
        data_args.dev_file = data_args.test_file = data_args.eval_sets = None
        args.output_dir, args.max_steps, args.save_strategy = str(output), TIMED, "no"
        args.early_stopping_patience = None  # nothing is scored
        args.check = args.export = args.overwrite_output_dir = False
        args.report_to, args.disable_tqdm = [], True
        with _quietly():
            train(model_args, data_args, args)
        report = json.loads((output / REPORT).read_text(encoding="utf-8"))
    return report["train_seconds"] / TIMED


@contextmanager
def _quietly() -> Iterator[None]:
    """Nothing is said of steps that only tell the time."""
    ours = logging.getLogger("cacse_trainer")
    level = ours.level
    ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ours.setLevel(level)


@dataclass
class Costs:
    """What an adaptation costs here, in seconds.

    Args:
        spent: so far.
        step: one of training.
        dev: one reading of all that is scored during the training.
        test: one reading of the test part.
        mining: of the hard negatives.
        shares: averages that are read on the dev part.
    """

    spent: float
    step: float
    dev: float
    test: float
    mining: float
    shares: int

    @property
    def around(self) -> float:
        """All that is not a step: the readings by the run, of checkpoints, averages and the result."""
        return self.spent + FIXED + self.mining + (2 + EVALUATIONS + self.shares) * self.dev + self.test

    def steps(self, minutes: float) -> int:
        """The steps that a budget leaves.

        Raises:
            UserError: it leaves none.
        """
        left = 60 * minutes - self.around
        if left < FEWEST_STEPS * self.step:
            least = (self.around + FEWEST_STEPS * self.step) / 60
            raise UserError(
                f"budget {minutes:g}: all but the training takes {self.around / 60:.1f} minutes here, and a step "
                f"{self.step:.1f} seconds; give at least {least:.1f} minutes, or a smaller held_out and distractors"
            )
        return int(left / self.step)

    def minutes(self, steps: int) -> float:
        """What so many steps take, with all around them."""
        return (self.around + steps * self.step) / 60
