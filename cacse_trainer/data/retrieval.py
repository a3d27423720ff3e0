"""Queries and the documents that answer them: dev sets by which an encoder is judged as a search engine.

Four layouts are read:

- a file of pairs (`PAIR_COLUMNS`): each row's document answers its query, all other rows' are the distractors; where a
  column ``label`` says 0, the row's own is one, too;
- ``CORPUS+QUERIES``, two files: documents (``id`` or ``_id``, ``text`` or ``body``, perhaps ``title``) and queries
  (``query`` or ``text``, and the ``id`` of a document that answers);
- a folder as BEIR has it: ``corpus.jsonl``, ``queries.jsonl``, ``qrels/test.tsv``; ``FOLDER@dev`` names the split.

Equal documents are one, and equal queries are one query that several documents answer.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from cacse_trainer.data import readers
from cacse_trainer.data.sources import open_source
from cacse_trainer.errors import UserError
from cacse_trainer.files import writing_folder

PAIR_COLUMNS = (
    ("query", "document"),
    ("query", "passage"),
    ("query", "positive"),
    ("question", "answer"),
    ("anchor", "positive"),
)
"""Headers of a file of pairs: the query's, and that of the document which answers it."""
CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"
SPLITS = ("test", "dev")
"""Of a folder's qrels, where no split is named: the first that is there."""
SEPARATOR = "+"
_LABELS, _NO_ANSWER = ("label", "labels", "relevance"), ("0", "0.0", "False", "false")
_IDS, _TEXTS, _QUERIES = ("id", "_id"), ("text", "body", "document", "passage"), ("query", "text", "question")


@dataclass(frozen=True, eq=False)
class RetrievalSet:
    """Queries, documents, and which answer which.

    Args:
        queries: distinct.
        documents: distinct; those that answer no query are distractors.
        relevant: for each query the index of each document that answers it, and how well (a grade above 0).
    """

    queries: list[str]
    documents: list[str]
    relevant: list[dict[int, float]]


def load_retrieval(path_or_name: str | Path) -> RetrievalSet:
    """Read a retrieval set.

    Args:
        path_or_name: a file of pairs (csv, tsv, jsonl, json, parquet; a Hugging Face data set), ``CORPUS+QUERIES``
            (the second one may be named without the folder of the first), or a folder of BEIR's layout,
            ``FOLDER[@SPLIT]``; without a split its test, else its dev qrels. Queries without an answer are left out.

    Raises:
        UserError: nothing there, missing columns or ids, a blank text, or fewer than two different documents.
    """
    text = str(path_or_name)
    folder, split = _folder_of(text)
    made = _Builder(text)
    if folder is not None:
        _read_folder(folder, split, made)
    elif (files := _two_files(text)) is not None:
        _read_files(*files, made)
    else:
        _read_pairs(text, made)
    return made.finished()


def from_pairs(pairs: Iterable[tuple[str, str]], distractors: Iterable[str] = ()) -> RetrievalSet:
    """A retrieval set of (query, document) pairs, and documents that answer none of the queries.

    Raises:
        UserError: no pair, or fewer than two different documents.
    """
    made = _Builder("pairs")
    for query, document in pairs:
        made.answers(made.query(query), made.document(document))
    for document in distractors:
        made.document(document)
    return made.finished()


def save_retrieval(found: RetrievalSet, folder: Path, split: str = SPLITS[0]) -> None:
    """Write a retrieval set as BEIR has it, which `load_retrieval` reads; whole or not at all."""
    with writing_folder(folder) as staged:
        for name, texts in ((CORPUS, found.documents), (QUERIES, found.queries)):
            records = ({"_id": str(number), "text": text} for number, text in enumerate(texts))
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            (staged / name).write_text("".join(lines), encoding="utf-8")
        grades = (
            f"{query}\t{document}\t{grade:g}\n"
            for query, answers in enumerate(found.relevant)
            for document, grade in answers.items()
        )
        (staged / QRELS).mkdir()
        (staged / QRELS / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(grades), encoding="utf-8")


