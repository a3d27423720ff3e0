"""Pairs of one's own sentences for a person to grade, and the grades: a dev file that grows answer by answer.

The pairs are drawn over the whole range of an encoder's cosines. Drawn at random nearly all would say nothing alike,
and a correlation on them would tell little.
"""

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cacse_trainer.data.near_duplicates import shingles
from cacse_trainer.data.readers import delimited_rows
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.files import fits, read_object, write_json, write_text

GRADES = {
    0: "nothing in common",
    1: "the same topic",
    2: "some details shared",
    3: "the same in the main, something important differs",
    4: "the same but for small details",
    5: "the same meaning",
}
"""What a grade says: the scale of STS."""
COLUMNS = ("sentence1", "sentence2", "score")
MOST_SENTENCES = 3_000
"""From which pairs are drawn: their cosines fill a table of 36 MB."""
STRATA = 10
SAME_COSINE, SAME_WORDS = 0.99, 0.8
"""From which cosine, or which share of triples of words, two sentences are nearly the same and no pair to grade."""
MOST_USES = 3
"""Pairs that one sentence may stand in."""
LOW = 5
"""Percentile of the cosines at which the lowest stratum begins; what lies below belongs to it."""


class Pair(NamedTuple):
    """Two sentences, and the cosine that they were chosen by."""

    first: str
    second: str
    cosine: float


def some_sentences(texts: Iterable[str], seed: int = 0, most: int = MOST_SENTENCES) -> list[str]:
    """Distinct sentences of a text of any length, drawn at random where there are more; white space is made one."""
    random = np.random.default_rng(seed)
    kept: list[str] = []
    place = 0
    for text in texts:
        sentence = " ".join(text.split())
        if not sentence:
            continue
        if place < most:
            kept.append(sentence)
        elif (chosen := int(random.integers(place + 1))) < most:
            kept[chosen] = sentence
        place += 1
    return list({sentence.casefold(): sentence for sentence in kept}.values())


def sample_pairs(sentences: Sequence[str], vectors: np.ndarray, count: int, seed: int = 0) -> list[Pair]:
    """Pairs that lie evenly over the range of the cosines, in an order in which every beginning does so, too.

    The range, from the 5th percentile of all pairs up to the most alike that are not nearly the same, is cut into ten
    strata of equal width; each gives as many pairs as it has, up to an equal share of what the others leave.

    Args:
        sentences: distinct ones.
        vectors: (n, dim) of length 1.
        count: how many pairs; fewer where the sentences have not so many.
        seed: of the draws.

    Raises:
        UserError: there are not two pairs.
    """
    random = np.random.default_rng(seed)
    cosines = vectors @ vectors.T
    above = cosines[np.triu(np.ones(cosines.shape, bool), 1)]
    apart = above[above < SAME_COSINE]
    if not len(apart):
        raise UserError(f"{len(sentences)} distinct sentences give no pair to grade; give more text")
    low, high = float(np.percentile(apart, LOW)), float(apart.max())
    width = (high - low) / STRATA or 1.0
    candidates: list[list[tuple[int, int]]] = [[] for _ in range(STRATA)]
    for i in range(len(sentences) - 1):
        others = i + 1 + random.permutation(len(sentences) - i - 1)
        others = others[cosines[i, others] < SAME_COSINE]
        strata = np.clip((cosines[i, others] - low) / width, 0, STRATA - 1).astype(int)
        for stratum, first in zip(*np.unique(strata, return_index=True), strict=True):  # a random one of each
            candidates[stratum].append((i, int(others[first])))
    for found in candidates:
        random.shuffle(found)
    pairs: list[Pair] = []
    uses = np.zeros(len(sentences), int)
    while len(pairs) < count and any(candidates):
        for stratum in random.permutation(STRATA).tolist():
            chosen = _next(candidates[stratum], sentences, uses) if len(pairs) < count else None
            if chosen is not None:
                uses[list(chosen)] += 1
                first, second = random.permutation(chosen).tolist()
                pairs.append(Pair(sentences[first], sentences[second], float(cosines[first, second])))
    if len(pairs) < 2:
        raise UserError(f"{len(sentences)} distinct sentences give {len(pairs)} pairs to grade; give more text")
    return pairs


def _next(found: list[tuple[int, int]], sentences: Sequence[str], uses: np.ndarray) -> tuple[int, int] | None:
    """Take the next candidate of a stratum that may be a pair; None where none is left."""
    while found:
        first, second = found.pop()
        if max(uses[first], uses[second]) < MOST_USES and not nearly_same(sentences[first], sentences[second]):
            return first, second
    return None


def nearly_same(first: str, second: str) -> bool:
    """Whether two sentences share nearly all runs of three words.

    >>> nearly_same("The pump does not start.", "the pump  does not start."), nearly_same("It starts.", "It stops.")
    (True, False)
    """
    a, b = shingles(first), shingles(second)
    return len(a & b) >= SAME_WORDS * len(a | b)


