"""What a command says: for a person, quietly (``--quiet``), or as one JSON object on standard output (``--json``)."""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from cacse_trainer.files import plain, without_secrets

_object: TextIO | None = None
"""Where the JSON object goes; None: the result is text."""


@contextlib.contextmanager
def output_mode(*, quiet: bool, as_json: bool) -> Iterator[None]:
    """Speak as ``--quiet`` and ``--json`` say, until the command ends."""
    global _object
    ours = logging.getLogger("cacse_trainer")
    level = ours.level
    _object = sys.stdout if as_json else None
    if quiet:
        ours.setLevel(logging.WARNING)
    # whatever a library prints must not mix with the object
    aside = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    try:
        with aside:
            yield
    finally:
        ours.setLevel(level)
        _object = None


def tell(text: str, result: dict[str, Any]) -> None:
    """A command's result: the text for a person, or the object; the one or the other, once, at its end."""
    if _object is None:
        print(text)
    tell_json(result)


def tell_json(result: dict[str, Any]) -> None:
    """The object alone, for a command that prints its text on the way (with ``--json`` to standard error)."""
    if _object is not None:
        print(json.dumps(plain(result), ensure_ascii=False, allow_nan=False), file=_object, flush=True)


def tell_error(message: str) -> None:
    """An error: one line on standard error, and with ``--json`` an object, too; no secret in it."""
    message = without_secrets(message)
    print(f"error: {message}", file=sys.stderr)
    if _object is not None:
        print(json.dumps({"error": message}, ensure_ascii=False), file=_object, flush=True)
