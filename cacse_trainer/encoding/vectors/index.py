"""Sentences beside their vectors: build, extend, search, save and load.

A saved index is a folder of ``index.json``, ``sentences.parquet`` and ``vectors.npy`` or ``index.faiss``; one larger
than memory (`index_on_disk`) has ``sentences.arrow``, ``index.faiss`` and ``lists.ivfdata``. It is written beside its
place and moved there whole. What made the vectors is recorded, so that another model's queries are refused.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cacse_trainer.data.corpus import Corpus
from cacse_trainer.encoding.vectors import disk_index, exact, faiss_vectors
from cacse_trainer.encoding.vectors.disk_index import StoredTexts, build_lists, write_texts
from cacse_trainer.encoding.vectors.exact import ExactVectors, open_table
from cacse_trainer.encoding.vectors.faiss_vectors import FaissVectors
from cacse_trainer.encoding.vectors.precision import directions, to_precision
from cacse_trainer.encoding.vectors.tables import Table, hash_of_rows
from cacse_trainer.errors import UserError
from cacse_trainer.files import check_entries, crc32_of, put_back, read_object, sha256_of, write_json, writing_folder

FACTS = "index.json"
SENTENCES = "sentences.parquet"
OLDER = (FACTS, SENTENCES, exact.FILE, faiss_vectors.FILE)
"""What an index consists of; those of older versions keep no list of it."""
EXACT = "exact"

Hits = list[tuple[str, float]]


class SearchIndex:
    """Sentences and the store of their vectors.

    Args:
        sentences: one a row.
        store: `ExactVectors` or `FaissVectors`.
        kind: ``exact``, ``flat``, ``ivf``, ``hnsw`` or a faiss factory string.
        made_by: what the vectors depend on; recorded.
    """

    def __init__(
        self, sentences: list[str] | StoredTexts, store: ExactVectors | FaissVectors, kind: str, made_by: dict[str, Any]
    ):
        self.sentences, self.store, self.kind, self.made_by = sentences, store, kind, made_by

    @classmethod
    def build(
        cls,
        sentences: Sequence[str],
        table: np.ndarray,
        *,
        kind: str = EXACT,
        precision: str = "float32",
        search_effort: int | None = None,
        made_by: dict[str, Any] | None = None,
    ) -> "SearchIndex":
        """An index of (n, dim) float32 vectors of length 1.

        Raises:
            UserError: see `FaissVectors.build`; or a precision that only the exact index has.
        """
        check_kind(kind, precision, search_effort)
        if kind == EXACT:
            store: ExactVectors | FaissVectors = ExactVectors(
                [to_precision(table, precision)], precision, table.shape[1]
            )
        else:
            store = FaissVectors.build(table, kind, search_effort)
        return cls(list(sentences), store, kind, made_by or {})

    def __len__(self) -> int:
        return len(self.sentences)

    def add(self, sentences: Sequence[str], table: np.ndarray) -> None:
        """More sentences with their (n, dim) float32 vectors of length 1.

        Raises:
            UserError: another number of dimensions, or an index on the disk.
        """
        if isinstance(self.sentences, StoredTexts):
            raise UserError(f"index {self.sentences.path.parent}: lies on the disk; build it anew to add to it")
        if table.shape[1] != self.store.dim:
            raise UserError(f"the index has vectors of {self.store.dim} dimensions, the new ones have {table.shape[1]}")
        self.store.add(to_precision(table, self.store.precision))
        self.sentences.extend(sentences)

    def search(
        self, queries: np.ndarray, *, top_k: int, threshold: float, device: torch.device | str = "cpu"
    ) -> list[Hits]:
        """The nearest sentences of each of the (q, dim) float32 queries of length 1, as (sentence, cosine)."""
        precision = self.store.precision
        asked = directions(to_precision(queries, precision), precision, self.store.dim)
        scores, rows = self.store.search(asked, top_k, device)
        return [
            [
                (self.sentences[i], score)
                for i, score in zip(row, row_scores, strict=True)
                if i >= 0 and score >= threshold
            ]
            for row, row_scores in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write the index; one that is there is replaced at the end, as a whole.

        Raises:
            UserError: there is something that is no index, it cannot be written, or the index lies on the disk already.
        """
        if isinstance(self.sentences, StoredTexts):
            raise UserError(f"index {self.sentences.path.parent}: lies on the disk; copy its folder")
        facts = {
            "kind": self.kind,
            "precision": self.store.precision,
            "dim": self.store.dim,
            "rows": len(self),
            "search_effort": self.store.effort if isinstance(self.store, FaissVectors) else None,
            "made_by": self.made_by,
        }
        try:
            with writing_folder(folder, OLDER if (folder / SENTENCES).is_file() else ()) as staged:
                pq.write_table(pa.table({"text": pa.array(self.sentences, pa.large_string())}), staged / SENTENCES)
                self.store.save(staged)
                write_json(staged / FACTS, facts)
        except OSError as error:
            raise UserError(f"index {folder}: cannot be written ({error.strerror or error})") from error

    @classmethod
    def load(cls, folder: Path, search_effort: int | None = None) -> "SearchIndex":
        """A saved index.

        Raises:
            UserError: there is none, or it is damaged.
        """
        facts = read_facts(folder)
        try:
            kind, precision, dim = facts["kind"], facts["precision"], facts["dim"]
            sentences: list[str] | StoredTexts
            if (folder / disk_index.TEXTS).is_file():
                sentences = StoredTexts(folder / disk_index.TEXTS)
            else:
                sentences = pq.read_table(folder / SENTENCES).column("text").to_pylist()
            store: ExactVectors | FaissVectors
            if kind == EXACT:
                store, intact = ExactVectors.load(folder, precision, dim), True
            else:
                store = FaissVectors.load(folder, kind, search_effort or facts["search_effort"])
                intact = store.dim == dim
        except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
            raise _damaged(folder, error) from error
        if not intact or len(store) != len(sentences) or len(sentences) != facts["rows"]:
            raise _damaged(folder, f"{len(sentences)} sentences, {len(store)} vectors")
        return cls(sentences, store, kind, facts["made_by"])


