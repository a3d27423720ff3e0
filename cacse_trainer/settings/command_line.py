"""How a command line is read: one parser for every command, to which ``--hub-token`` is ``--hub_token``.

What a command line gave, and the command that repeats it, are told from what the parser understood. A secret is in
neither, and is hidden wherever it would be written (`keep_secret`).
"""

import math
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from cacse_trainer.errors import UserError
from cacse_trainer.files import keep_secret, without_secrets
from cacse_trainer.settings.old_names import counterpart
from cacse_trainer.settings.resources import nearest

SECRETS = ("token", "password", "api_key", "secret")
"""Ends of the names of settings that are secrets."""
SETTING_FLAGS = ("set", "grid")
"""Flags whose values are settings themselves, ``FIELD=VALUE`` or ``STAGE.FIELD=VALUE``."""
SEEDS = range(2**32)
"""What NumPy's generators take."""
GOES_ON = ("resume_from_checkpoint", "resume_with_changes")
"""The flags that go on with an earlier run; without them the same run is made anew."""


def is_secret(name: str) -> bool:
    """Whether a setting of this name, or ``STAGE.NAME``, is a secret."""
    return name.replace("-", "_").endswith(SECRETS)


def hand_over(settings: dict[str, Any]) -> None:
    """Take the secrets out of settings that are told to other processes; the hub's token goes by the environment.

    There huggingface_hub looks for it, in this process and in its children: no flag, record or log shows it.
    """
    for name in [name for name in settings if is_secret(name) and settings[name] is not None]:
        token = str(settings.pop(name))
        keep_secret(token)
        os.environ["HF_TOKEN"] = token


def seed(text: str) -> int:
    """A flag's seed.

    Raises:
        ArgumentTypeError: it is none that all generators take.
    """
    if not (text.isdecimal() and int(text) in SEEDS):
        raise ArgumentTypeError(f"a seed is a number from 0 to {SEEDS[-1]}, got {text!r}")
    return int(text)


def canonical(word: str) -> str:
    """A flag as its field is spelt, ``--hub-token=T`` → ``--hub_token=T``; other words as they are."""
    name, equals, value = word.partition("=")
    is_flag = name.startswith("--") and not any(letter.isspace() for letter in name)
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if is_flag else word


def count(word: str) -> int:
    """A flag's value that counts something: a whole number from 1, of 32 bits."""
    number = int(word)
    if not 1 <= number < 2**31:
        raise ArgumentTypeError(f"is {number}; it must be at least 1, and below {2**31}")
    return number


def shard_of(word: str) -> tuple[int, int]:
    """A flag's ``i/n``, the i-th of n parts, counted from 1."""
    first, slash, last = word.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ArgumentTypeError(f"is {word!r}; give i/n with i from 1 to n, such as 2/8")
    return int(first), int(last)


def number(word: str | float) -> float:
    """A flag's value that is a number: neither NaN nor infinite."""
    value = float(word)
    if not math.isfinite(value):
        raise ArgumentTypeError(f"is {word}; it must be a finite number")
    return value


def refuse_unknown(flags: Sequence[str], known: Sequence[str], here: Mapping[str, str] | None = None) -> NoReturn:
    """Refuse unknown flags, all of them in one line.

    Args:
        flags: the unknown ones, without their values.
        known: those of the command.
        here: what a flag of another command is in this one.

    Raises:
        UserError: always; each is told with what it is here, if an original project's script has it, or the nearest.
    """
    told = []
    for flag in dict.fromkeys(flags):
        name, instead = without_secrets(flag), (here or {}).get(flag) or counterpart(flag)
        more = f", which is here {instead}" if instead is not None else nearest(name, known)
        told.append(f"unknown argument {name!r}{more}")
    raise UserError(f"command line: {'; '.join(told)}")


class OneLineParser(ArgumentParser):
    """`ArgumentParser` for every command: one-line errors, finite floats, no abbreviations, ``--quiet``, ``--json``."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": RawDescriptionHelpFormatter, **kwargs})
        self.register("type", float, number)
        output = self.add_argument_group("output")
        output.add_argument("--quiet", action="store_true", help="warnings, errors and the result only; no progress")
        output.add_argument("--json", action="store_true", help="the result as one JSON object on standard output")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the parent's; bars are shown on a terminal only, and not with ``--quiet``."""
        for word in args:
            try:
                word.encode()
            except UnicodeEncodeError as error:  # a name of bytes, which no report could hold at the end
                raise UserError(f"command line: {word!r} is no UTF-8 text; rename that file or folder") from error
        for name, words in self.given(args):
            if is_secret(name):
                for word in words[1:]:
                    keep_secret(word)
        settings, rest = super().parse_known_args([canonical(word) for word in args], namespace)
        if settings.quiet or not sys.stderr.isatty():
            settings.disable_tqdm = True
        return settings, rest

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the parent's; unknown flags are told without their values, with what they are here or the nearest one."""
        settings, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [word.partition("=")[0] for word in unknown if word.startswith("--")] or unknown[:1]
            refuse_unknown(flags, [flag for flag in self._option_string_actions if canonical(flag) == flag])
        return settings

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(f"command line: {without_secrets(message)} ({self.prog} --help)")

    def given(self, arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
        """The flags of a command line in order: each one's field, and its words, ``--flag`` and the values.

        Words before the first flag stand under the name "".
        """
        found: list[tuple[str, list[str]]] = [("", [])]
        for word in map(canonical, arguments):
            name, equals, value = word.partition("=")
            action = self._option_string_actions.get(name)
            if action is None:
                found[-1][1].append(word)
            else:
                found.append((action.dest, [name, value] if equals else [name]))
        return found

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The words of the command that does the same anew: without secrets, and from the beginning."""
        words = self.prog.split()
        for name, own in self.given(arguments):
            kept = [word for word in own if name not in SETTING_FLAGS or not is_secret(word.partition("=")[0])]
            if is_secret(name) or name in GOES_ON or len(kept) == 1 < len(own):
                continue
            apart = len(kept) != 2 or (kept[1] and not kept[1].startswith("-"))  # else no value, but a flag
            words += kept if apart else ["=".join(kept)]
        return words
