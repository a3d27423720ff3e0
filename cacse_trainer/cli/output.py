"""What a command says: for a person, quietly (``--quiet``), or as one JSON object on standard output (``--json``)."""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from cacse_trainer.files import plain

QUIET, JSON = "--quiet", "--json"


class Output:
    """How this process's command speaks.

    Attributes:
        quiet: warnings, errors and the result only; no progress.
        json: where the JSON object goes; None: the result is text.
    """

    quiet = False
    json: TextIO | None = None


OUTPUT = Output()


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """``--quiet`` and ``--json``, which every command takes."""
    group = parser.add_argument_group("output")
    group.add_argument(QUIET, action="store_true", help="warnings, errors and the result only; no progress")
    group.add_argument(JSON, action="store_true", help="the result as one JSON object on standard output")


@contextlib.contextmanager
def output_mode(arguments: Sequence[str]) -> Iterator[None]:
    """Speak as the flags among the arguments say, until the command ends."""
    ours = logging.getLogger("cacse_trainer")
    level = ours.level
    OUTPUT.quiet, OUTPUT.json = QUIET in arguments, sys.stdout if JSON in arguments else None
    if OUTPUT.quiet:
        ours.setLevel(logging.WARNING)
    # whatever a library prints must not mix with the object
    aside = contextlib.redirect_stdout(sys.stderr) if OUTPUT.json is not None else contextlib.nullcontext()
    try:
        with aside:
            yield
    finally:
        ours.setLevel(level)
        OUTPUT.quiet, OUTPUT.json = False, None


def tell(text: str, result: dict[str, Any]) -> None:
    """A command's result: the text for a person, or the object; the one or the other, once, at its end."""
    if OUTPUT.json is None:
        print(text)
    tell_json(result)


def tell_json(result: dict[str, Any]) -> None:
    """The object alone, for a command that prints its text on the way (with ``--json`` to standard error)."""
    if OUTPUT.json is not None:
        print(json.dumps(plain(result), ensure_ascii=False, allow_nan=False), file=OUTPUT.json, flush=True)


def tell_error(message: str) -> None:
    """An error: one line on standard error, and with ``--json`` an object, too."""
    print(f"error: {message}", file=sys.stderr)
    if OUTPUT.json is not None:
        print(json.dumps({"error": message}, ensure_ascii=False), file=OUTPUT.json, flush=True)
