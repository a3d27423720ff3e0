"""A text in three parts that share no document: rows to train on, queries that choose, queries that judge.

The held-out parts become retrieval sets: each document's title (without titles its headings, without these a sentence
taken out of a passage) is a query, its passages are the answers, and passages of other documents stand between them.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cacse_trainer.data.documents import Document
from cacse_trainer.data.markup import squeezed
from cacse_trainer.data.retrieval import RetrievalSet, from_pairs
from cacse_trainer.data.structure import Passage, passages_of, row_of
from cacse_trainer.errors import UserError

logger = logging.getLogger(__name__)

QUERY_KINDS = ("title", "heading", "cloze")
"""What a query may be, the best first."""
HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 0.2
ENOUGH_QUERIES = 50
"""Of a small text up to a fifth is held out in each part for so many."""
A_MINUTE = 100
"""Documents that the part which judges has at most for a minute of the budget, and as many distractors."""
FEWEST_QUERIES = 20
"""Below that no interval could tell a gain."""


@dataclass
class Parts:
    """A text, parted.

    Args:
        train: passages to make rows of.
        dev, test: None: the text has nothing to make queries of.
        kind: of the queries; None likewise.
    """

    train: list[Passage]
    dev: RetrievalSet | None
    test: RetrievalSet | None
    kind: str | None


@dataclass(frozen=True)
class Size:
    """The most that a held-out part has.

    Args:
        documents: that become queries with their answers; 0: none is held out.
        distractors: passages of other documents.
    """

    documents: int
    distractors: int


def sizes(held_out: int, distractors: int, minutes: float | None) -> tuple[Size, Size]:
    """The most in the part that chooses, which is read a dozen times, and in the one that judges, which is read twice.

    Args:
        held_out, distractors: of the part that judges.
        minutes: for all of it: the parts are small where there is little time; None: there is no such limit.
    """
    most = round(A_MINUTE * minutes) if minutes is not None else max(held_out, distractors)
    dev = Size(max(FEWEST_QUERIES, min(held_out // 2, most // 2)), min(distractors // 4, most // 2))
    return dev, Size(max(FEWEST_QUERIES, min(held_out, most)), min(distractors, most))


def part(documents: Sequence[Document], *, most: tuple[Size, Size], words: int, seed: int) -> Parts:
    """Hold out two parts of documents, at most a tenth each, and part the rest into passages.

    Args:
        documents: each once.
        most: of the part that chooses, and of the one that judges.
        words: the most in a passage.
        seed: of the draw.

    Raises:
        UserError: too few documents that queries can be made of.
    """
    order = random.Random(f"{seed} parts").sample(range(len(documents)), len(documents))
    all_passages = passages_of(documents, words)
    by_document: dict[int, list[Passage]] = {}
    for passage in all_passages:
        by_document.setdefault(passage.document, []).append(passage)
    kind = _kind_of(by_document)
    if kind is None or not most[0].documents:
        return Parts(all_passages, None, None, None)
    able = [number for number in order if _pairs(by_document.get(number, []), kind)]
    few = min(ENOUGH_QUERIES, int(len(documents) * MOST_HELD_OUT))
    possible = min(max(int(len(documents) * HELD_OUT_SHARE), few), len(able) // 3)
    if possible < FEWEST_QUERIES:
        raise UserError(
            f"{len(documents)} documents, {len(able)} of them with a {_said(kind)}, are too few: two held-out parts "
            f"need at least {FEWEST_QUERIES} each, at most a fifth of the text; give more text, or queries of your own "
            "(dev_queries and test_queries)"
        )
    counts = [min(one.documents, possible) for one in most]
    chosen = able[: counts[0]], able[counts[0] : sum(counts)]
    apart = {*chosen[0], *chosen[1]}
    train = [passage for passage in all_passages if passage.document not in apart]
    others = random.Random(f"{seed} distractors").sample(train, len(train))
    sets = []
    for numbers, one in zip(chosen, most, strict=True):
        pairs = [pair for number in numbers for pair in _pairs(by_document[number], kind)]
        sets.append(from_pairs(pairs, [passage.text for passage in others[: one.distractors]]))
    return Parts(train, sets[0], sets[1], kind)


def _said(kind: str) -> str:
    return {"title": "title", "heading": "heading", "cloze": "passage of two sentences or more"}[kind]


def _kind_of(by_document: dict[int, list[Passage]]) -> str | None:
    """The best kind that a third of the documents can give, else the one that most can."""
    able = {kind: sum(bool(_pairs(passages, kind)) for passages in by_document.values()) for kind in QUERY_KINDS}
    best = max(able, key=lambda kind: able[kind])
    enough = (kind for kind in QUERY_KINDS if 3 * able[kind] >= len(by_document))
    return next(enough, best if able[best] >= 3 * FEWEST_QUERIES else None)


def _pairs(passages: Sequence[Passage], kind: str) -> list[tuple[str, str]]:
    """A document's queries with their answers: of its title all passages, of its headings one each; of cloze one."""
    rows = [
        row
        for passage in passages
        for number in (range(len(passage.sentences)) if kind == "cloze" else [0])
        if (row := row_of(kind, passage, number, keep=1.0)) is not None
    ]
    return [(row.anchor, row.positive) for row in (rows[:1] if kind == "cloze" else rows)]


def halves(given: RetrievalSet, seed: int) -> tuple[RetrievalSet, RetrievalSet]:
    """A user's queries in two: one half chooses, the other judges; both search in all documents.

    Raises:
        UserError: too few queries.
    """
    count = len(given.queries)
    if count < 2 * FEWEST_QUERIES:
        raise UserError(
            f"dev_queries: {count} queries are too few to choose by one half and judge by the other; give at least "
            f"{2 * FEWEST_QUERIES}, or test_queries, too"
        )
    order = random.Random(f"{seed} halves").sample(range(count), count)
    first, second = (
        RetrievalSet([given.queries[i] for i in part], given.documents, [given.relevant[i] for i in part])
        for part in (order[: count // 2], order[count // 2 :])
    )
    return first, second


def without(given: RetrievalSet, others: RetrievalSet) -> RetrievalSet:
    """Queries to choose by, without those that judge, so that nothing is chosen by these.

    Raises:
        UserError: too few of either.
    """
    judging = set(others.queries)
    kept = [i for i, query in enumerate(given.queries) if query not in judging]
    for name, count in (("dev_queries", len(kept)), ("test_queries", len(others.queries))):
        if count < FEWEST_QUERIES:
            of_both = " that are no test_queries" if len(kept) < len(given.queries) and name == "dev_queries" else ""
            raise UserError(f"{name}: {count} queries{of_both} are too few; give at least {FEWEST_QUERIES}")
    if len(kept) < len(given.queries):
        logger.warning("dev_queries: %d of them are test_queries, too, and left out", len(given.queries) - len(kept))
    return RetrievalSet([given.queries[i] for i in kept], given.documents, [given.relevant[i] for i in kept])


def untitled(passages: Sequence[Passage], queries: Sequence[str]) -> tuple[list[Passage], int]:
    """Passages without titles and headings that are queries, and how many these were: their rows would be the answers.

    Case and white space do not tell texts apart.
    """
    judging = {squeezed(query).casefold() for query in queries}
    found, told = [], 0
    for passage in passages:
        title, heading = (
            "" if squeezed(text).casefold() in judging else text for text in (passage.title, passage.heading)
        )
        changed = replace(passage, title=title, heading=heading)
        told += changed != passage
        found.append(changed)
    return found, told
