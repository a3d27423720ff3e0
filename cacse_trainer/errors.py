"""The one exception that means: the input is wrong, not the program."""


class UserError(ValueError):
    """Wrong input, told in one line: what is wrong, where, and how to mend it. The command line ends with exit code 2."""
