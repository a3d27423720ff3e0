"""Exceptions whose message says all: wrong input, and runs that failed or were stopped for a known reason."""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError


class UserError(ValueError):
    """Wrong input, told in one line: what is wrong, where, how to mend it. The command line then exits with code 2."""


class RunError(RuntimeError):
    """A run that failed for a known reason; its message says all. The command line then exits with code 1."""


class Interrupted(RunError):
    """A run that was stopped by a signal and saved what it had.

    Args:
        message: what was saved, and how to go on.
        signal_number: the command line exits with 128 and this, as a shell says it: 143 for SIGTERM, 130 for SIGINT.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def extra_needed(name: str, what: str, instead: str = "") -> Iterator[None]:
    """Around the import of a library that an extra brings: where it is missing, what needs it and how it is installed.

    Args:
        name: of the extra.
        what: such as ``a faiss index needs faiss``.
        instead: what can be done without, as the line's end.

    Raises:
        UserError: the library is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(f"{what}: pip install 'cacse-trainer[{name}]'{instead}") from error


@contextlib.contextmanager
def user_errors(what: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what a library raises on wrong settings or missing or damaged files into one line.

    Args:
        what: the line's beginning.
        more: what our own code raises on them, besides `ValueError` and `OSError`; of a library it may be anything.
    """
    from safetensors import SafetensorError  # only where something is read

    expected: tuple[type[Exception], ...] = (ValueError, OSError, SafetensorError, *more)
    try:
        yield
    except UserError:
        raise
    except UnpicklingError as error:
        raise UserError(
            f"{what}: the weights are a pickle of more than tensors, which is not read since it could run any code; "
            "convert them to safetensors"
        ) from error
    except Exception as error:
        if is_out_of_memory(error) or (is_ours(error) and not isinstance(error, expected)):
            raise
        raise UserError(f"{what}: {one_line(error)}") from error


def is_ours(error: BaseException) -> bool:
    """Whether an exception was raised by this package's own code, not by a library that it called."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return not frames or Path(frames[-1].f_code.co_filename).is_relative_to(Path(__file__).parent)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory left; torch says so in a `RuntimeError`."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
