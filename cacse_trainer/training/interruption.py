"""SIGTERM, SIGHUP and Ctrl-C in training: the step is finished, a checkpoint saved, and how to go on is said."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cacse_trainer.compute.distributed import any_process, world_size
from cacse_trainer.errors import Interrupted

logger = logging.getLogger(__name__)

SIGNALS = tuple(number for number in signal.Signals if number.name in ("SIGTERM", "SIGINT", "SIGHUP"))


class SignalWatch(TrainerCallback):
    """Saves and ends a run that was sent a signal; all processes agree on the step, whichever heard of it first."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.stops_after: int | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, `SIGNALS` are noted; before and after they do what they did. Other threads watch nothing."""
        self.received = self.stops_after = None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
        # but for ignored ones (a background job), and those not set from Python
        watched = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
        try:
            for number in watched:
                signal.signal(number, self._note)
            yield
        finally:
            for number, handler in watched.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A launcher passes on to its processes the Ctrl-C that the terminal has sent them too: not a second one.
        if self.received == signal.SIGINT and number == signal.SIGINT and world_size() == 1:
            raise KeyboardInterrupt
        if self.received is None:
            again = "; again: end at once" if number == signal.SIGINT and world_size() == 1 else ""
            name = signal.Signals(number).name
            logger.warning("%s: a checkpoint is saved after this step, then the run ends%s", name, again)
            self.received = number

    def ask(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Ask for a checkpoint of this step where any process was sent a signal; called on all of them."""
        if any_process(self.received is not None, args.device):
            self.stops_after = state.global_step
            control.should_save = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask after each step."""
        self.ask(args, state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the run: by an exception, since a run that ends by itself deletes all but its best checkpoint.

        Raises:
            Interrupted: on every process at once.
        """
        if self.stops_after != state.global_step:
            return
        number = self.received or signal.SIGTERM
        raise Interrupted(
            f"stopped by {signal.Signals(number).name} after step {state.global_step} of {state.max_steps}; "
            f"checkpoint-{state.global_step} in {args.output_dir} is whole: go on with the same command and "
            "--resume_from_checkpoint last",
            number,
        )
