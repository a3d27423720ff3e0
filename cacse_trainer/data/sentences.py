"""Training text: any source to a data set of named raw-text columns.

The rows of a file are written, as they are read, to a private temporary Arrow file that the data set maps into memory:
a million lines are ready in seconds, memory stays flat, and a changed file is always read anew. The temporary file goes
when the process ends; nothing is written beside the user's file.
"""

import difflib
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from cacse_trainer.data import readers
from cacse_trainer.data.cleaning import CleanText, output_columns
from cacse_trainer.data.collator import SCORES, numbered_negatives
from cacse_trainer.data.sources import FileSource, Source, open_source
from cacse_trainer.errors import UserError
from cacse_trainer.files import private_folder

logger = logging.getLogger(__name__)

Columns = Sequence[str] | str | None

# Source columns taken without being asked for, in this order.
KNOWN_COLUMNS = (
    ("anchor", "positive", "hard_negative"),
    ("anchor", "positive", "negative"),
    ("sent0", "sent1", "hard_neg"),
    ("query", "positive", "negative"),
    ("anchor", "positive"),
    ("query", "positive"),
    ("sent0", "sent1"),
    ("text",),
    ("sentence",),
)
_DUPLICATE_SAMPLE = 100_000
DELIMITERS = {"csv": "commas", "tsv": "tabs"}
_COLUMN_NAME = re.compile(r"\w[\w.:/-]{0,39}")
_ROWS_LOOKED_AT = 100
_YES_OR_NO = ({"0", "1"}, {"0.0", "1.0"}, {"false", "true"}, {"no", "yes"})


def load_sentences(
    path_or_name: str | Path,
    text_columns: Columns = None,
    *,
    streaming: bool = False,
    split: str = "train",
    max_rows: int | None = None,
) -> Any:
    """Load training text as raw-text columns.

    One source column becomes ``text`` (a sentence that is its own positive), two become ``anchor`` and ``positive``,
    three ``anchor``, ``positive`` and ``hard_negative``, more ``anchor``, ``positive`` and ``negative_1`` to
    ``negative_K``. Rows with a blank, None or NaN cell are dropped and counted.

    Args:
        path_or_name: a txt (one sentence a line), csv (quoted as usual), tsv (never quoted), jsonl, json or parquet
            file, text files also as .gz, .bz2, .zst or .lz4; a file of unknown ending is read as txt. Otherwise a
            Hugging Face data set, ``owner/name[:config][@split]``.
        text_columns: the source columns to use, in the order anchor, positive, hard negatives. Default: anchor (or
            query), positive and negative_1 to negative_K, else the first of `KNOWN_COLUMNS` that the source has, else
            its only column; of csv and tsv one whose first line is a word,
            since a sentence there means that the file has no header, or another delimiter.
        streaming: read lazily, anew on each pass. The same rows; errors in the text come when they are reached.
        split: the split of a Hugging Face data set.
        max_rows: stop after so many kept rows.

    Returns:
        A `datasets.Dataset`; with ``streaming`` an `IterableDataset`.

    Raises:
        UserError: wrong input, in one line that names the file, the line and the mend.
    """
    if not streaming:
        return load_sentences_with_stats(path_or_name, text_columns, split=split, max_rows=max_rows)[0]
    source = open_source(path_or_name, split, streaming=True)
    columns = choose_columns(source, text_columns)
    features = datasets.Features({name: datasets.Value("string") for name in output_columns(len(columns))})
    given = {"source": source, "columns": columns, "max_rows": max_rows}
    return datasets.IterableDataset.from_generator(_stream_rows, features=features, gen_kwargs=given)


