"""The handbook of a made-up island: entries whose bodies describe what their headings name, and graded pairs of events.

What the words mean stands in the handbook and nowhere else, so a model that has not read it cannot know. The pairs use
other sentences and other descriptions than the entries do; their scores follow from what differs:

| thing | event | score |
|---|---|---|
| the same | the same | 5 |
| the same | another | 3 |
| another of its kind | the same | 2 |
| another of its kind | another | 1 |
| another of another kind | another | 0 |
"""

import random
from dataclasses import dataclass, field

from sample_data.engine import tidy

Pair = tuple[str, str, float]


@dataclass
class Kind:
    """Words of one kind, with what is told of each and what happens to them; see handbook.txt."""

    words: list[list[str]] = field(default_factory=list)
    entries: list[list[str]] = field(default_factory=list)
    events: list[list[str]] = field(default_factory=list)


def read_kinds(lines: list[str]) -> list[Kind]:
    """The kinds of handbook.txt."""
    kinds: list[Kind] = []
    for line in filter(None, lines):
        mark, _, rest = line.partition(" ")
        cells = [cell.strip() for cell in rest.split("|")]
        if mark == "kind":
            kinds.append(Kind())
        else:
            {"word:": kinds[-1].words, "entry:": kinds[-1].entries, "event:": kinds[-1].events}[mark].append(cells)
    return kinds


def make_entries(kinds: list[Kind], rng: random.Random) -> list[tuple[str, str]]:
    """(heading, body) of every word and every entry of its kind, in random order."""
    entries = [
        (tidy(heading.replace("{t}", term)), tidy(body.replace("{g}", description)))
        for kind in kinds
        for term, description, _ in kind.words
        for heading, body in kind.entries
    ]
    rng.shuffle(entries)
    return entries


def make_pairs(kinds: list[Kind], per_score: int, rng: random.Random) -> list[Pair]:
    """``per_score`` pairs of each score, of events that name a thing and events that describe one, in random order."""
    pairs: dict[tuple[str, str], float] = {}
    for same_kind, same_word, same_event, score in (
        (True, True, True, 5.0),
        (True, True, False, 3.0),
        (True, False, True, 2.0),
        (True, False, False, 1.0),
        (False, False, False, 0.0),
    ):
        made = 0
        while made < per_score:
            kind = rng.choice(kinds)
            word, event = rng.choice(kind.words), rng.choice(kind.events)
            other = kind if same_kind else rng.choice([one for one in kinds if one is not kind])
            other_word = word if same_word else rng.choice([one for one in other.words if one is not word])
            other_event = event if same_event else rng.choice([one for one in other.events if one is not event])
            pair = tidy(event[0].replace("{x}", word[0])), tidy(other_event[1].replace("{x}", other_word[2]))
            if pair not in pairs:
                pairs[pair] = score
                made += 1
    chosen = [(first, second, score) for (first, second), score in pairs.items()]
    rng.shuffle(chosen)
    return chosen
