"""Hard negatives: for each (anchor, positive) the texts of a corpus that an encoder takes for near the anchor.

For every row the corpus is ranked by its cosine to the anchor. Left out are the positive, what says the same (equal but
for white space and case), every other positive of an equal anchor, and the anchor itself. Of what is left those count
that stand in the rank range and whose score is at most

    min(ceiling, s⁺ − margin, s⁺ − relative_margin · |s⁺|)        s⁺: the positive's own score

and the best K of them are the negatives. Texts that score above it are more likely positives that nobody has marked.
The corpus is encoded once, to the disk, and compared in blocks: no table of rows × corpus is ever made.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets
import numpy as np
import pyarrow as pa

from cacse_trainer.adaptation.candidates import BLOCK, Candidates, keys_of
from cacse_trainer.data import load_sentences
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.embedder import progress_bar
from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.encoding.vectors.index import EXACT, check_kind
from cacse_trainer.encoding.vectors.precision import check_precision
from cacse_trainer.errors import UserError
from cacse_trainer.files import private_folder
from cacse_trainer.models.cross_encoder import CrossEncoder

RANK_RANGE = (1, 50)
RELATIVE_MARGIN = 0.05
SAMPLINGS = ("top", "random")
FAISS, FAISS_KIND = "faiss", "ivf"
ENTRIES_AT_ONCE = 4_000_000
"""Scores that are kept at once, rows times ranks."""
RESCORED_AT_ONCE = 256
"""Rows whose pairs the cross-encoder is given at once."""

Rows: TypeAlias = datasets.Dataset | Sequence[Mapping[str, str]] | str | os.PathLike[str]


class Mined(NamedTuple):
    """Rows with their negatives, and what was counted on the way."""

    rows: datasets.Dataset
    counts: dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """Which of the ranked texts become negatives; see `mine_hard_negatives`.

    Raises:
        UserError: a number is out of its range.
    """

    negatives: int = 1
    rank_range: tuple[int, int] = RANK_RANGE
    ceiling: float | None = None
    margin: float | None = None
    relative_margin: float | None = RELATIVE_MARGIN
    sampling: str = "top"
    seed: int = 0
    cross_margin: float = 0.0

    def __post_init__(self) -> None:
        first, last = self.rank_range
        if self.negatives < 1:
            raise UserError(f"negatives {self.negatives}: at least 1 a row")
        if not 1 <= first <= last:
            raise UserError(f"rank_range {first} {last}: two ranks from 1, the lower one first")
        if last - first + 1 < self.negatives:
            raise UserError(
                f"rank_range {first} {last}: holds {last - first + 1} texts, fewer than {self.negatives} negatives; "
                "widen it"
            )
        if self.relative_margin is not None and not 0 <= self.relative_margin <= 1:
            raise UserError(f"relative_margin {self.relative_margin}: a share of the positive's score, from 0 to 1")
        if self.sampling not in SAMPLINGS:
            raise UserError(f"sampling {self.sampling!r} is none of {', '.join(SAMPLINGS)}")

    def limit(self, positive: np.ndarray) -> np.ndarray:
        """The highest score that a negative may have, by the positive's (n,)."""
        limit = np.full_like(positive, np.inf if self.ceiling is None else self.ceiling)
        if self.margin is not None:
            limit = np.minimum(limit, positive - np.float32(self.margin))
        if self.relative_margin is not None:
            limit = np.minimum(limit, positive - np.float32(self.relative_margin) * np.abs(positive))
        return limit

    @property
    def columns(self) -> list[str]:
        """What the negatives' columns are called."""
        return ["hard_negative"] if self.negatives == 1 else [f"negative_{i + 1}" for i in range(self.negatives)]


