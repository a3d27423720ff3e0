"""Round-trip translation: a sentence, and what comes back from another language, as a positive pair.

Rows are translated in chunks and appended to a partial file; after each chunk the number of bytes that are whole is
recorded, so that an interrupted run goes on where it stopped. The file gets its name when it is finished.

Source of the recipe: TNCSE (AAAI 2025), whose towers are trained on such pairs.
"""

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from cacse_trainer.files import put_in_place, write_json

logger = logging.getLogger(__name__)

Translate = Callable[[Sequence[str]], list[str]]

COLUMNS = ("anchor", "positive")
ROWS_AT_ONCE = 256


def write_pairs(
    sentences: Sequence[str],
    there: Translate,
    back: Translate,
    output: str | Path,
    *,
    settings: dict[str, Any],
    columns: tuple[str, str] = COLUMNS,
    show_progress_bar: bool = False,
) -> dict[str, int]:
    """Write ``anchor,positive`` rows to a csv file.

    Args:
        sentences: the text; any sequence, read a slice at a time.
        there, back: the two translations.
        output: the file; beside it ``.partial`` and ``.progress.json`` while it is being written.
        settings: what else the rows depend on (names of the models, …); a partial file of other settings, or of
            another text, is thrown away.
        columns: what a sentence and what came back are called.
        show_progress_bar: a bar on standard error.

    Returns:
        Counts: ``rows`` written, ``empty`` translations dropped, ``unchanged`` pairs kept.
    """
    output = Path(output)
    partial, progress = output.with_name(f"{output.name}.partial"), output.with_name(f"{output.name}.progress.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    key = _key(sentences, settings)
    state = _read_state(progress, partial, key)
    if state is None:
        size = partial.write_bytes(_csv([columns]))
        state = {"key": key, "done": 0, "bytes": size, "rows": 0, "empty": 0, "unchanged": 0}
    elif state["done"]:
        logger.info("%s: going on after %d of %d sentences", output, state["done"], len(sentences))
    with (
        partial.open("r+b") as file,
        tqdm(total=len(sentences), initial=state["done"], unit=" sentences", disable=not show_progress_bar) as bar,
    ):
        file.truncate(state["bytes"])
        file.seek(state["bytes"])
        while state["done"] < len(sentences):
            chunk = list(sentences[state["done"] : state["done"] + ROWS_AT_ONCE])
            pairs = list(zip(chunk, back(there(chunk)), strict=True))
            kept = [pair for pair in pairs if pair[1].strip()]
            file.write(_csv(kept))
            file.flush()
            os.fsync(file.fileno())
            state["done"] += len(chunk)
            state["bytes"] = file.tell()
            state["rows"] += len(kept)
            state["empty"] += len(pairs) - len(kept)
            state["unchanged"] += sum(first == second for first, second in kept)
            write_json(progress, state)
            bar.update(len(chunk))
    put_in_place(partial, output)
    progress.unlink(missing_ok=True)
    return {name: state[name] for name in ("rows", "empty", "unchanged")}


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _key(sentences: Sequence[str], settings: dict[str, Any]) -> str:
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for start in range(0, len(sentences), 10_000):
        digest.update("\n".join(sentences[start : start + 10_000]).encode())
    return digest.hexdigest()


def _read_state(progress: Path, partial: Path, key: str) -> dict[str, Any] | None:
    if not progress.is_file() or not partial.is_file():
        return None
    try:
        state = json.loads(progress.read_text(encoding="utf-8"))
        return state if state["key"] == key and partial.stat().st_size >= state["bytes"] else None
    except (ValueError, TypeError, KeyError):  # damaged: begun anew
        return None
