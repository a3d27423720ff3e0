"""Round-trip translation: a sentence, and what comes back from another language, as a positive pair.

Rows are translated in chunks and appended to a partial file; after each chunk the number of bytes that are whole is
recorded, so that an interrupted run goes on where it stopped. The file gets its name when it is finished.

Source of the recipe: TNCSE (AAAI 2025), whose towers are trained on such pairs.
"""

import csv
import hashlib
import io
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from cacse_trainer.errors import UserError, one_line, user_errors
from cacse_trainer.files import put_in_place, read_object, write_json

logger = logging.getLogger(__name__)

Translate = Callable[[Sequence[str]], list[str]]

COLUMNS = ("anchor", "positive")
ROWS_AT_ONCE = 256


class Translator:
    """A translation model as a function of sentences.

    Args:
        path: folder or hub id of a sequence-to-sequence model, such as ``Helsinki-NLP/opus-mt-en-fr``.
        device: where it runs.
        batch_size: sentences translated together.
        num_beams: of beam search; 1 is greedy.
        max_length: longer sentences are cut to so many tokens, and no more are generated.

    Raises:
        UserError: the model or its tokenizer cannot be loaded.
    """

    def __init__(
        self, path: str, device: str = "cpu", batch_size: int = 32, num_beams: int = 1, max_length: int = 128
    ) -> None:
        try:
            with user_errors(f"translation model {path}"):
                self.tokenizer = AutoTokenizer.from_pretrained(path)
                self.model = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32).eval().to(device)
        except ImportError as error:
            raise UserError(
                f"translation model {path}: a library is missing; pip install 'cacse-trainer[translation]' "
                f"({one_line(error)[:120]})"
            ) from error
        self.batch_size, self.num_beams, self.max_length = batch_size, num_beams, max_length

    def __call__(self, sentences: Sequence[str]) -> list[str]:
        """Translations in the order of the sentences; batches are of similar length."""
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        found = [""] * len(sentences)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            texts = [sentences[i] for i in rows]
            encoded = self.tokenizer(
                texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
            )
            inputs = {name: encoded[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
            with torch.inference_mode():
                ids = self.model.generate(
                    **inputs, num_beams=self.num_beams, max_new_tokens=self.max_length, do_sample=False
                )
            for i, text in zip(rows, self.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
                found[i] = " ".join(text.split())
        return found


def write_pairs(
    sentences: Sequence[str],
    there: Translate,
    back: Translate,
    output: str | Path,
    *,
    settings: dict[str, Any],
    show_progress_bar: bool = False,
) -> dict[str, int]:
    """Write ``anchor,positive`` rows to a csv file.

    Args:
        sentences: the text; any sequence, read a slice at a time.
        there, back: the two translations.
        output: the file; beside it ``.partial`` and ``.progress.json`` while it is being written.
        settings: what else the rows depend on (names of the models, …); a partial file of other settings, or of
            another text, is thrown away.
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
        size = partial.write_bytes(_csv([COLUMNS]))
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
    state = read_object(progress, "delete it to begin anew", key=str, done=int, bytes=int, rows=int)
    return state if state["key"] == key and partial.stat().st_size >= state["bytes"] else None