def mine_hard_negatives(
    encoder: BaseEncoder | str | os.PathLike[str],
    rows: Rows,
    corpus: Iterable[str] | str | os.PathLike[str] | None = None,
    *,
    negatives: int = 1,
    rank_range: tuple[int, int] = RANK_RANGE,
    ceiling: float | None = None,
    margin: float | None = None,
    relative_margin: float | None = RELATIVE_MARGIN,
    sampling: str = "top",
    seed: int = 0,
    query_prompt: str = "",
    document_prompt: str = "",
    index: str = EXACT,
    search_effort: int | None = None,
    precision: str = "float32",
    cross_encoder: CrossEncoder | str | None = None,
    cross_margin: float = 0.0,
    scores: bool = False,
    batch_size: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    show_progress_bar: bool = False,
) -> Mined:
    """Find hard negatives for (anchor, positive) rows; rows for which there are not enough are dropped and counted.

    Args:
        encoder: a `SentenceEncoder`, or the folder or hub id of one.
        rows: with the columns ``anchor`` and ``positive``: a data set, a list of dicts, or a file as for
            `load_sentences`.
        corpus: texts, or a file of them, one a row; default: the distinct positives.
        negatives: how many a row, K.
        rank_range: first and last rank, from 1, that a negative may have among the texts that are not left out.
        ceiling: a negative's score is at most this.
        margin: and so far below the positive's.
        relative_margin: and below it by this share of it; None: no such limit.
        sampling: ``top`` takes the best-ranked, ``random`` any of those that may be taken.
        seed: of the random ones.
        query_prompt, document_prompt: put before every anchor, and before every positive and text of the corpus.
        index: ``exact`` compares everything; ``faiss`` (ivf), or flat, ivf, hnsw or a faiss factory string, is faster
            and holds the vectors in memory.
        search_effort: of the faiss index, see `Searching.build_index`.
        precision: of the corpus's vectors on the disk: float32, float16, int8 or binary.
        cross_encoder: folder or hub id of a sequence classifier with one label. It scores the texts that may be taken;
            those above the positive's own score minus ``cross_margin`` are left out, and ``top`` goes by its scores.
        cross_margin: in its logits.
        scores: a column ``scores``, the positive's and then each negative's: cosines, or the cross-encoder's logits.
        batch_size: as for `SentenceEncoder.encode`.
        folder: where the corpus's vectors lie meanwhile; default: the system's place for temporary files.
        show_progress_bar: on standard error.

    Returns:
        ``rows``: anchor, positive and ``hard_negative``, or ``negative_1`` … ``negative_K`` for K > 1, in the order of
        the rows. ``counts``: ``rows``; ``corpus`` (distinct texts), ``corpus_repeated``, ``corpus_blank``; ``mined``,
        ``dropped``; ``above_limit`` and ``by_cross_encoder`` (texts in the rank range that were left out); and the mean
        ``positive_score`` and ``negative_score``.

    Raises:
        UserError: a setting is out of its range, there is no anchor or positive column, or the corpus is empty.
    """
    choice = Choice(negatives, rank_range, ceiling, margin, relative_margin, sampling, seed, cross_margin)
    index = FAISS_KIND if index == FAISS else index
    check_precision(precision)
    check_kind(index, precision, search_effort)
    pairs = _pairs(rows)
    if not isinstance(encoder, BaseEncoder):
        encoder = SentenceEncoder(encoder)
    if isinstance(cross_encoder, str):
        cross_encoder = CrossEncoder(cross_encoder, encoder.device)
    if isinstance(corpus, (str, os.PathLike)):
        corpus = Corpus(os.fspath(corpus))
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"folder {folder}: no such folder; make it, or leave it out")
    place = Path(tempfile.mkdtemp(dir=_workspace(Path(folder).resolve() if folder is not None else None)))
    candidates = Candidates(_column(pairs, "positive") if corpus is None else corpus, place)
    candidates.encode(
        encoder,
        prompt=document_prompt,
        precision=precision,
        index=index,
        search_effort=search_effort,
        batch_size=batch_size,
        show_progress_bar=show_progress_bar,
    )
    miner = _Miner(encoder, pairs, candidates, choice, (query_prompt, document_prompt), cross_encoder, batch_size)
    with progress_bar(len(pairs), show_progress_bar, "Mining") as bar:
        for chunk in miner.chunks():
            miner.mine(chunk)
            bar.update(len(chunk))
    found = miner.write(place / "rows.arrow", scores)
    candidates.close()
    counts = {
        "rows": len(pairs),
        "corpus": len(candidates),
        "corpus_repeated": candidates.lines - candidates.blank - len(candidates),
        "corpus_blank": candidates.blank,
        "mined": len(found),
        "dropped": len(pairs) - len(found),
        **miner.counts,
    }
    return Mined(found, counts)


