"""Described events from which graded pairs follow by rule.

An event has patterns that all say the same (active, passive, cleft, another word order), patterns of another action
with what that action costs, and slots with the cost of a different filling. `a / b` are different fillings, `a | b` are
two ways to say one filling. The score of a pair is 5 minus the costs of everything that differs, minus 0.2 where
synonyms stand for each other, and at least 1: the two sentences still have a topic in common.
"""

import random
import re

from sample_data.engine import tidy

LOWEST = 1.0
SYNONYM_COST = 0.2
# How many slots differ, and whether the action does, in the pairs made of every event.
CHANGES = ((0, False), (0, False), (1, False), (1, False), (2, False), (0, True), (2, True))

Pair = tuple[str, str, float]


def _parse(block: str) -> tuple[list[str], float, list[str], dict[str, tuple[float, list[list[str]]]]]:
    same, other, *slot_lines = block.splitlines()
    patterns = same.removeprefix("same: ").split(" | ")
    other_head, other_text = other.split(": ", 1)
    slots = {}
    for line in slot_lines:
        head, values = line.split(": ", 1)
        name, cost = head.split(" ")
        slots[name] = (float(cost), [value.split(" | ") for value in values.split(" / ")])
    return patterns, float(other_head.removeprefix("other ")), other_text.split(" | "), slots


def _say(pattern: str, meaning: dict[str, list[str]], rng: random.Random) -> tuple[str, dict[str, str]]:
    words = {name: rng.choice(ways) for name, ways in meaning.items()}
    return tidy(re.sub(r"\{(\w+)\}", lambda match: words[match[1]], pattern)), words


def make_pairs(text: str, rng: random.Random) -> list[list[Pair]]:
    """Graded pairs of every event in `text`, one list an event."""
    return [_pairs_of_event(block, rng) for block in text.strip().split("\n\n")]


def _pairs_of_event(block: str, rng: random.Random) -> list[Pair]:
    patterns, action_cost, other_patterns, slots = _parse(block)
    pairs = []
    for how_many, other_action in CHANGES:
        meaning = {name: rng.choice(values) for name, (_, values) in slots.items()}
        changed = dict(meaning)
        score = 5.0 - action_cost * other_action
        for name in rng.sample(sorted(slots), how_many):
            cost, values = slots[name]
            changed[name] = rng.choice([value for value in values if value != meaning[name]])
            score -= cost
        first_pattern, second_pattern = rng.sample(patterns, 2)
        if other_action:
            second_pattern = rng.choice(other_patterns)
        first, first_words = _say(first_pattern, meaning, rng)
        second, second_words = _say(second_pattern, changed, rng)
        if any(meaning[name] == changed[name] and first_words[name] != second_words[name] for name in slots):
            score -= SYNONYM_COST
        pairs.append((first, second, max(LOWEST, score)))
    return pairs
