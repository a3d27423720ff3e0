"""What a training run says while it runs: readable lines with the rate and the time left, and a bar on a terminal."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from cacse_trainer.report.training import CHOOSING, duration, number

logger = logging.getLogger(__name__)

SILENT = ("epoch", "total_flos", "step")  # in every entry of the log
BESIDE = ("_pearson", "_mrr@10", "_recall@1", "_recall@100", "_runtime", "_per_second")  # the report has them
SPACE = ("_alignment", "_uniformity", "_average_cosine", "_dead_dimensions")


class RunProgress(TrainerCallback):
    """Lines of the log on standard error, above a bar where that is a terminal and ``bar`` is wanted.

    Scores of the dev sets are told with what they gained on ``baselines``, by set.
    """

    def __init__(self, bar: bool, baselines: Mapping[str, float]):
        self.bar = bar and sys.stderr.isatty()
        self._tqdm: Any = None
        self._started, self._first_step = 0.0, 0
        self.baselines = baselines

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start the clock, and the bar."""
        self._started, self._first_step = time.monotonic(), state.global_step
        if self.bar and state.is_world_process_zero:
            self._tqdm = tqdm(total=state.max_steps, initial=state.global_step, unit=" steps", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._tqdm is not None:
            self._tqdm.update(state.global_step - self._tqdm.n)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self._tqdm is not None:
            self._tqdm.close()
            self._tqdm = None

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One line an entry of the log."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        line = f"step {state.global_step}/{state.max_steps}  {self.line_of(logs)}{self.pace(state)}"
        if self._tqdm is not None:
            self._tqdm.clear()
        logger.info("%s", line)
        if self._tqdm is not None:
            self._tqdm.refresh()

    def line_of(self, logs: dict[str, Any]) -> str:
        """The entry: a loss with its parts, or the dev sets' scores with what they gained."""
        if "loss" in logs:
            parts = [f"{name[5:]} {_text(value)}" for name, value in logs.items() if name.startswith("loss_")]
            rest = f" ({', '.join(parts)})" if len(parts) > 1 else ""
            rate = f"  lr {_text(logs['learning_rate'])}" if "learning_rate" in logs else ""
            return f"loss {_text(logs['loss'])}{rest}{rate}"
        scores, space = [], []
        for name, value in logs.items():
            label = name.removeprefix("eval_")
            chosen_by = next((end for end in CHOOSING if label.endswith(f"_{end}")), None)
            if chosen_by is not None:
                name = label.removesuffix(f"_{chosen_by}")
                gain = f" ({value - self.baselines[name]:+.2f})" if name in self.baselines else ""
                scores.append(f"{name} {value:.2f}{gain}")
            elif label.endswith(SPACE):
                space.append(f"{label.partition('_')[2].replace('_', ' ')} {_text(value)}")
            elif not label.endswith(BESIDE) and name not in SILENT:
                scores.append(f"{label} {_text(value)}")
        return ", ".join(scores + space)

    def pace(self, state: TrainerState) -> str:
        """Seconds a step and the time left, where no bar tells them."""
        done = state.global_step - self._first_step
        if self._tqdm is not None or done < 1 or state.global_step >= state.max_steps:
            return ""
        each = (time.monotonic() - self._started) / done
        return f"  [{each:.2f} s a step, {duration(each * (state.max_steps - state.global_step))} left]"


def _text(value: Any) -> str:
    return number(value) if isinstance(value, (int, float)) else str(value)


def use_run_progress(trainer: Trainer, bar: bool, baselines: Mapping[str, float]) -> None:
    """Put `RunProgress` in the place of transformers' own callbacks."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(RunProgress(bar, baselines))