def is_folder_or_files(path_or_name: str | Path) -> bool:
    """Whether this is a folder, or a corpus and its queries."""
    text = str(path_or_name)
    return _folder_of(text)[0] is not None or _two_files(text) is not None


def has_pair_columns(path_or_name: str | Path) -> bool:
    """Whether the columns of a file or data set are those of queries and documents (`PAIR_COLUMNS`).

    Raises:
        UserError: there is no such file or data set.
    """
    return _pair_columns(open_source(path_or_name, "validation").columns()) is not None


def _folder_of(text: str) -> tuple[Path | None, str | None]:
    """A folder and the split that was named with it."""
    name, _, split = text.rpartition("@")
    for folder, chosen in ((text, None), (name, split)):
        if folder and Path(folder).expanduser().is_dir():
            return Path(folder).expanduser(), chosen or None
    return None, None


def _two_files(text: str) -> tuple[str, str] | None:
    if SEPARATOR not in text or Path(text).expanduser().exists():
        return None
    for place in (i for i, letter in enumerate(text) if letter == SEPARATOR):
        first, second = Path(text[:place]).expanduser(), Path(text[place + 1 :]).expanduser()
        beside = first.parent / second
        if first.is_file():
            return str(first), str(second if second.is_file() or not beside.is_file() else beside)
    return None


def _pair_columns(found: list[str]) -> tuple[str, str] | None:
    return next((pair for pair in PAIR_COLUMNS if set(pair) <= set(found)), None)


@dataclass
class _Builder:
    """Texts and grades as they are read, equal ones merged."""

    name: str
    queries: dict[str, int] = field(default_factory=dict)
    documents: dict[str, int] = field(default_factory=dict)
    relevant: list[dict[int, float]] = field(default_factory=list)

    def query(self, text: str) -> int:
        if text not in self.queries:
            self.relevant.append({})
        return self.queries.setdefault(text, len(self.queries))

    def document(self, text: str) -> int:
        return self.documents.setdefault(text, len(self.documents))

    def answers(self, query: int, document: int, grade: float = 1.0) -> None:
        graded = self.relevant[query]
        graded[document] = max(grade, graded.get(document, 0.0))

    def finished(self) -> RetrievalSet:
        kept = [(query, answers) for query, answers in zip(self.queries, self.relevant, strict=True) if answers]
        if not kept:
            raise UserError(f"{self.name}: no query has a document that answers it; give at least one")
        if len(self.documents) < 2:
            raise UserError(f"{self.name}: has one document, which every query finds; give at least two different ones")
        return RetrievalSet([query for query, _ in kept], list(self.documents), [answers for _, answers in kept])


def _read_pairs(text: str, made: _Builder) -> None:
    source = open_source(text, "validation")
    found = source.columns()
    pair = _pair_columns(found)
    if pair is None:
        known = ", ".join(" and ".join(pair) for pair in PAIR_COLUMNS)
        raise UserError(
            f"{source.name}: no columns of queries and documents ({known}); found {_listed(found)}; rename them"
        )
    labels = [name for name in _LABELS if name in found][:1]
    for where, query, document, *label in _rows(text, (*pair, *labels)):
        place = made.document(_text(where, pair[1], document))
        if str(*label) not in _NO_ANSWER:
            made.answers(made.query(_text(where, pair[0], query)), place)


def _read_files(corpus: str, queries: str, made: _Builder) -> None:
    found = open_source(corpus, "validation").columns()
    columns = [_one_of(corpus, found, _IDS), _one_of(corpus, found, _TEXTS)]
    by_id = _read_documents(corpus, columns, "title" in found, made)
    found = open_source(queries, "validation").columns()
    for where, query, key in _rows(queries, (_one_of(queries, found, _QUERIES), _one_of(queries, found, _IDS))):
        document = by_id.get(str(key))
        if document is None:
            raise UserError(f"{where}: no document of {corpus} has the id {str(key)[:40]!r}; mend the id")
        made.answers(made.query(_text(where, "query", query)), document)


