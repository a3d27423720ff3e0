"""Rows of (anchor, positive) that the structure of documents gives, without a label.

A long text is cut into passages of whole sentences that keep their document's title. From a passage come, by kind:

    title       (title, passage); a title that several documents have tells none of them
    heading     (heading of its section, passage); a heading that several documents have is put behind the title
    cloze       (a sentence, the rest of its passage); one time in ten the passage keeps it   [inverse cloze task]
    neighbour   (a sentence, the one after it)
    single      (a sentence, the same): two dropout views

Source of the inverse cloze task: Lee et al. 2019 (arXiv 1906.00300).
"""

import random
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

from cacse_trainer.data.documents import Document
from cacse_trainer.errors import UserError

KINDS = ("title", "heading", "cloze", "neighbour", "single")
PASSAGE_WORDS = 100
"""A passage ends before a sentence that would make it longer; a character of a script without spaces is a word."""
KEPT = 0.1
"""Share of cloze rows whose passage keeps the sentence, so that words that both have count, too."""
SHORTEST = 3
"""Words of a sentence that can be an anchor."""
OWN = -1
"""The document of a row that a user gave: none."""

_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]?[^\sa-z])|(?<=[。！？])[”’」』）]*")
_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Z]|[a-z]\.[a-z]|e\.g|i\.e|etc|cf|vs|approx|Dr|Mr|Mrs|Ms|Prof|St|No|Fig|Inc|Ltd))\.$"
)
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


class Row(NamedTuple):
    """Two texts that belong together, what makes them so, and the number of their document."""

    anchor: str
    positive: str
    kind: str
    document: int


@dataclass(frozen=True)
class Passage:
    """Some sentences in a row of one section.

    Args:
        document: its number.
        title, heading: "" for none; both as they are told from other documents' by `passages_of`.
        sentences: in order.
        common: the places of those that another document has, too; they belong to no single passage.
    """

    document: int
    title: str
    heading: str
    sentences: tuple[str, ...]
    common: frozenset[int] = frozenset()

    @property
    def text(self) -> str:
        """The passage."""
        return " ".join(self.sentences)


def count_words(text: str) -> int:
    """Words of a text; where a script has no spaces, its characters."""
    return len(_WORDS.findall(text))


def sentences_of(paragraph: str) -> list[str]:
    """A paragraph's sentences, by its marks; a mark after an abbreviation or before a small letter ends none."""
    parts: list[str] = []
    start = 0
    for end in _END.finditer(paragraph):
        before = paragraph[start : end.end()].strip()
        if before and not _ABBREVIATION.search(before):
            parts.append(before)
            start = end.end()
    return [*parts, rest] if (rest := paragraph[start:].strip()) else parts


def passages_of(documents: Sequence[Document], words: int = PASSAGE_WORDS) -> list[Passage]:
    """The passages of documents, in order; one never spans two sections.

    Args:
        documents: their numbers are those in this list.
        words: the most that a passage has, unless a single sentence has more.
    """
    titles = _common(document.title for document in documents)
    shared = _common(heading for document in documents for heading in {one.heading for one in document.sections})
    split = [
        [[one for paragraph in section.paragraphs for one in sentences_of(paragraph)] for section in document.sections]
        for document in documents
    ]
    common = _common(one for parts in split for one in {one for part in parts for one in part})
    found = []
    for number, (document, parts) in enumerate(zip(documents, split, strict=True)):
        title = "" if document.title in titles else document.title
        for section, sentences in zip(document.sections, parts, strict=True):
            heading = section.heading
            if heading and heading in shared:
                heading = f"{title}: {heading}" if title else ""
            for part in _cut(sentences, words):
                places = frozenset(place for place, one in enumerate(part) if one in common)
                found.append(Passage(number, title, heading, part, places))
    return found


def _common(texts: Iterable[str]) -> set[str]:
    """Texts that are there more than once."""
    return {text for text, count in Counter(texts).items() if count > 1}


def _cut(sentences: Sequence[str], words: int) -> Iterator[tuple[str, ...]]:
    part: list[str] = []
    length = 0
    for sentence in sentences:
        count = count_words(sentence)
        if part and length + count > words:
            yield tuple(part)
            part, length = [], 0
        part.append(sentence)
        length += count
    if part:
        yield tuple(part)


def row_of(kind: str, passage: Passage, number: int, keep: float) -> Row | None:
    """The row of a kind that a passage gives, if any.

    Args:
        kind: one of `KINDS`.
        passage: where it is from.
        number: which of its sentences, counted around.
        keep: from 0 to 1; below `KEPT` a cloze passage keeps the sentence.
    """
    sentences = passage.sentences
    position = number % len(sentences)
    sentence = sentences[position]
    if kind == "title":
        anchor, positive = passage.title, passage.text
    elif kind == "heading":
        anchor, positive = passage.heading, passage.text
    elif kind == "single":
        anchor = positive = sentence
    elif len(sentences) < 2 or count_words(sentence) < SHORTEST or position in passage.common:
        return None
    elif kind == "cloze":
        kept = keep < KEPT
        anchor = sentence
        positive = passage.text if kept else " ".join((*sentences[:position], *sentences[position + 1 :]))
    elif position + 1 < len(sentences) and position + 1 not in passage.common:
        anchor, positive = sentence, sentences[position + 1]
    else:
        return None
    if not anchor or (kind != "single" and anchor == positive):
        return None
    return Row(anchor, positive, kind, passage.document)


