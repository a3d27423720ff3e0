"""Exceptions whose message says all: wrong input, and runs that failed or were stopped for a known reason."""

import contextlib
from collections.abc import Iterator
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
def user_errors(what: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what a library raises on wrong settings or missing or damaged files into one line."""
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
    except expected as error:
        raise UserError(f"{what}: {one_line(error)}") from error
