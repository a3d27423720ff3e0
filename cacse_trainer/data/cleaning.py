"""Raw batches of a source to tables of text: blank rows dropped and counted, what cannot be trained on refused."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cacse_trainer.data.collator import SCORES, VIEWS, numbered_negatives
from cacse_trainer.data.readers import Batch
from cacse_trainer.data.sources import Source
from cacse_trainer.errors import UserError

logger = logging.getLogger(__name__)

LONG_SENTENCE = 1_000_000
NAN_WORDS = ("NaN", "nan")
SCORE_LIST = pa.list_(pa.float32())
LARGEST_SCORE = 1e18
"""Whose square is still a float32; NaN is not below it."""


def output_columns(count: int) -> tuple[str, ...]:
    """The names under which so many source columns reach the collator.

    >>> output_columns(1), output_columns(3), output_columns(4)
    (('text',), ('anchor', 'positive', 'hard_negative'), ('anchor', 'positive', 'negative_1', 'negative_2'))
    """
    if count <= len(VIEWS):
        return VIEWS[count - 1]
    return ("anchor", "positive", *numbered_negatives(count - 2))


class CleanText:
    """One pass over some columns of a source: iterate over its tables, then read what was counted.

    With ``scored`` the tables have a column ``scores``, too, see `scores_of`.

    Attributes:
        rows: rows read so far.
        blank: rows dropped, since one of the columns was blank, None or NaN.
        kept: rows handed on.
    """

    def __init__(
        self, source: Source, columns: tuple[str, ...], max_rows: int | None = None, scored: bool = False
    ) -> None:
        if max_rows is not None and max_rows < 2:
            raise UserError(
                f"max_rows {max_rows}: a single sentence has no negatives; give at least 2, or leave it out"
            )
        if scored and (own := [name for name in source.columns() if name in columns]) != list(columns):
            raise UserError(
                f"{source.name}: scores stand in the order of the file's columns: give --text_columns {' '.join(own)}"
            )
        self.source = source
        self.columns, self.scored = columns, scored
        self.max_rows = max_rows
        self.names = output_columns(len(columns))
        self.rows = self.blank = self.kept = 0
        self._first: dict[str, str] = {}
        self._all_same = True

    @property
    def schema(self) -> pa.Schema:
        """Of the tables."""
        texts = [(name, pa.string()) for name in self.names]
        return pa.schema([*texts, (SCORES, SCORE_LIST)] if self.scored else texts)

    def __iter__(self) -> Iterator[pa.Table]:
        for batch in self.source.batches([*self.columns, *([SCORES] if self.scored else [])]):
            table = self._clean(batch)
            if self.max_rows is not None:
                table = table.slice(0, self.max_rows - self.kept)
            self._compare(table)
            self.kept += table.num_rows
            yield table
            if self.kept == self.max_rows:
                break
        self._finish()

    def _clean(self, batch: Batch) -> pa.Table:
        table = pa.table([strings_of(batch, column) for column in self.columns], names=list(self.names))
        lengths = [pc.utf8_length(pc.utf8_trim_whitespace(column)) for column in table.columns]
        for length in lengths:
            if (pc.max(length).as_py() or 0) > LONG_SENTENCE:
                index = pc.index(length, pc.max(length)).as_py()
                logger.warning(
                    "%s: a sentence of %d characters; only its beginning is used, is this one sentence a line?",
                    batch.where(index),
                    length[index].as_py(),
                )
        shortest = pc.min_element_wise(*lengths, skip_nulls=False)
        is_whole = pc.greater(pc.fill_null(shortest, 0), 0)
        if self.scored:
            table = table.append_column(SCORES, scores_of(batch, len(self.columns) - 1))
            is_whole = pc.and_(is_whole, table.column(SCORES).is_valid())
        kept = table.filter(is_whole)
        self.rows += table.num_rows
        self.blank += table.num_rows - kept.num_rows
        return kept

    def _compare(self, table: pa.Table) -> None:
        if table.num_rows and not self._first:
            self._first = table.select(list(self.names)).slice(0, 1).to_pylist()[0]
        if self._all_same:
            same = [pc.all(pc.equal(table.column(name), text), min_count=0) for name, text in self._first.items()]
            self._all_same = all(scalar.as_py() for scalar in same)

    def _finish(self) -> None:
        name, first = self.source.name, next(iter(self._first.values()), "")
        if self.blank:
            logger.info("%s: dropped %d blank rows of %d", name, self.blank, self.rows)
        if self.kept == 0:
            what = f"all {self.rows} rows are blank" if self.rows else "is empty"
            raise UserError(f"{name}: {what}; give at least two different sentences")
        if self.kept == 1:
            mend = "its lines end in a lone CR, convert them to LF" if "\r" in first else "give at least two"
            raise UserError(f"{name}: only one row with text; a single sentence has no negatives, {mend}")
        if self._all_same:
            raise UserError(
                f"{name}: all {self.kept} rows are the same ({first[:40]!r}); a sentence cannot be its own negative, "
                "give different ones"
            )


def scores_of(batch: Batch, count: int) -> pa.Array:
    """The column ``scores`` as lists of so many numbers; a missing one is null.

    Raises:
        UserError: one that is no such list, nor JSON of it, with its row.
    """
    values = batch.columns[SCORES]
    found: list[list[float] | None] = []
    for index, value in enumerate(values.to_pylist() if isinstance(values, pa.Array) else values):
        if value is None or value == "":
            found.append(None)
            continue
        try:
            numbers = [float(number) for number in (json.loads(value) if isinstance(value, str) else value)]
        except (TypeError, ValueError, OverflowError, RecursionError):
            numbers = []
        if len(numbers) != count or not all(abs(number) < LARGEST_SCORE for number in numbers):
            raise UserError(
                f"{batch.where(index)}: scores are {str(value)[:40]}: needed are {count} numbers, of the row's "
                f"positive and its {count - 1} negative(s), as cacse-trainer mine --scores writes them"
            )
        found.append(numbers)
    return pa.array(found, SCORE_LIST)


def strings_of(batch: Batch, column: str) -> pa.Array:
    """One column as Arrow strings, its missing values as nulls."""
    values = batch.columns[column]
    if isinstance(values, pa.Array):
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        if kind not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):
            raise UserError(f"{batch.name}: column {column!r} holds {values.type}, not text; name a column of strings")
        return values.cast(pa.string())
    try:
        strings = pa.array(values, pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError):
        strings = pa.array([_string(batch, index, column) for index in range(len(values))], pa.string())
    if batch.nan_is_text:
        strings = pc.if_else(pc.is_in(strings, pa.array(NAN_WORDS)), pa.scalar(None, pa.string()), strings)
    return strings


def _string(batch: Batch, index: int, column: str) -> str | None:
    value: Any = batch.columns[column][index]
    if value is None or value != value:  # NaN is the value that differs from itself
        return None
    if not isinstance(value, str):
        where, shown = batch.where(index), repr(value)[:40]
        raise UserError(f"{where}: {column!r} is {shown}, not a string; write it in quotes or drop the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{batch.where(index)}: {column!r} is no valid text ({error.reason}); mend the row") from error
    return value
