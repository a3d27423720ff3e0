"""The handbook of a made-up island: sentences with its words, the same in plain words, and graded pairs.

What the words mean stands in the handbook and nowhere else, so a model that has not read it cannot know. The two sides
of a pair tell the same event in different words, the first with a word of the island, the second with a description
that the handbook does not use: 5 of the same thing, 2 of another of its kind, 0 of a thing of another kind.
"""

import random
from dataclasses import dataclass, field

from sample_data.engine import expand, tidy

Pair = tuple[str, str, float]


@dataclass
class Kind:
    """Words of one kind, and what happens to them; see handbook.txt."""

    words: list[list[str]] = field(default_factory=list)
    events: list[list[str]] = field(default_factory=list)


def read_handbook(lines: list[str]) -> tuple[list[str], list[Kind]]:
    """The entries and the kinds of handbook.txt."""
    entries: list[str] = []
    kinds: list[Kind] = []
    for line in filter(None, lines):
        mark, _, rest = line.partition(" ")
        if mark == "kind":
            kinds.append(Kind())
        elif mark == "entry:":
            entries.append(rest)
        else:
            cells = [cell.strip() for cell in rest.split(" | ")]
            {"word:": kinds[-1].words, "event:": kinds[-1].events}[mark].append(cells)
    return entries, kinds


def make_entries(entries: list[str], kinds: list[Kind], rng: random.Random) -> list[tuple[str, str]]:
    """(sentence, in plain words) of every word and every entry, in random order."""
    rows = [
        (expand(entry.replace("{g}", word), rng), expand(entry.replace("{g}", meaning), rng))
        for kind in kinds
        for word, meaning, _ in kind.words
        for entry in entries
    ]
    rng.shuffle(rows)
    return rows


def make_pairs(kinds: list[Kind], per_score: int, rng: random.Random) -> list[Pair]:
    """``per_score`` pairs of each score, in random order."""
    pairs: dict[tuple[str, str], float] = {}
    for score in (5.0, 2.0, 0.0):
        wanted = len(pairs) + per_score
        while len(pairs) < wanted:
            kind = rng.choice(kinds)
            word, event = rng.choice(kind.words), rng.choice(kind.events)
            others = kind.words if score else rng.choice([one for one in kinds if one is not kind]).words
            described = word if score == 5 else rng.choice([one for one in others if one is not word])
            pair = tidy(event[0].replace("{x}", word[0])), tidy(event[1].replace("{x}", described[2]))
            pairs.setdefault(pair, score)
    chosen = [(first, second, score) for (first, second), score in pairs.items()]
    rng.shuffle(chosen)
    return chosen
