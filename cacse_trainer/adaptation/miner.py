"""Which of the ranked texts become the hard negatives of a row, for a chunk of rows at a time."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa

from cacse_trainer.adaptation.candidates import BLOCK, Candidates, keys_of
from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.errors import UserError
from cacse_trainer.models.cross_encoder import CrossEncoder

RANK_RANGE = (1, 50)
RELATIVE_MARGIN = 0.05
SAMPLINGS = ("top", "random")
ENTRIES_AT_ONCE = 4_000_000
"""Scores that are kept at once, rows times ranks."""
RESCORED_AT_ONCE = 256
"""Rows whose pairs the cross-encoder is given at once."""


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


def column_of(rows: datasets.Dataset, name: str) -> Iterator[str]:
    """The texts of one column."""
    for block in rows.iter(BLOCK):
        yield from block[name]


class Miner:
    """The search for the negatives of rows, a chunk at a time.

    Args:
        encoder: gives the vectors of the anchors.
        pairs: all rows; those that are not mined here tell which texts are positives of an equal anchor.
        candidates: the texts that negatives are chosen from, encoded before the first row is mined.
        choice: which of them become negatives.
        prompts: before anchors, and before positives.
        cross_encoder: that scores what the encoder has found.
        batch_size: as for `BaseEncoder.encode`.
    """

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
        anchors = keys_of(column_of(pairs, "anchor"))
        positives = keys_of(column_of(pairs, "positive"))
        self.positives = candidates.places(positives)
        self.identity = hashlib.sha256(anchors.tobytes() + positives.tobytes()).hexdigest()
        """Of what all rows say."""
        # (group of equal anchors, place of a text that is no negative of theirs), as one sorted number each
        _, self.group = np.unique(anchors, return_inverse=True)
        places = np.concatenate([self.positives, candidates.places(anchors)])
        self.own = np.unique((np.tile(self.group, 2) * len(candidates) + places)[places >= 0])
        self.own_texts = np.bincount(self.own // len(candidates), minlength=len(self.group))[self.group]
        self.chosen = np.full((len(pairs), choice.negatives), -1, dtype=np.int64)
        self.scores = np.full((len(pairs), 1 + choice.negatives), np.nan, dtype=np.float32)  # the positive's first
        self.counts: dict[str, Any] = {}

    def mine(self, rows: np.ndarray, path: Path, with_scores: bool, advance: Callable[[int], object]) -> Mined:
        """Mine the rows of these numbers, and write those that have all their negatives.

        Args:
            rows: sorted.
            path: of an Arrow file.
            with_scores: a column ``scores``.
            advance: told how many more rows are done.
        """
        self.counts = {"above_limit": 0, "by_cross_encoder": 0}
        for chunk in self._chunks(rows):
            self._mine(chunk)
            advance(len(chunk))
        found = self._write(rows, path, with_scores)
        return Mined(found, {"mined": len(found), "dropped": len(rows) - len(found), **self.counts})

    def _chunks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Row numbers; together those for which about as many texts are left out, and only a few where it is many."""
        classes = np.ceil(np.log2(self.own_texts[rows] + 1)).astype(np.int64)
        for one in np.unique(classes):
            alike = rows[classes == one]
            size = max(1, min(BLOCK, ENTRIES_AT_ONCE // self._searched(alike)))
            yield from (alike[start : start + size] for start in range(0, len(alike), size))

    def _searched(self, rows: np.ndarray) -> int:
        """How many of the nearest texts are looked at: those that may be left out are among them."""
        return min(len(self.candidates), self.choice.rank_range[1] + int(self.own_texts[rows].max()))

    def _mine(self, chunk: np.ndarray) -> None:
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

    def _write(self, rows: np.ndarray, path: Path, with_scores: bool) -> datasets.Dataset:
        """Of the rows those that have all their negatives, as a mapped file; mean scores are added to the counts."""
        whole = rows[(self.chosen[rows] >= 0).all(axis=1)]
        fields = [(name, pa.string()) for name in ("anchor", "positive", *self.choice.columns)]
        schema = pa.schema([*fields, ("scores", pa.list_(pa.float32()))] if with_scores else fields)
        with path.open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for start in range(0, len(whole), BLOCK):
                part = whole[start : start + BLOCK]
                texts = self.pairs[part.tolist()]
                columns = [list(texts["anchor"]), list(texts["positive"])]
                columns += [self.candidates.texts(self.chosen[part, i]) for i in range(self.choice.negatives)]
                arrays = [pa.array(column, pa.string()) for column in columns]
                if with_scores:
                    arrays.append(pa.array(self.scores[part].tolist(), schema.field("scores").type))
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