def check_kind(kind: str, precision: str, search_effort: int | None) -> None:
    """Refuse what the exact index has not, and what it alone has.

    Raises:
        UserError: a search effort for it, or a precision for another one.
    """
    if kind == EXACT and search_effort is not None:
        raise UserError("search_effort: the exact index compares everything; choose ivf or hnsw")
    if kind != EXACT and precision != "float32":
        raise UserError(f"precision {precision}: for the exact index; faiss names its own, such as 'SQ8' or 'PQ48'")


def read_facts(folder: Path) -> dict[str, Any]:
    """What is recorded of a saved index.

    Raises:
        UserError: there is none.
    """
    put_back(folder)
    path = folder / FACTS
    if not path.is_file():
        raise UserError(
            f"index {folder}: no {FACTS} in it; make one with save_index (cacse-trainer search --save_index)"
        )
    return read_object(path, "build the index anew", kind=str, precision=str, dim=int, rows=int, made_by=dict)


def _damaged(folder: Path, reason: object) -> UserError:
    if isinstance(reason, UserError):
        return reason
    return UserError(f"index {folder}: is damaged ({' '.join(str(reason).split())}); build it anew")


class Encoded(NamedTuple):
    """Vectors that ``cacse-trainer encode`` wrote: the tables where they lie, and what is recorded of each file."""

    tables: list[Table]
    parts: list[dict[str, Any]]
    precision: str
    dim: int


def read_encoded(path: Path, made_by: dict[str, Any]) -> Encoded:
    """The vectors that ``cacse-trainer encode`` wrote; they stay on the disk.

    Args:
        path: a ``.npy`` file, which is mapped, or the folder of finished shards; ``PATH.json`` beside it.
        made_by: of the encoder that will ask.

    Raises:
        UserError: no such file, no facts beside it or those of other vectors, another encoder, or no unit vectors.
    """
    beside = path.with_name(f"{path.name}.json")
    if path.is_dir() and not beside.is_file():
        raise UserError(f"vectors {path}: the shards are not finished; cacse-trainer encode --finish --output {path}")
    if not path.is_dir() and (path.suffix != ".npy" or not path.is_file() or not beside.is_file()):
        raise UserError(f"vectors {path}: give a .npy file of cacse-trainer encode, with its {beside.name} beside it")
    facts = read_object(beside, "encode anew", precision=str, dim=int, normalize=bool)
    precision, dim = facts["precision"], facts["dim"]
    if path.is_dir():
        check_entries(facts, str(beside), "encode --finish anew", parts=list[dict[str, Any]])
    parts = [(path / part["file"], part) for part in facts["parts"]] if path.is_dir() else [(path, facts)]
    tables = [open_table(file, precision, dim) for file, _ in parts]
    wanted = {"prompt": None, "dtype": None, **made_by}  # of dtypes an encoder names int8 alone
    its = {**facts, "dtype": "int8" if facts.get("dtype") == "int8" else None}
    differing = [name for name, value in wanted.items() if name != "model" and its.get(name) != value]
    if differing:
        raise UserError(
            f"vectors {path}: were made by {facts.get('model')}, and the encoder differs in {', '.join(differing)}"
        )
    if not facts["normalize"]:
        raise UserError(f"vectors {path}: keep their lengths (--no_normalize); encode without that to search by cosine")
    for file, part in parts:
        if part.get("crc32", found := crc32_of(file)) != found:
            raise UserError(
                f"vectors {file}: are not those that {beside.name} tells of (the checksum differs); encode anew"
            )
    return Encoded(tables, [part for _, part in parts], precision, dim)


