"""The rows of an adaptation: of the text's structure, of questions that a generator wrote, of a user's own pairs."""

import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from cacse_trainer.adaptation.neighbours import Vectors, beside_neighbours
from cacse_trainer.data.collator import SCORES
from cacse_trainer.data.structure import KINDS, Passage, Row, check_shares, count_rows, draw_rows, no_rows, row_of
from cacse_trainer.files import writing

logger = logging.getLogger(__name__)

Pair = tuple[str, str]
Miner = Callable[[Sequence[Pair]], Mapping[Pair, Sequence[str]]]
"""From (anchor, positive) rows to the hard negatives of those that have enough."""
Scorer = Callable[[Sequence[Pair]], Sequence[float] | np.ndarray]
"""From (anchor, text) pairs to a teacher's scores."""

WITH_TITLES = {"title": 1.0, "heading": 1.0, "cloze": 0.25}
WITHOUT = {"cloze": 1.0, "neighbour": 0.25}
OF_SENTENCES = frozenset({"cloze", "neighbour", "single", "round_trip"})
"""Kinds whose anchors are sentences of the text, and no titles, questions or pairs of a user's own."""
ENOUGH_TITLES = 1 / 3
"""Share of the passages from which titles (or headings) count as what the text is made of."""
SAMPLES = 3
TRIES = 20
"""Draws of a passage of another document; in vain only where one document is nearly all there is."""


def default_shares(counts: Mapping[str, int], passages: int) -> dict[str, float]:
    """Shares of the kinds of rows, by how many of each so many passages give."""
    if max(counts["title"], counts["heading"]) >= ENOUGH_TITLES * passages:
        return dict(WITH_TITLES)
    if counts["cloze"] or counts["neighbour"]:
        return dict(WITHOUT)
    return {"single": 1.0}


def shares_of(passages: Sequence[Passage], asked: Mapping[str, float] | None, given: Sequence[str]) -> dict[str, float]:
    """Shares of the kinds of rows: those asked for, else the default ones, without kinds that the text gives none of.

    Args:
        passages: to train on.
        asked: by kind; None: nothing was.
        given: kinds that come from elsewhere.
    """
    counts = count_rows(passages)
    shares = asked or {**default_shares(counts, len(passages)), **dict.fromkeys(given, 1.0)}
    return {kind: share for kind, share in shares.items() if counts.get(kind, 1)} or dict(shares)


def of_sentences_alone(shares: Mapping[str, float]) -> bool:
    """Whether no row is anything like a query: what is learned of such rows too well helps queries less."""
    return {kind for kind, share in shares.items() if share} <= OF_SENTENCES


class Rows:
    """Rows of several kinds by shares.

    Args:
        passages: to train on.
        shares: by kind: `KINDS`, and those in ``given``.
        batch: rows that are trained at once; those of one document are kept apart.
        seed: of the draws.
        given: rows that are there already, by kind; none of a kind that is only written in the run itself.

    Raises:
        UserError: an unknown kind, or no row of any of them.
    """

    def __init__(
        self,
        passages: Sequence[Passage],
        shares: Mapping[str, float],
        batch: int,
        seed: int,
        given: Mapping[str, Sequence[Row]] | None = None,
    ) -> None:
        self.passages, self.shares, self.batch, self.seed = passages, shares, batch, seed
        self.given: dict[str, Sequence[Row]] = dict(given or {})
        check_shares(shares, self.given)
        if not any(count or kind in self.given for kind, count in self.counts.items()):
            raise no_rows(shares, count_rows(passages))

    @cached_property
    def counts(self) -> dict[str, int]:
        """Different rows by kind, of the kinds with a share."""
        counts = {**count_rows(self.passages), **{kind: len(rows) for kind, rows in self.given.items()}}
        return {kind: count for kind, count in counts.items() if self.shares.get(kind)}

    def drawn(self, count: int, neighbours: int = 1, vectors: Vectors | None = None) -> list[Row]:
        """So many rows, in the order in which they are trained; see `write`."""
        arrange = (
            list if vectors is None else partial(beside_neighbours, size=neighbours, vectors=vectors, seed=self.seed)
        )
        return draw_rows(self.passages, self.shares, count, self.batch, self.seed, self.given, arrange)

    def write(
        self,
        path: Path,
        count: int,
        negatives: int = 0,
        miner: Miner | None = None,
        neighbours: int = 1,
        vectors: Vectors | None = None,
        scorer: Scorer | None = None,
    ) -> dict[str, int]:
        """Write so many rows to a jsonl file, in the order in which they are trained.

        Args:
            path: the file: anchor, positive, kind, and the negatives' columns.
            count: of the rows.
            negatives: of each row; one that is not mined, or is of the row's own document, is a random passage of
                another one.
            miner: finds them for distinct rows; None: all are random.
            neighbours: rows with near anchors that stand together.
            vectors: of the anchors; None: the order is random.
            scorer: of a column ``scores``, of the positive and each negative; None: there is none.

        Returns:
            How many rows there are of each kind.
        """
        rows = self.drawn(count, neighbours, vectors)
        mined = miner(list(dict.fromkeys((row.anchor, row.positive) for row in rows))) if miner is not None else {}
        draws = random.Random(f"{self.seed} negatives")
        own = {(passage.text, passage.document) for passage in self.passages} if negatives else set()

        def random_of_others(row: Row) -> str:
            for _ in range(TRIES):
                passage = draws.choice(self.passages)
                if passage.document != row.document and passage.text != row.positive:
                    break
            return passage.text

        names = ["hard_negative"] if negatives == 1 else [f"negative_{i + 1}" for i in range(negatives)]
        found = []
        for row in rows:
            texts = mined.get((row.anchor, row.positive)) or [""] * negatives
            found.append([random_of_others(row) if not text or (text, row.document) in own else text for text in texts])
        scores: dict[Pair, float] = {}
        if scorer is not None:
            every = zip(rows, found, strict=True)
            pairs = list(dict.fromkeys((row.anchor, text) for row, texts in every for text in (row.positive, *texts)))
            scores = dict(zip(pairs, map(float, scorer(pairs)), strict=True))
        with writing(path) as staged, staged.open("w", encoding="utf-8") as file:
            for row, texts in zip(rows, found, strict=True):
                record: dict[str, Any] = {"anchor": row.anchor, "positive": row.positive, "kind": row.kind}
                record.update(zip(names, texts, strict=True))
                if scorer is not None:
                    record[SCORES] = [scores[row.anchor, text] for text in (row.positive, *texts)]
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        return dict(Counter(row.kind for row in rows))

    def samples(self) -> dict[str, list[tuple[str, str]]]:
        """Some rows of each kind."""
        draws = random.Random(f"{self.seed} samples")
        found: dict[str, list[tuple[str, str]]] = {}
        passages = draws.sample(list(self.passages), min(200, len(self.passages)))
        for kind in self.counts:
            if kind in KINDS:
                drawn = (row_of(kind, passage, draws.randrange(1000), 1.0) for passage in passages)
                rows = [row for row in drawn if row is not None]
            else:
                rows = list(self.given[kind])
            found[kind] = [(row.anchor, row.positive) for row in rows[:SAMPLES]]
        return found
