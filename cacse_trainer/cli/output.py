"""What a command says: for a person, quietly (``--quiet``), or as one JSON object on standard output (``--json``)."""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from cacse_trainer.files import plain, without_secrets


class Output:
    """How this process's command speaks.

    Attributes:
        quiet: warnings, errors and the result only; no progress.
        json: where the JSON object goes; None: the result is text.
    """

    quiet = False
    json: TextIO | None = None


OUTPUT = Output()


@contextlib.contextmanager
def output_mode(*, quiet: bool, as_json: bool) -> Iterator[None]:
    """Speak as ``--quiet`` and ``--json`` say, until the command ends."""
    ours = logging.getLogger("cacse_trainer")
    level = ours.level
    OUTPUT.quiet, OUTPUT.json = quiet, sys.stdout if as_json else None
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
    """An error: one line on standard error, and with ``--json`` an object, too; no secret in it."""
    message = without_secrets(message)
    print(f"error: {message}", file=sys.stderr)
    if OUTPUT.json is not None:
        print(json.dumps({"error": message}, ensure_ascii=False), file=OUTPUT.json, flush=True)