def check_text(path: Path, encoded: Encoded, corpus: Corpus, texts: Iterable[str]) -> None:
    """Find that vectors were made of a text, which is gone through once.

    Args:
        path: of the vectors, for messages.
        encoded: these.
        corpus: where the text comes from.
        texts: its rows.

    Raises:
        UserError: it is another one.
    """
    rows, same = iter(texts), []
    found = 0
    for table, part in zip(encoded.tables, encoded.parts, strict=True):
        count, digest = hash_of_rows(islice(rows, len(table)))
        found += count
        same.append(part.get("rows_sha256", digest) == digest)
    found += sum(1 for _ in rows)
    if found != (count := sum(map(len, encoded.tables))):
        raise UserError(f"vectors {path}: {count} of them, and the corpus has {found} rows; is it another one?")
    if not all("rows_sha256" in part for part in encoded.parts):
        # the file was written by an older version, which knew the text's file only
        file = Path(corpus.name)
        same.append(not file.is_file() or encoded.parts[0].get("input_sha256") in (None, sha256_of(file)))
    if not all(same):
        raise UserError(f"vectors {path}: were made of another text than {corpus.name}; encode it, or give that one")


def open_vectors(path: Path, corpus: Corpus, made_by: dict[str, Any]) -> SearchIndex:
    """The vectors that ``cacse-trainer encode`` wrote as an exact index; they stay on the disk, nothing is copied.

    Args:
        path, made_by: as for `read_encoded`.
        corpus: the text that they were made of.

    Raises:
        UserError: see `read_encoded`; or another corpus.
    """
    encoded = read_encoded(path, made_by)
    rows = list(corpus)
    check_text(path, encoded, corpus, rows)
    store = ExactVectors(encoded.tables, encoded.precision, encoded.dim)
    return SearchIndex(rows, store, EXACT, made_by)


def index_on_disk(
    folder: Path,
    path: Path,
    corpus: Corpus,
    made_by: dict[str, Any],
    kind: str = "ivf",
    search_effort: int | None = None,
) -> dict[str, Any]:
    """Make an index larger than memory of vectors that ``cacse-trainer encode`` wrote; `SearchIndex.load` maps it.

    Args:
        folder: for the index; one that is there is replaced at the end, as a whole.
        path, made_by: as for `read_encoded`.
        corpus: the text that the vectors were made of; gone through once, and copied.
        kind: see `build_lists`.
        search_effort: cells that a query looks into.

    Returns:
        What is recorded of it, among it the ``rows`` and the ``recall`` of `build_lists`.

    Raises:
        UserError: see `open_vectors` and `build_lists`; or the folder is no index, or cannot be written.
    """
    faiss_vectors.load_faiss()  # what is missing is told before the corpus is copied
    if "ivf" not in kind.lower():
        raise UserError(
            f"index kind {kind!r}: has no cells that could lie on the disk; choose ivf, or a factory string, such as "
            "IVF65536,SQ8, or build it without --vectors"
        )
    encoded = read_encoded(path, made_by)
    try:
        with writing_folder(folder, OLDER if (folder / SENTENCES).is_file() else ()) as staged:
            check_text(path, encoded, corpus, write_texts(staged / disk_index.TEXTS, corpus))
            found = build_lists(staged, encoded.tables, encoded.precision, encoded.dim, kind, search_effort)
            facts = {
                "kind": kind,
                "precision": "float32",
                "dim": encoded.dim,
                "rows": sum(map(len, encoded.tables)),
                "search_effort": search_effort,
                "recall": found,
                "made_by": made_by,
            }
            write_json(staged / FACTS, facts)
    except OSError as error:
        raise UserError(f"index {folder}: cannot be written ({error.strerror or error})") from error
    return facts
