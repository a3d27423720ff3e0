"""Sentence pairs with a score, in the layouts that STS data come in: dev sets, and training text of labelled pairs."""

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from cacse_trainer.data import readers
from cacse_trainer.data.sources import FileSource, Source, open_source
from cacse_trainer.errors import UserError

# Headers that are understood: first sentence, second sentence, score.
SENTENCE_COLUMNS = (
    *(("sentence1", "sentence2"), ("sentence_A", "sentence_B"), ("text1", "text2")),
    *(("anchor", "positive"), ("query", "positive"), ("sent0", "sent1"), ("question1", "question2")),
)
SCORE_COLUMNS = ("score", "similarity_score", "relatedness_score", "label", "is_duplicate")
LABEL_NAMES = (*SCORE_COLUMNS, "labels", "similarity", "relevance", "grade", "gold_label")
"""Names of columns that may say how alike the texts beside them are."""
NEGATIVES = ("negative", "hard_negative", "hard_neg", "negative_1")
# SentEval's sts-{train,dev,test}.csv: tabs, no header, no quoting, 7 fields or 9 with the licence's.
_STS_FIELDS: tuple[int, ...] = (7, 9)
_STS_PICK = (5, 6, 4)

Row = tuple[str, Any, Any, Any]  # where it stands, first sentence, second sentence, score


def load_pairs(
    path_or_name: str | Path,
    split: str = "validation",
    score_range: tuple[float, float] = (0.0, 5.0),
    columns: tuple[str, str, str] | None = None,
    *,
    all_equal: bool = False,
) -> datasets.Dataset:
    """Load graded sentence pairs as `sentence1`, `sentence2` (strings) and `score` (float), scores as they stand.

    Understood are: csv, tsv, txt, jsonl, json and parquet files with named columns (`SENTENCE_COLUMNS`,
    `SCORE_COLUMNS`; SICK's files are of this kind); SentEval's ``sts-dev.csv`` layout, with tabs, no quoting and no
    header; and Hugging Face data sets, ``owner/name[:config][@split]``, e.g. ``sentence-transformers/stsb``. Whether a
    csv, tsv or txt file is separated by tabs (then quote marks are text) or commas is seen from its first line.

    Args:
        path_or_name: the file or the data set.
        split: the split of a Hugging Face data set, unless the name says one.
        score_range: lowest and highest score accepted. Only the order counts for Spearman, so 0 to 1 and 0 to 5 both
            do; a value outside is most likely a wrong column.
        columns: names of first sentence, second sentence and score; default: those that are known.
        all_equal: take pairs that all have one score, too.

    Raises:
        UserError: missing columns; a blank sentence; a score that is no number or out of range; fewer than two rows;
            scores that are all equal, for which Spearman's correlation is not defined.
    """
    source = open_source(path_or_name, split)
    is_delimited = isinstance(source, FileSource) and source.kind in ("txt", "csv", "tsv")
    rows = _delimited(source.name, columns) if is_delimited else _named(source, columns)
    table: dict[str, list[Any]] = {"sentence1": [], "sentence2": [], "score": []}
    for where, first, second, score in rows:
        table["sentence1"].append(_sentence(where, first))
        table["sentence2"].append(_sentence(where, second))
        table["score"].append(_score(where, score, score_range))
    count = len(table["score"])
    if count < 2:
        found = "only one pair" if count else "no pairs"
        raise UserError(f"{source.name}: {found}; a correlation needs at least two")
    if len(set(table["score"])) == 1 and not all_equal:
        raise UserError(
            f"{source.name}: all {count} scores are {table['score'][0]:g}; the correlation is not defined, "
            "give pairs with different scores"
        )
    pairs = {frozenset(map(str.strip, pair)) for pair in zip(table["sentence1"], table["sentence2"], strict=True)}
    if len(pairs) == 1 or all(len(pair) == 1 for pair in pairs):
        raise UserError(
            f"{source.name}: all {count} pairs are of the same two sentences, or of a sentence and itself, and have "
            "one cosine; the correlation is not defined, give different pairs"
        )
    kinds = {"sentence1": "string", "sentence2": "string", "score": "float64"}
    features = datasets.Features({name: datasets.Value(kind) for name, kind in kinds.items()})
    return datasets.Dataset.from_dict(table, features=features)