class Grading:
    """The pairs of a dev file, and what was said of them; each answer is on the disk before the next pair is shown.

    The dev file, tab-separated, holds the graded pairs alone, so that a training may read it at any time; rows that
    somebody has added or changed by hand stay. ``FILE.json`` beside it holds the pairs to be graded and those that were
    skipped.

    Args:
        output: the dev file, which `begin` has made.

    Raises:
        UserError: it was not begun, or one of the two files is damaged.
    """

    def __init__(self, output: Path):
        self.output, self.plan = output, plan_of(output)
        mend = f"choose another output, or move it and {output.name} away"
        self.facts = read_object(self.plan, mend, pairs=list[list[Any]], skipped=list[int])
        if not all(len(pair) == 3 and fits(pair[:2], list[str]) for pair in self.facts["pairs"]):
            raise UserError(f"{self.plan}: is damaged (a pair is not two sentences and a cosine); {mend}")
        self.pairs = [Pair(*pair) for pair in self.facts["pairs"]]
        self.skipped: list[int] = list(self.facts["skipped"])
        self._scores = self._read() if output.is_file() else {}
        graded = [number for number, pair in enumerate(self.pairs) if pair[:2] in self._scores]
        self._answered = sorted({*graded, *self.skipped})  # in the order of the answers
        self._lock = threading.Lock()  # the page's buttons come from several threads

    @classmethod
    def begin(cls, output: Path, pairs: Sequence[Pair], facts: dict[str, Any] | None = None) -> "Grading":
        """Write down which pairs are to be graded.

        Args:
            output: the dev file; nothing may be there.
            pairs: see `sample_pairs`.
            facts: what is recorded beside them, such as the encoder.

        Raises:
            UserError: something is there, or it cannot be written.
        """
        check_output(output)
        with user_errors(f"output {output} cannot be written"):
            output.parent.mkdir(parents=True, exist_ok=True)
            write_json(plan_of(output), {**(facts or {}), "pairs": [list(pair) for pair in pairs], "skipped": []})
        return cls(output)

    @property
    def current(self) -> int | None:
        """The number of the pair to be shown; None: all are answered."""
        return next((number for number in range(len(self.pairs)) if number not in self._answered), None)

    @property
    def counts(self) -> dict[str, int]:
        """``pairs``, and how many are ``graded``, ``skipped`` and ``left``."""
        total, answered, skipped = len(self.pairs), len(self._answered), len(self.skipped)
        return {"pairs": total, "graded": answered - skipped, "skipped": skipped, "left": total - answered}

    def grade(self, number: int, score: int) -> None:
        """Write the grade of a pair down; one that it has is replaced."""
        with self._lock:
            self._forget(number)
            self._scores[self.pairs[number][:2]] = str(score)
            self._answered.append(number)
            self._write()

    def skip(self, number: int) -> None:
        """Let a pair be, as one that cannot be graded."""
        with self._lock:
            self._forget(number)
            self.skipped.append(number)
            self._answered.append(number)
            self._write()

    def undo(self) -> bool:
        """Take the last answer back, so that its pair is shown again; False where there is none."""
        with self._lock:
            if not self._answered:
                return False
            self._forget(self._answered[-1])
            self._write()
            return True

    def _forget(self, number: int) -> None:
        self._scores = self._read() if self.output.is_file() else {}  # with what was written there by hand meanwhile
        self.skipped = [one for one in self.skipped if one != number]
        self._answered = [one for one in self._answered if one != number]
        self._scores.pop(self.pairs[number][:2], None)

    def _read(self) -> dict[tuple[str, str], str]:
        rows = [(line, fields) for line, fields in delimited_rows(str(self.output), "\t", False) if fields]
        if not rows or tuple(rows[0][1]) != COLUMNS:
            raise UserError(f"{self.output}: its first line is not {' '.join(COLUMNS)} with tabs between; mend it")
        for line, fields in rows[1:]:
            if len(fields) != len(COLUMNS):
                raise UserError(f"{self.output}, line {line}: {len(fields)} fields, but the header has 3; mend the row")
        return {(first, second): score for _, (first, second, score) in rows[1:]}

    def _write(self) -> None:
        rows = [COLUMNS, *((*pair, score) for pair, score in self._scores.items())]
        with user_errors(f"{self.output} cannot be written"):
            write_text(self.output, "".join("\t".join(row) + "\n" for row in rows))
            if self.skipped != self.facts["skipped"]:
                self.facts["skipped"] = list(self.skipped)
                write_json(self.plan, self.facts)


def plan_of(output: Path) -> Path:
    """Where the pairs of a dev file stand that are to be graded."""
    return output.with_name(f"{output.name}.json")


def check_output(output: Path) -> None:
    """Refuse a dev file that cannot be begun.

    Raises:
        UserError: another ending than .tsv, or something is there.
    """
    if output.suffix != ".tsv":
        raise UserError(f"output {output}: give a name that ends in .tsv")
    for path in (output, plan_of(output)):
        if path.exists():
            raise UserError(f"{path} is there already, and no grading to go on with; choose another output")
