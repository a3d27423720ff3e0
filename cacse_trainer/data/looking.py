"""A look at a file of training text: which of its columns are texts, which is a label, and what the rows are like."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from cacse_trainer.data.cleaning import CleanText
from cacse_trainer.data.pairs import LABEL_NAMES, SCORE_COLUMNS, SENTENCE_COLUMNS, has_labels, is_number, load_pairs
from cacse_trainer.data.sentences import choose_columns, is_missing, says_yes_or_no
from cacse_trainer.data.sources import Source, open_source
from cacse_trainer.errors import UserError

SAMPLE = 2_000
"""Values of a column that are looked at for what they are."""
MOST_ROWS = 2_000_000
"""A longer text is not counted to its end."""
FIRST = ("anchor", "query", "question", "title", "sent0", "sentence1", "sentence_A", "text1", "premise", "source")
NEGATIVE = re.compile(r"(hard_)?neg(ative)?(_\d+)?")
NUMBERING = re.compile(r"(?i).*(id|idx|index)|(.*_)?(no|nr|number)")


@dataclass
class Look:
    """What was seen.

    Args:
        columns: the texts, in the order anchor, positive, hard negatives.
        rows: how many; at most `MOST_ROWS`.
        label: the column with a number a pair, if any.
        labels: that number of each row.
        texts: the first `SAMPLE` rows' texts, by column.
        repeated: whether a text of the sample stands in two rows.
        by_name: whether the loaders know all of it by the columns' names.
    """

    columns: tuple[str, ...]
    rows: int = 0
    label: str | None = None
    labels: list[float] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    repeated: bool = False
    by_name: bool = True


def look_at(
    path_or_name: str | Path, text_columns: Sequence[str] | None = None, label_column: str | None = None
) -> Look:
    """Look at all rows of a text.

    Args:
        path_or_name: as of `load_sentences`.
        text_columns, label_column: what is known of it.

    Raises:
        UserError: it cannot be read, or what its columns are has to be said.
    """
    source = open_source(path_or_name, "train")
    names = source.columns()
    if text_columns is None and has_labels(path_or_name):  # of SentEval's layout, too, which has no header
        pair = next((pair for pair in SENTENCE_COLUMNS if set(pair) <= set(names)), ("sentence1", "sentence2"))
        found = Look(pair, label=next((name for name in SCORE_COLUMNS if name in names), "score"))
        _read_pairs(found, load_pairs(path_or_name, split="train", all_equal=True))
        return found
    if text_columns is None and len(names) > 1:
        found = _by_content(source, names)
    else:
        found = Look(choose_columns(source, text_columns), label=label_column)
    if label_column is not None and label_column not in names:
        raise UserError(f"{source.name}: no column {label_column!r}, it has {', '.join(names)}; name it")
    if found.label is not None:
        columns = (found.columns[0], found.columns[1], found.label)
        _read_pairs(found, load_pairs(path_or_name, split="train", columns=columns, all_equal=True))
    else:
        _read_texts(found, source)
    return found


def _by_content(source: Source, names: list[str]) -> Look:
    """The texts and the label of several columns."""
    if sentence := next((name for name in names if _is_sentence(name)), None):
        example = "sentence1, sentence2, score" if any(map(is_number, names)) else "anchor, positive"
        raise UserError(
            f"{source.name}: its first line seems to be a row, not names of columns ({sentence[:40]!r}); put a line "
            f"with names before it, such as {example}, with the file's own separator"
        )
    values = {name: found for name, found in _head(source, names).items() if found}
    numbers = [name for name, found in values.items() if all(is_number(str(value)) for value in found)]
    texts = [name for name in values if name not in numbers and _is_text(values[name])]
    labels = [name for name in numbers if name in LABEL_NAMES or _are_labels(values[name])]
    try:
        columns, by_name = list(choose_columns(source, None)), not labels
        more = [name for name in texts if name not in columns and NEGATIVE.fullmatch(name)]
        if more and len(columns) > 1:
            columns, by_name = [*columns, *more], False
    except UserError:
        columns, by_name = sorted(texts, key=_order), False
    listed = ", ".join(names)
    if len(columns) == 2:
        others = [name for name in numbers if name not in labels and not NUMBERING.fullmatch(name)]
        words = [name for name in values if name in LABEL_NAMES or says_yes_or_no(values[name])]
        words = [name for name in words if name not in numbers]
        if len(labels) > 1 or (not labels and (others or words)):
            doubtful = (labels or others or words)[0]
            a_number = "" if doubtful in numbers else ", as a number"
            raise UserError(
                f"{source.name}: does column {doubtful} grade the pair? give --text_columns {' '.join(columns)} with "
                f"--label_column {doubtful}{a_number} if it does; without label_column it is left out"
            )
        return Look(tuple(columns), label=labels[0] if labels else None, by_name=by_name)
    if len(columns) == 1 or by_name or any(NEGATIVE.fullmatch(name) for name in columns):
        return Look(tuple(columns), by_name=by_name)
    raise UserError(
        f"{source.name}: which of its columns ({listed})? name them with --text_columns: one; two that belong "
        "together; three or more, anchor, positive and hard negatives in this order"
    )


def _is_sentence(name: str) -> bool:
    """Whether a column's name is a text, as where a file has no header."""
    return len(name) > 50 or name.count(" ") > 3 or name.endswith((".", "?", "!", "。", "？", "！"))


def _order(name: str) -> int:
    return 0 if name in FIRST else 2 if NEGATIVE.fullmatch(name) else 1


def _head(source: Source, names: list[str]) -> dict[str, list[Any]]:
    """The first values of each column, the missing ones left out."""
    for batch in source.batches(names):
        heads = {name: _listed(batch.columns[name])[:SAMPLE] for name in names}
        return {name: [one for one in head if not is_missing(one)] for name, head in heads.items()}
    return {}


def _listed(values: Sequence[Any] | pa.Array) -> list[Any]:
    return values.to_pylist() if isinstance(values, (pa.Array, pa.ChunkedArray)) else list(values)


def _is_text(values: list[Any]) -> bool:
    """Whether values are sentences: strings, and not a few words again and again."""
    if not all(isinstance(value, str) for value in values):
        return False
    return len(set(values)) > 0.1 * len(values) or sum(map(len, values)) > 30 * len(values)


def _are_labels(values: list[Any]) -> bool:
    return {float(value) for value in values} == {0.0, 1.0}


def _read_pairs(found: Look, pairs: Dataset) -> None:
    found.rows, found.labels = len(pairs), list(pairs["score"])
    first, second = found.columns
    _sample(found, {first: pairs["sentence1"][:SAMPLE], second: pairs["sentence2"][:SAMPLE]})


def _read_texts(found: Look, source: Source) -> None:
    """Count the rows as they will be read, and keep the first texts."""
    texts: dict[str, list[str]] = {name: [] for name in found.columns}
    for table in CleanText(source, found.columns):
        found.rows += table.num_rows
        for kept, column in zip(texts.values(), table.columns, strict=True):
            kept += column.slice(0, SAMPLE - len(kept)).to_pylist()
        if found.rows >= MOST_ROWS:
            break
    _sample(found, texts)


def _sample(found: Look, texts: dict[str, list[str]]) -> None:
    found.texts = texts
    found.repeated = any(len(set(values)) < len(values) for values in texts.values())