def _read_folder(folder: Path, split: str | None, made: _Builder) -> None:
    for name in (CORPUS, QUERIES):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: is a folder without {name}; give one of {CORPUS}, {QUERIES} and {QRELS}/SPLIT.tsv, or a "
                "file of pairs"
            )
    judged = _qrels_of(folder, split)
    by_id = _read_documents(str(folder / CORPUS), ["_id", "text"], True, made)
    texts = {}
    for where, key, query in _rows(str(folder / QUERIES), ("_id", "text")):
        texts[_key(where, "_id", key)] = (where, query)
    lines = ((f"{judged}, line {line}", row) for line, row in readers.delimited_rows(str(judged), "\t", False) if row)
    for number, (where, row) in enumerate(lines):
        if len(row) != 3:
            raise UserError(f"{where}: {len(row)} fields, not query-id, corpus-id and score; mend the tabs")
        query, document, grade = row[0], row[1], _grade(row[2])
        if grade is None and number == 0:  # the header
            continue
        if grade is None:
            raise UserError(f"{where}: the score is {row[2][:40]!r}; give a number")
        if query not in texts:
            raise UserError(f"{where}: {QUERIES} has no query {query[:40]!r}; mend the id")
        if document not in by_id:
            raise UserError(f"{where}: {CORPUS} has no document {document[:40]!r}; mend the id")
        if grade > 0:
            made.answers(made.query(_text(texts[query][0], "text", texts[query][1])), by_id[document], grade)


def _qrels_of(folder: Path, split: str | None) -> Path:
    there = sorted(path.stem for path in (folder / QRELS).glob("*.tsv"))
    chosen = next((name for name in ([split] if split else SPLITS) if name in there), None)
    if chosen is None:
        wanted = f"{QRELS}/{split or SPLITS[0]}.tsv"
        others = f"there are {', '.join(there)}: name one as FOLDER@SPLIT" if there else "there are none in it"
        raise UserError(f"{folder}: no {wanted}; {others}")
    return folder / QRELS / f"{chosen}.tsv"


def _read_documents(path: str, columns: list[str], titled: bool, made: _Builder) -> dict[str, int]:
    """The index of each document by its id; a title goes before the text."""
    by_id: dict[str, int] = {}
    for where, key, text, *title in _rows(path, [*columns, *(["title"] if titled else [])]):
        key = _key(where, columns[0], key)
        if key in by_id:
            raise UserError(f"{where}: the id {key[:40]!r} is there twice; give each document its own")
        parts = [part.strip() for part in (*title, text) if isinstance(part, str)]
        whole = " ".join(filter(None, parts)) or None
        by_id[key] = made.document(_text(where, columns[1], whole))
    return by_id


def _rows(path: str, columns: Iterable[str]) -> Iterator[tuple[Any, ...]]:
    """Where each row stands, and its values."""
    source, columns = open_source(path, "validation"), list(columns)
    found = source.columns()
    for column in columns:
        if column not in found and column != "title":
            raise UserError(f"{source.name}: no column {column!r}, it has {_listed(found)}")
    columns = [column for column in columns if column in found]
    for batch in source.batches(columns):
        values = [batch.columns[column] for column in columns]
        lists = [value.to_pylist() if isinstance(value, (pa.Array, pa.ChunkedArray)) else value for value in values]
        for index, row in enumerate(zip(*lists, strict=True)):
            yield batch.where(index), *row


def _listed(found: list[str]) -> str:
    return ", ".join(column[:40] for column in found) or "none"


def _one_of(path: str, found: list[str], known: tuple[str, ...]) -> str:
    chosen = next((name for name in known if name in found), None)
    if chosen is None:
        raise UserError(f"{path}: no column {' or '.join(known)}; found {_listed(found)}; rename it")
    return chosen


def _key(where: str, column: str, value: Any) -> str:
    if not isinstance(value, (str, int)) or value == "":
        raise UserError(f"{where}: the {column} is {value!r}; give each row a text or a number")
    return str(value)


def _text(where: str, column: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: the {column} is {value!r}; give a text, or drop the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: the {column} is no valid text ({error.reason}); mend the row") from error
    return value


def _grade(text: str) -> float | None:
    try:
        grade = float(text)
    except ValueError:
        return None
    return grade if math.isfinite(grade) else None
