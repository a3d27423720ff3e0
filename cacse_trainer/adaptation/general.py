"""General sentences, whose similarities are watched: what an adaptation is to leave as it is."""

import random

from cacse_trainer.data import load_sentences
from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.errors import UserError
from cacse_trainer.settings.resources import resolve_resource

GENERAL_SENTENCES, GENERAL_PAIRS = 2000, 500
"""Pairs of general sentences whose cosines are watched."""


def general_sentences(text: str) -> list[str]:
    """What ``general_text`` names.

    Raises:
        UserError: it cannot be read, or is of pairs.
    """
    found = load_sentences(resolve_resource(text), max_rows=GENERAL_SENTENCES)
    if found.column_names != ["text"]:
        raise UserError(f"general_text {text}: has several columns of texts; give one sentence a line")
    return list(found["text"])


def general_pairs(encoder: SentenceEncoder, text: str) -> str:
    """General sentences in pairs, with the cosine that the start gives them: what the training is to leave as it is."""
    sentences = general_sentences(text)
    draws = random.Random("general pairs")
    pairs = [draws.sample(sentences, 2) for _ in range(GENERAL_PAIRS)]
    first, second = (encoder.encode([pair[side].replace("\t", " ") for pair in pairs]) for side in (0, 1))
    lines = ["sentence1\tsentence2\tscore"]
    for pair, cosine in zip(pairs, (first * second).sum(axis=1), strict=True):
        lines.append("\t".join((*(one.replace("\t", " ") for one in pair), f"{2.5 * (1 + float(cosine)):.6f}")))
    return "\n".join(lines) + "\n"
