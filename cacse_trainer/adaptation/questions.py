"""Questions that passages answer, written by a language model: rows of kind ``questions``."""

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cacse_trainer.data import load_sentences
from cacse_trainer.data.round_trip import write_pairs
from cacse_trainer.data.structure import OWN, Passage, Row
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.models.generation import LocalModel, Server
from cacse_trainer.settings.resources import resolve_resource

PLACE = "{passage}"
PROMPT = (
    "Write one short search query that a user would type to find the text below. Answer with the query alone, in the "
    "language of the text.\n\nText: {passage}\n\nQuery:"
)
FEWEST = 2
"""Rows that something can be learned of."""
LONGEST = 300
"""Characters; a longer answer is no query."""
_AROUND = re.compile(r"^[\s\"'“”‘’«»*\-–•]+|[\s\"'“”‘’«»*]+$")
_LABEL = re.compile(r"^(?:search query|query|question|q)\s*[:：]\s*", re.IGNORECASE)


def read_prompt(path: str | None) -> str:
    """A prompt from a file, with ``{passage}`` once.

    Raises:
        UserError: it cannot be read, or has no place for the passage.
    """
    if path is None:
        return PROMPT
    with user_errors(f"question_prompt {path}"):
        text = Path(path).expanduser().read_text(encoding="utf-8")
    if text.count(PLACE) != 1:
        raise UserError(f"question_prompt {path}: holds {PLACE} {text.count(PLACE)} times; write it once")
    return text


def query_in(answer: str) -> str:
    """The query in a model's answer: its first line that is one; "" where there is none."""
    for line in answer.replace("\0", " ").splitlines():
        found = _LABEL.sub("", _AROUND.sub("", line)).strip("\"'“” ")
        if found:
            return found if len(found) <= LONGEST else ""
    return ""


def asking(
    writer: str, model: str | None, prompt: str | None, device: Any
) -> tuple[Callable[[Sequence[str]], list[str]], dict[str, Any]]:
    """From passages to a query each, "" where the answer is none; and the settings that these depend on.

    Args:
        writer, model, prompt, device: as for `write_questions`.

    Raises:
        UserError: the writer or the prompt cannot be read, or a server's model has no name.
    """
    template = read_prompt(prompt)
    if writer.startswith(("http://", "https://")):
        if model is None:
            raise UserError("question_writer is a server: name its model with --question_model")
        ask: Any = Server(writer, model)
    else:
        ask = LocalModel(resolve_resource(writer), device)

    def queries(some: Sequence[str]) -> list[str]:
        return [query_in(answer) for answer in ask([template.replace(PLACE, text) for text in some])]

    return queries, {"writer": writer, "writer_model": model, "prompt": template}


def write_questions(
    passages: Sequence[Passage],
    output: Path,
    *,
    writer: str,
    model: str | None,
    prompt: str | None,
    count: int,
    seed: int,
    device: Any,
    shown: bool = True,
) -> list[Row]:
    """Let a model write a query for each of some passages; what is written already is not written anew.

    Args:
        passages: from which they are drawn.
        output: a csv file; beside it a partial one while it grows, from which a second call goes on.
        writer: a folder, hub id, or the URL of a server.
        model: the name of the server's model.
        prompt: a file, see `read_prompt`.
        count: of the passages.
        seed: of the draw.
        device: of a model in this process.
        shown: a progress bar.

    Raises:
        UserError: the writer cannot be read or reached, or it wrote nothing.
    """
    chosen = random.Random(f"{seed} questions").sample(list(passages), min(count, len(passages)))
    by_text = {passage.text: passage.document for passage in chosen}
    texts = list(by_text)
    if not output.is_file():
        queries, settings = asking(writer, model, prompt, device)
        counts = write_pairs(texts, queries, list, output, settings=settings, show_progress_bar=shown)
        if counts["rows"] < FEWEST:
            output.unlink()  # so that a second call asks again
            raise UserError(
                f"question_writer {writer}: wrote {counts['rows']} queries for {len(texts)} passages; look at its "
                "prompt"
            )
    rows = load_sentences(str(output), ["positive", "anchor"])
    return [Row(row["anchor"], row["positive"], "questions", by_text.get(row["positive"], OWN)) for row in rows]