def has_labels(path_or_name: str | Path, split: str = "train") -> bool:
    """Whether the columns of a file or data set are those of scored pairs, as `load_pairs` knows them.

    Raises:
        UserError: there is no such file or data set.
    """
    source = open_source(path_or_name, split)
    if isinstance(source, FileSource) and source.kind in ("csv", "tsv"):
        delimiter, quoted = _dialect(source.name)
        found = readers.delimited_header(source.name, delimiter, quoted)
        if _is_sts_layout(delimiter, found):
            return True
    else:
        found = source.columns()  # of a txt file: one sentence a line, whatever it holds
    if not set(NEGATIVES).isdisjoint(found):  # triplets
        return False
    return any(set(pair) <= set(found) for pair in SENTENCE_COLUMNS) and not set(SCORE_COLUMNS).isdisjoint(found)


def _named(source: Source, wanted: tuple[str, str, str] | None) -> Iterator[Row]:
    columns = list(_pair_columns(source.name, source.columns(), wanted))
    for batch in source.batches(columns):
        values = [batch.columns[column] for column in columns]
        lists = [value.to_pylist() if isinstance(value, (pa.Array, pa.ChunkedArray)) else value for value in values]
        for index, (first, second, score) in enumerate(zip(*lists, strict=True)):
            yield batch.where(index), first, second, score


def _delimited(path: str, wanted: tuple[str, str, str] | None) -> Iterator[Row]:
    delimiter, quoted = _dialect(path)
    rows: Iterator[tuple[int, list[str]]] = (row for row in readers.delimited_rows(path, delimiter, quoted) if row[1])
    line, head = next(rows, (1, []))
    if not head:
        raise UserError(f"{path}: is empty; give pairs with scores")
    if wanted is None and _is_sts_layout(delimiter, head):
        rows, pick = chain([(line, head)], rows), list(_STS_PICK)
        widths, wrong = _STS_FIELDS, "the STS layout has 7 or 9; mend the tabs"
    else:
        pick = [head.index(column) for column in _pair_columns(path, head, wanted)]
        widths, wrong = (len(head),), f"but the header has {len(head)}; mend the row"
    for line, fields in rows:
        if len(fields) not in widths:
            raise UserError(f"{path}, line {line}: {len(fields)} fields, {wrong}")
        first, second, score = (fields[index] for index in pick)
        yield f"{path}, line {line}", first, second, score


def _dialect(path: str) -> tuple[str, bool]:
    """Delimiter, and whether fields are quoted: tabs and no quotes where the first line has tabs, else commas."""
    first_line = next((text.lstrip("\r\n").split("\n", 1)[0] for _, text in readers.read_blocks(path)), "")
    return ("\t", False) if "\t" in first_line else (",", True)


def _is_sts_layout(delimiter: str, head: list[str]) -> bool:
    return delimiter == "\t" and len(head) in _STS_FIELDS and is_number(head[_STS_PICK[2]])


def _pair_columns(name: str, found: list[str], wanted: tuple[str, str, str] | None) -> tuple[str, str, str]:
    if wanted is not None:
        missing = next((column for column in wanted if column not in found), None)
        if missing is not None:
            raise UserError(f"{name}: no column {missing!r}, it has {', '.join(column[:40] for column in found)}")
        return wanted
    sentences = next((pair for pair in SENTENCE_COLUMNS if set(pair) <= set(found)), None)
    score = next((column for column in SCORE_COLUMNS if column in found), None)
    if sentences is None or score is None:
        if used := readers.other_delimiter(found):
            raise UserError(
                f"{name}: its first line {found[0][:60]!r} is one column: the delimiter seems to be {used!r}, and "
                f"pairs are separated by tabs or commas; {readers.mend_of(used)}"
            )
        raise UserError(
            f"{name}: no columns sentence1, sentence2 and score (or {', '.join(SCORE_COLUMNS[1:])}); "
            f"found {', '.join(column[:40] for column in found) or 'none'}; rename them (a dev set may also have query "
            "and document)"
        )
    return sentences[0], sentences[1], score


def _sentence(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or value.strip() in ("NaN", "nan"):
        raise UserError(f"{where}: the sentence is {value!r}; give both sentences of a pair, or drop the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: the sentence is no valid text ({error.reason}); mend the row") from error
    return value


def is_number(text: str) -> bool:
    """Whether some text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _score(where: str, value: Any, score_range: tuple[float, float]) -> float:
    low, high = score_range
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or not is_number(str(value)):
        point = ", with a decimal point," if isinstance(value, str) and is_number(value.replace(",", ".")) else ""
        raise UserError(
            f"{where}: the score is {value!r}; give a number{point} from {low:g} to {high:g}, or drop the row"
        )
    score = float(value)
    if not low <= score <= high:
        raise UserError(f"{where}: the score {score:g} is out of range; rescale the scores to {low:g} to {high:g}")
    return score