def load_sentences_with_stats(
    path_or_name: str | Path,
    text_columns: Columns = None,
    *,
    split: str = "train",
    max_rows: int | None = None,
    scored: bool = False,
) -> tuple[datasets.Dataset, dict[str, Any]]:
    """`load_sentences`, and what was found in the source, for the training report.

    With ``scored`` rows with negatives keep their column ``scores``: the positive's number and each negative's.

    Returns:
        The data set; the source's own names of the ``columns`` used, the ``rows`` read, those dropped because a needed
        cell was blank, None or NaN (``blank_dropped``), those ``kept``, and how many of the first ones repeat an
        earlier row's first column (``duplicates_in_sample``).
    """
    source = open_source(path_or_name, split)
    columns = choose_columns(source, text_columns)
    scored = scored and len(columns) > 2  # without negatives there is nothing to score, and the objective says so
    if scored and SCORES not in source.columns():
        raise UserError(
            f"{source.name}: no column 'scores', of the positive and the negatives of each row; cacse-trainer mine "
            "--scores writes it"
        )
    text = CleanText(source, columns, max_rows, scored)
    schema = text.schema
    handle, arrow_path = tempfile.mkstemp(suffix=".arrow", dir=_workspace())
    with os.fdopen(handle, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for table in text:
            writer.write_table(table)
    dataset = datasets.Dataset.from_file(arrow_path)
    first = dataset.data.column(0).slice(0, _DUPLICATE_SAMPLE)
    return dataset, {
        "columns": list(columns),
        "rows": text.rows,
        "blank_dropped": text.blank,
        "kept": text.kept,
        "duplicates_in_sample": f"{len(first) - len(first.unique())} of {len(first)}",
    }


def choose_columns(source: Source, wanted: Columns) -> tuple[str, ...]:
    """The source columns to read: those wanted, or known by their names, or the only one there is."""
    found = source.columns()
    if not found:
        raise UserError(f"{source.name}: is empty; give at least two different sentences")
    columns = _known_columns(source, found) if wanted is None else (wanted,) if isinstance(wanted, str) else wanted
    listed = ", ".join(found)
    if not columns or len(set(columns)) < len(columns):
        raise UserError(f"text_columns {list(columns)}: name one, two or more different columns of {listed}")
    for column in columns:
        if column not in found:
            _check_header(source, found)
            near = difflib.get_close_matches(column, found, n=1)
            mend = f"did you mean {near[0]!r}?" if near else "name one of these with text_columns"
            raise UserError(f"{source.name}: no column {column!r}, it has {listed}; {mend}")
        if found.count(column) > 1:
            raise UserError(f"{source.name}: {found.count(column)} columns are called {column!r}; rename one")
    if len(columns) == 2 and wanted is None:
        _check_no_labels(source, found, columns)
    if tuple(columns) != output_columns(len(columns)):
        logger.info("%s: %s from %s", source.name, ", ".join(output_columns(len(columns))), ", ".join(columns))
    return tuple(columns)


def _known_columns(source: Source, found: list[str]) -> Sequence[str]:
    count = next(number for number in count_from(0) if f"negative_{number + 1}" not in found)
    several = [(first, "positive", *numbered_negatives(count)) for first in ("anchor", "query") if count > 0]
    for known in (*several, *KNOWN_COLUMNS):
        if set(known) <= set(found):
            return known
    if len(found) > 1:
        raise UserError(f"{source.name}: which of its columns ({', '.join(found)})? name them with text_columns")
    _check_header(source, found)
    if isinstance(source, FileSource) and source.kind in DELIMITERS:
        logger.warning(
            "%s: took %r for the header; if it is a sentence, name the file .txt, or write a header above it (a line "
            "that says: text)",
            source.name,
            found[0],
        )
    return found


def _check_no_labels(source: Source, found: list[str], columns: Sequence[str]) -> None:
    """Refuse pairs beside a column that says 0 or 1 of them: the rows labelled 0 would be taken for positives."""
    others = [name for name in found if name not in columns]
    batch = next(iter(source.batches(others)), None) if others else None
    if batch is None:
        return
    for name, values in batch.columns.items():
        told = values.to_pylist() if isinstance(values, (pa.Array, pa.ChunkedArray)) else values
        if says_yes_or_no([value for value in told if not is_missing(value)]):
            raise UserError(
                f"{source.name}: column {name!r} says 0 or 1 of each pair of {' and '.join(columns)}; give "
                f"text_columns {' '.join(columns)} with label_column {name} and objective cosent, or text_columns "
                "alone if every row is a positive pair"
            )


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN or a blank."""
    return value is None or str(value).strip().lower() in ("", "nan")


def says_yes_or_no(values: Sequence[Any]) -> bool:
    """Whether the cells of a column say 0 or 1 of their rows, also as words or in quotes; there is one at least."""
    said = {str(value).strip(" \"'").lower() for value in values}
    return bool(said) and any(said <= words for words in _YES_OR_NO)


def _check_header(source: Source, found: list[str]) -> None:
    """Refuse the one column of a csv or tsv file whose first line is no column's name.

    Either the file has another delimiter than its ending says, or no header: its first sentence would be lost.
    """
    if not isinstance(source, FileSource) or source.kind not in DELIMITERS or len(found) > 1:
        return
    if _are_names(found):
        return
    shown, expected = found[0][:60], DELIMITERS[source.kind]
    used = readers.other_delimiter(found)
    if used == "\t":
        raise UserError(f"{source.name}: its first line {shown!r} holds tabs; name the file .tsv")
    if used and (_are_names([name.strip(' "') for name in found[0].split(used)]) or _is_split_by(source, used)):
        raise UserError(
            f"{source.name}: its first line {shown!r} is one column: the delimiter seems to be {used!r}, and a "
            f".{source.kind} file has {expected}; {readers.mend_of(used)}"
        )
    raise UserError(
        f"{source.name}: its first line {shown!r} is no column's name; write a header above the sentences (a line that "
        "says: text), or name the file .txt if it has one sentence a line; if it is the name, give it as text_columns "
        "(encode, search: text_column)"
    )


def _are_names(fields: Sequence[str]) -> bool:
    return all(_COLUMN_NAME.fullmatch(field) for field in fields)


def _is_split_by(source: FileSource, delimiter: str) -> bool:
    """Whether the first rows have as many fields as the first line, where this is the delimiter."""
    try:
        rows = [row for _, row in islice(readers.delimited_rows(source.name, delimiter, True), _ROWS_LOOKED_AT) if row]
    except UserError:  # of the quotes
        return False
    return len({len(row) for row in rows}) == 1


def _stream_rows(source: Source, columns: tuple[str, ...], max_rows: int | None) -> Iterator[dict[str, str]]:
    for table in CleanText(source, columns, max_rows):
        yield from table.to_pylist()


_workspace = cache(lambda: private_folder("cacse-trainer-"))
"""This process's private temporary folder."""