def count_rows(passages: Sequence[Passage]) -> dict[str, int]:
    """How many different rows of each kind the passages give."""
    return {kind: sum(1 for _ in _rows_of(kind, passages)) for kind in KINDS}


def _rows_of(kind: str, passages: Sequence[Passage]) -> Iterator[Row]:
    for passage in passages:
        for number in range(1 if kind in ("title", "heading") else len(passage.sentences)):
            if (row := row_of(kind, passage, number, 1.0)) is not None:
                yield row


def check_shares(shares: Mapping[str, float], given: Collection[str]) -> None:
    """Refuse kinds that are none.

    Args:
        shares: by kind.
        given: kinds beside `KINDS`.

    Raises:
        UserError: an unknown kind, or a share that is none.
    """
    for kind, share in shares.items():
        if kind not in (*KINDS, *given) or not share >= 0:
            raise UserError(f"rows: {kind}={share:g} is no share of a kind; there are {', '.join((*KINDS, *given))}")


def no_rows(shares: Mapping[str, float], counts: Mapping[str, int]) -> UserError:
    """What is said where there is no row of any kind with a share."""
    return UserError(
        f"the text gives no rows of the kinds asked for ({', '.join(shares)}); it gives "
        + (", ".join(f"{number} {kind}" for kind, number in counts.items() if number) or "none")
    )


def draw_rows(
    passages: Sequence[Passage],
    shares: Mapping[str, float],
    count: int,
    batch: int,
    seed: int,
    given: Mapping[str, Sequence[Row]] = MappingProxyType({}),
    arrange: Callable[[list[Row]], list[Row]] = list,
) -> list[Row]:
    """Rows of several kinds by shares, in an order in which no batch holds two rows of one document.

    Each kind goes through its passages in a random order, again and again, the next time by another sentence.

    Args:
        passages: of all documents.
        shares: by kind; those of kinds without a row fall to the others.
        count: so many rows.
        batch: rows that are trained at once; with fewer documents than that some meet all the same.
        seed: of the order and of the sentences that are drawn.
        given: rows of other kinds, which are drawn likewise.
        arrange: puts the rows into another order than a random one, before those of one document are parted.

    Raises:
        UserError: an unknown kind, a share that is none, or no kind that there is any row of.
    """
    check_shares(shares, given)
    wanted = {
        kind: share
        for kind, share in shares.items()
        if share > 0 and (any(given[kind]) if kind in given else any(_rows_of(kind, passages)))
    }
    if not wanted:
        raise no_rows(shares, {**count_rows(passages), **{kind: len(rows) for kind, rows in given.items()}})
    total = sum(wanted.values())
    mixed: list[Row] = []
    for place, (kind, share) in enumerate(wanted.items()):
        draws = random.Random(f"{seed} {kind}")
        source = _again_and_again(given[kind], draws) if kind in given else _endless(kind, passages, draws)
        last = place == len(wanted) - 1  # which makes up for what the others were rounded by
        mixed += islice(source, count - len(mixed) if last else round(count * share / total))
    random.Random(f"{seed} order").shuffle(mixed)
    return apart(arrange(mixed), batch)


def _again_and_again(rows: Sequence[Row], draws: random.Random) -> Iterator[Row]:
    while True:
        yield from draws.sample(rows, len(rows))


def _endless(kind: str, passages: Sequence[Passage], draws: random.Random) -> Iterator[Row]:
    offsets = [draws.randrange(1 << 16) for _ in passages]
    order = list(range(len(passages)))
    turn = 0
    while True:
        draws.shuffle(order)
        for index in order:
            passage = passages[index]
            for step in range(len(passage.sentences)):  # a sentence that is too short is passed over
                number = offsets[index] + turn + step
                if (row := row_of(kind, passage, number, draws.random())) is not None:
                    yield row
                    break
        turn += 1


def apart(rows: Sequence[Row], batch: int) -> list[Row]:
    """The rows in an order in which those of one document are at least a batch apart, as far as it can be.

    A row that comes too early waits until its document may come again, or, where one document has most of the rows,
    until four batches wait. Rows that a user gave are of no document and never wait.
    """
    found: list[Row] = []
    recent: deque[int] = deque()
    near: Counter[int] = Counter()  # how often a document is among the recent ones
    waiting: deque[Row] = deque()
    wanted: Counter[int] = Counter()  # how many rows of a document wait

    def put(row: Row) -> bool:
        """Put a row behind the others; whether some row that waits may come because of it."""
        found.append(row)
        recent.append(row.document)
        near[row.document] += row.document != OWN
        if len(recent) < max(1, batch):
            return False
        gone = recent.popleft()
        near[gone] -= gone != OWN
        return wanted[gone] > 0 and not near[gone]

    for row in rows:
        freed = False
        if near[row.document]:
            waiting.append(row)
            wanted[row.document] += 1
        else:
            freed = put(row)
        if len(waiting) > 4 * batch:
            wanted[waiting[0].document] -= 1
            freed |= put(waiting.popleft())
        while freed:
            freed = False
            for _ in range(len(waiting)):
                one = waiting.popleft()
                if near[one.document]:
                    waiting.append(one)
                else:
                    wanted[one.document] -= 1
                    freed |= put(one)
    return [*found, *waiting]
