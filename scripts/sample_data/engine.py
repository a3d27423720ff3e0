"""Expand sentence frames, one a line: `[a|b]` is a choice that may nest, `{bank}` a draw from a word bank.

A leading `+` marks a statement that may also be reported ("My aunt told me that ..."). Every combination of the choices
in a frame must be a sensible sentence.
`fill_frames` takes a few fillings of every frame, and only such as share few words with each other: near-identical
sentences in one batch would be false negatives for a contrastive loss.
"""

import random
import re

from sample_data.banks import BANKS

REPORTED = 0.3
_BANKS = {name: entries.split("|") for name, entries in BANKS.items()}
_INNERMOST_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
# First words that lose their capital when a statement is put behind "My aunt told me that ...".
_COMMON_OPENERS = {"The", "A", "An", "My", "Our", "We", "It", "She", "He", "They", "This", "Most", "Three", "Two"}
_REPORTS = (
    "{Kin} told me that {}",
    "It turned out that {}",
    "Have you heard that {}?",
    "{man} wrote to say that {}",
    "I was surprised to read that {}",
    "Everyone here knows that {}",
    "It is not true that {}",
    "On the phone, {woman} mentioned that {}",
    "You may not believe it, but {}",
    "As luck would have it, {}",
    "The radio says that {}",
    "Did you know that {}?",
)


def normalise(sentence: str) -> str:
    """The sentence as lower-case words only: what counts as "the same sentence" in the sample."""
    return " ".join(re.findall(r"[\w']+", sentence.lower()))


def expand(frame: str, rng: random.Random) -> str:
    """One random filling of `frame`; a bank never gives the same entry twice within a sentence."""
    while match := _INNERMOST_CHOICE.search(frame):
        frame = frame[: match.start()] + rng.choice(match[1].split("|")) + frame[match.end() :]
    drawn: set[str] = set()

    def draw(match: re.Match[str]) -> str:
        entry = rng.choice([entry for entry in _BANKS[match[1]] if entry not in drawn])
        drawn.add(entry)
        return entry

    sentence = _SLOT.sub(draw, frame)
    return tidy(sentence)


def tidy(sentence: str) -> str:
    """Mend what joining pieces leaves behind: double spaces, a space before punctuation, a small first letter."""
    sentence = re.sub(r"\s+", " ", sentence)
    sentence = re.sub(r" ([,.;:?!])", r"\1", sentence).strip()
    return sentence[0].upper() + sentence[1:]


def report(statement: str, rng: random.Random) -> str:
    """`statement` as something that somebody says, asks or doubts."""
    first, rest = statement.split(" ", 1)
    inner = f"{first.lower() if first in _COMMON_OPENERS else first} {rest}"
    pattern = rng.choice(_REPORTS)
    if pattern.endswith("?"):
        return expand(pattern.replace("{}", inner.rstrip(".")), rng)
    return expand(pattern.replace("{}", inner), rng)


def _overlap(first: set[str], second: set[str]) -> float:
    return len(first & second) / min(len(first), len(second))


def fill_frames(
    frames: list[str], per_frame: int, rng: random.Random, max_overlap: float = 0.79, tries: int = 150
) -> list[str]:
    """Up to `per_frame` fillings of every frame, any two of which share at most `max_overlap` of their words."""
    sentences = []
    for line in frames:
        reportable, frame = line.startswith("+"), line.lstrip("+")
        kept: list[set[str]] = []
        for _ in range(tries):
            sentence = expand(frame, rng)
            words = set(normalise(sentence).split())
            if any(_overlap(words, other) > max_overlap for other in kept):
                continue
            kept.append(words)
            sentences.append(report(sentence, rng) if reportable and rng.random() < REPORTED else sentence)
            if len(kept) == per_frame:
                break
    return sentences
