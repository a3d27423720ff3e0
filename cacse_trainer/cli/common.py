"""What the commands share: their parser, what is said of failures from outside, quiet logs."""

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

import datasets
import torch.distributed as dist
import transformers

from cacse_trainer.cli.boundary import guarded, write_any_text
from cacse_trainer.cli.output import output_mode
from cacse_trainer.compute.distributed import is_distributed
from cacse_trainer.errors import is_out_of_memory, one_line
from cacse_trainer.settings.command_line import OneLineParser
from cacse_trainer.training.checkpoints import is_write_failure
from cacse_trainer.training.interruption import SIGNALS


def command_parser(name: str, what: str, epilog: str) -> OneLineParser:
    """The parser of ``cacse-trainer NAME``: what the command does, and the examples below its flags."""
    return OneLineParser(prog=f"cacse-trainer {name}", description=what, epilog=epilog)


def run(command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code, see `guarded`.

    One of several processes does not return, but leaves here: see `leave`.
    """
    write_any_text()
    set_up_logging()
    with _unwinding_on_signals():
        given = list(sys.argv[1:] if arguments is None else arguments)
        speech = dict(OneLineParser(add_help=False).given(given))  # known before the command's own parser may fail
        with output_mode(quiet="quiet" in speech, as_json="json" in speech):
            code = guarded(lambda: command(given), _explained)
    if is_distributed():
        leave(code)
    return code


def leave(code: int) -> NoReturn:
    """End one of several processes at once, its files flushed and its temporary folders removed.

    The destructor of gloo's process group, called under the interpreter's lock as an ordinary end calls it, waits for a
    thread that may be waiting for that lock: now and then a finished run would never end.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def _unwinding_on_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that closes, end the command as an exception does, so that temporary files go.

    Training has handlers of its own; what is ignored (nohup) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            print(f"stopped by {signal.Signals(number).name}", file=sys.stderr)
        raise SystemExit(128 + number)

    watched = [number for number in SIGNALS if number != signal.SIGINT and signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in watched}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


PEER_LOST = ("closed by peer", "reset by peer", "Broken pipe", "Timed out", "timed out", "remote process exited")
"""Words of what gloo and NCCL raise when another process is gone."""


def _explained(error: BaseException) -> str | None:
    """One line for failures from outside that have nothing to do with the program; None for all others."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for one in chain:
        if is_out_of_memory(one):
            return (
                f"out of memory ({one_line(one)[:200]}); in training lower per_device_train_batch_size, or set "
                "mini_batch_size, which keeps the batch's negatives, or lower max_seq_length; elsewhere lower "
                "batch_size or tokens_per_batch, or max_seq_length"
            )
        if is_write_failure(one):
            return (
                f"a file could not be written ({one_line(one)}); make room and run the same command again, with "
                "--resume_from_checkpoint last where a checkpoint was saved"
            )
        lost = isinstance(one, (RuntimeError, ConnectionError)) and any(word in str(one) for word in PEER_LOST)
        if lost and dist.is_available() and dist.is_initialized():
            return (
                f"process {dist.get_rank()} of {dist.get_world_size()} ends, since another one has died or hangs: the "
                f"other's own message says why ({one_line(one)[:200]}); go on with --resume_from_checkpoint last"
            )
    return None


def set_up_logging() -> None:
    """Our own messages on standard error, one line each; the libraries' routine chatter left out."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cacse_trainer").setLevel(logging.INFO)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # of loading and saving weights; training keeps its own
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
