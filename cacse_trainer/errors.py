"""The one exception that means: the input is wrong, not the program."""


class UserError(ValueError):
    """Wrong input, told in one line: what is wrong, where, how to mend it. The command line then exits with code 2."""


class RunError(RuntimeError):
    """A run that failed for a known reason; its message says all. The command line then exits with code 1."""
