"""What encoders say of dev sets: the trained model, and the encoders that training started from, as they are stated."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cacse_trainer.encoding.embedder import Vectors
from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.encoding.sentence_transformers import read_modules
from cacse_trainer.errors import user_errors
from cacse_trainer.evaluation.dev_sets import Answers, DevSet
from cacse_trainer.settings.resources import public_name, resolve_resource


@dataclass
class Reading:
    """What an encoder says of dev sets.

    Args:
        name: of the encoder.
        pooling: by which it was read.
        answers: by set.
        scores: by which each set judges, ×100.
        vectors: of the sentences that are looked at one by one.
    """

    name: str
    pooling: str
    answers: dict[str, Answers]
    scores: dict[str, float]
    vectors: np.ndarray | None = None

    def every_score(self) -> Iterator[tuple[str, str, float]]:
        """Set, metric and score ×100, also of the metrics by which no set judges."""
        for name, answers in self.answers.items():
            for metric, value in answers.scores.items():
                yield name, metric, value


def read(
    name: str, pooling: str, embedder: Vectors, sets: Mapping[str, DevSet], sentences: Sequence[str] = ()
) -> Reading:
    """Score an encoder on dev sets and keep its answers, and its vectors of the sentences."""
    answers = {key: one.read(embedder) for key, one in sets.items()}
    scores = {key: answers[key].scores[one.metric] for key, one in sets.items()}
    return Reading(name, pooling, answers, scores, embedder.vectors(sentences) if sentences else None)


def read_stated(
    starts: Sequence[str],
    sets: Mapping[str, DevSet],
    device: torch.device | str,
    bf16: bool = False,
    trust_remote_code: bool = False,
    sentences: Sequence[str] = (),
) -> Reading | None:
    """The best of the encoders that training started from, each read as its own folder states.

    Args:
        starts: folders or hub ids.
        sets: dev sets; the first one tells which of several starts is the best.
        device: where they are read.
        bf16: read them in bfloat16.
        trust_remote_code: run model code that comes with a start.
        sentences: whose vectors are kept, too.

    Returns:
        None where there are no sets, or no start states its pooling.

    Raises:
        UserError: a start cannot be read.
    """
    readings = []
    how: Any = {"device": device, "dtype": torch.bfloat16 if bf16 else torch.float32}
    for name in dict.fromkeys(starts if sets else ()):
        path = resolve_resource(name)
        with user_errors(f"model {name}", KeyError, RuntimeError):
            if read_modules(path).pooling is None:
                continue
        with torch.random.fork_rng(devices=[]):  # weights that a checkpoint lacks are drawn: not from the run's seed
            encoder = SentenceEncoder(path, **how, trust_remote_code=trust_remote_code)
        readings.append(read(public_name(name), encoder.pooling, encoder.embedder, sets, sentences))
    return max(readings, key=lambda reading: next(iter(reading.scores.values())), default=None)
