"""What the commands share: exit codes, quiet logs, loading dev sets."""

import argparse
import contextlib
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import transformers
from datasets import Dataset
from safetensors import SafetensorError

from cacse_trainer.data import load_pairs
from cacse_trainer.errors import RunError, UserError
from cacse_trainer.recipes import resolve_resource

REPORT = "training_report.json"
"""What a finished run leaves last in its output folder."""
STSB_ON_THE_HUB = "sentence-transformers/stsb"


class OneLineParser(argparse.ArgumentParser):
    """`ArgumentParser` whose errors are one line, without the whole usage, and which takes no abbreviations."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(f"command line: {message} ({self.prog} --help)")


def run(command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 done, 2 the user's input is wrong (one line), 1 anything else."""
    set_up_logging()
    try:
        command(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as error:  # argparse's --help
        return int(error.code or 0)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def set_up_logging() -> None:
    """Our own messages on standard error, one line each; the libraries' routine chatter left out."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cacse_trainer").setLevel(logging.INFO)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # of loading and saving weights; training keeps its own
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


@contextlib.contextmanager
def user_errors(what: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what a library raises on wrong settings or missing or damaged files into one line."""
    expected: tuple[type[Exception], ...] = (ValueError, OSError, SafetensorError, *more)
    try:
        yield
    except UserError:
        raise
    except expected as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}") from error


def load_dev_sets(dev_files: Sequence[str] | None) -> dict[str, Dataset]:
    """``name=path`` each → graded pairs by name; STS-B from the hub when none is given.

    Raises:
        UserError: an entry without a name, a name given twice, a file that is wrong.
    """
    sets: dict[str, Dataset] = {}
    for entry in dev_files or [f"stsb={STSB_ON_THE_HUB}"]:
        name, separator, path = entry.partition("=")
        if not separator or not name.isidentifier():
            raise UserError(f"dev_file {entry!r}: give name=path, the name of letters and digits, such as stsb={entry}")
        if name in sets:
            raise UserError(f"dev_file: the name {name} is given twice")
        sets[name] = load_pairs(resolve_resource(path))
    return sets
