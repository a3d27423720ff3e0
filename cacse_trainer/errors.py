"""Exceptions whose message says all: wrong input, and runs that failed or were stopped for a known reason."""


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