_workspace = cache(partial(private_folder, "cacse-trainer-mine-"))
"""This process's private folder in a place, or among the temporary ones."""


def _pairs(rows: Rows) -> datasets.Dataset:
    if isinstance(rows, (str, os.PathLike)):
        rows = load_sentences(os.fspath(rows))
    pairs = rows if isinstance(rows, datasets.Dataset) else datasets.Dataset.from_list([dict(row) for row in rows])
    missing = [name for name in ("anchor", "positive") if name not in pairs.column_names]
    if missing or len(pairs) == 0:
        what = (
            f"no column {missing[0]!r} (they have {', '.join(pairs.column_names)})" if len(pairs) else "there are none"
        )
        raise UserError(f"rows: {what}; give pairs of an anchor and a positive")
    return pairs.select_columns(["anchor", "positive"])


def _column(rows: datasets.Dataset, name: str) -> Iterator[str]:
    for block in rows.iter(BLOCK):
        yield from block[name]


class _Miner:
    """The search for the negatives of all rows, a chunk at a time."""

    def __init__(
        self,
        encoder: BaseEncoder,
        pairs: datasets.Dataset,
        candidates: Candidates,
        choice: Choice,
        prompts: tuple[str, str],
        cross_encoder: CrossEncoder | None,
        batch_size: int | None,
    ):
        self.encoder, self.pairs, self.candidates, self.choice = encoder, pairs, candidates, choice
        self.query_prompt, self.document_prompt = prompts
        self.cross_encoder, self.batch_size = cross_encoder, batch_size
        anchors = keys_of(_column(pairs, "anchor"))
        self.positives = candidates.places(keys_of(_column(pairs, "positive")))
        # (group of equal anchors, place of a text that is no negative of theirs), as one sorted number each
        _, self.group = np.unique(anchors, return_inverse=True)
        places = np.concatenate([self.positives, candidates.places(anchors)])
        self.own = np.unique((np.tile(self.group, 2) * len(candidates) + places)[places >= 0])
        self.own_texts = np.bincount(self.own // len(candidates), minlength=len(self.group))[self.group]
        self.chosen = np.full((len(pairs), choice.negatives), -1, dtype=np.int64)
        self.scores = np.full((len(pairs), 1 + choice.negatives), np.nan, dtype=np.float32)  # the positive's first
        self.counts: dict[str, Any] = {"above_limit": 0, "by_cross_encoder": 0}

    def chunks(self) -> Iterator[np.ndarray]:
        """Row numbers; together those for which about as many texts are left out, and only a few where it is many."""
        classes = np.ceil(np.log2(self.own_texts + 1)).astype(np.int64)
        for one in np.unique(classes):
            rows = np.flatnonzero(classes == one)
            size = max(1, min(BLOCK, ENTRIES_AT_ONCE // self._searched(rows)))
            yield from (rows[start : start + size] for start in range(0, len(rows), size))

    def _searched(self, rows: np.ndarray) -> int:
        """How many of the nearest texts are looked at: those that may be left out are among them."""
        return min(len(self.candidates), self.choice.rank_range[1] + int(self.own_texts[rows].max()))

    def mine(self, chunk: np.ndarray) -> None:
        """Choose the negatives of the rows of these numbers."""
        choice = self.choice
        texts = self.pairs[chunk.tolist()]
        queries = self._encode(self.query_prompt, texts["anchor"])
        positive = self._positive_scores(queries, texts["positive"], self.positives[chunk])
        scores, places = self.candidates.nearest(queries, self._searched(chunk), self.encoder.device)  # (q, k) each
        allowed = (places >= 0) & ~self._is_own(chunk, places)
        rank = np.cumsum(allowed, axis=1)
        allowed &= (rank >= choice.rank_range[0]) & (rank <= choice.rank_range[1])
        above = allowed & (scores > choice.limit(positive)[:, None])
        self.counts["above_limit"] += int(above.sum())
        allowed &= ~above
        priority = -np.broadcast_to(np.arange(places.shape[1], dtype=np.float64), places.shape)
        if self.cross_encoder is not None:
            positive, scores = self._rescored(self.cross_encoder, texts["anchor"], texts["positive"], places, allowed)
            above = allowed & (scores > positive[:, None] - np.float32(choice.cross_margin))
            self.counts["by_cross_encoder"] += int(above.sum())
            allowed &= ~above
            priority = scores
        if choice.sampling == "random":
            # each row draws by itself, so that its negatives do not depend on the rows beside it
            draws = [np.random.default_rng((choice.seed, int(row))).random(places.shape[1]) for row in chunk]
            priority = np.stack(draws)
        order = np.argsort(np.where(allowed, -priority, np.inf), axis=1, kind="stable")[:, : choice.negatives]
        kept = np.take_along_axis(allowed, order, axis=1)
        found = order.shape[1]  # fewer than asked for in a smaller corpus
        self.chosen[chunk, :found] = np.where(kept, np.take_along_axis(places, order, axis=1), -1)
        self.scores[chunk, 0] = positive
        self.scores[chunk, 1 : 1 + found] = np.where(kept, np.take_along_axis(scores, order, axis=1), np.nan)

    def write(self, path: Path, with_scores: bool) -> datasets.Dataset:
        """The rows that have all their negatives, as a file that is mapped; mean scores are added to the counts."""
        whole = np.flatnonzero((self.chosen >= 0).all(axis=1))
        fields = [(name, pa.string()) for name in ("anchor", "positive", *self.choice.columns)]
        schema = pa.schema([*fields, ("scores", pa.list_(pa.float32()))] if with_scores else fields)
        with path.open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for start in range(0, len(whole), BLOCK):
                rows = whole[start : start + BLOCK]
                texts = self.pairs[rows.tolist()]
                columns = [list(texts["anchor"]), list(texts["positive"])]
                columns += [self.candidates.texts(self.chosen[rows, i]) for i in range(self.choice.negatives)]
                arrays = [pa.array(column, pa.string()) for column in columns]
                if with_scores:
                    arrays.append(pa.array(self.scores[rows].tolist(), schema.field("scores").type))
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        positive, negative = self.scores[whole, 0], self.scores[whole, 1:]
        self.counts["positive_score"] = float(positive.mean()) if len(whole) else None
        self.counts["negative_score"] = float(negative.mean()) if len(whole) else None
        return datasets.Dataset.from_file(str(path))

    def _encode(self, prompt: str, texts: Sequence[str]) -> np.ndarray:
        return self.encoder.encode([prompt + text for text in texts], self.batch_size)

    def _positive_scores(self, queries: np.ndarray, texts: Sequence[str], places: np.ndarray) -> np.ndarray:
        """(q,) cosines of anchors and positives; of those in the corpus the vector is there."""
        table = np.empty_like(queries)
        known = places >= 0
        table[known] = self.candidates.vectors(places[known])
        if not known.all():
            others = [text for text, is_known in zip(texts, known, strict=True) if not is_known]
            table[~known] = self._encode(self.document_prompt, others)
        return (queries * table).sum(axis=1)

    def _is_own(self, chunk: np.ndarray, places: np.ndarray) -> np.ndarray:
        """(q, k): whether a text is the anchor, or a positive of an equal one."""
        asked = self.group[chunk][:, None] * len(self.candidates) + places
        if len(self.own) == 0:
            return np.zeros(places.shape, dtype=bool)
        return self.own[np.minimum(np.searchsorted(self.own, asked), len(self.own) - 1)] == asked

    def _rescored(
        self,
        cross_encoder: CrossEncoder,
        anchors: Sequence[str],
        positives: Sequence[str],
        places: np.ndarray,
        allowed: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The cross-encoder's (q,) scores of the positives, and (q, k) of the texts that may be taken."""
        positive, scores = np.empty(len(places), np.float32), np.full(places.shape, -np.inf, np.float32)
        for start in range(0, len(places), RESCORED_AT_ONCE):
            part = slice(start, start + RESCORED_AT_ONCE)
            own = list(zip(anchors[part], positives[part], strict=True))
            rows, _ = np.nonzero(allowed[part])
            texts = self.candidates.texts(places[part][allowed[part]])
            pairs = [(own[row][0], text) for row, text in zip(rows, texts, strict=True)]
            logits = cross_encoder([*own, *pairs])
            positive[part] = logits[: len(own)]
            scores[part][allowed[part]] = logits[len(own) :]
        return positive, scores
