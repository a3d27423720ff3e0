"""Evaluation sentences that occur in the training text, and a task without them.

Sentences are compared by their letters and digits alone, case folded: the published files are tokenised in several ways
("it 's", "it's"), and training text in others.
"""

import copy
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from senteval.relatedness import RelatednessTask
from senteval.sts import SimilarityTask
from senteval.task import Task
from senteval.transfer import ClassificationTask

_OTHER = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class TrainingText:
    """What the evaluation sentences are looked for in.

    Args:
        name: as it is reported.
        digest: hash of a local file, by which a second call knows it again; None for a hub data set.
        sentences: read once.
    """

    name: str
    digest: str | None
    sentences: Iterable[str]

    @property
    def label(self) -> dict[str, str | None]:
        """What results say of it."""
        return {"training_text": self.name, "digest": self.digest}


def normalised(sentence: str) -> str:
    """Letters and digits, case folded.

    >>> normalised("It 's  a ﬁne Day !") == normalised("it's a fine day.")
    True
    """
    if not sentence.isascii():
        sentence = unicodedata.normalize("NFKC", sentence)
    return _OTHER.sub("", sentence.casefold())


def occurring(training_text: Iterable[str], sentences: Iterable[str]) -> set[str]:
    """Those of the sentences that occur in the training text; ones without a letter or digit never do.

    The training text is read once and not kept.
    """
    by_form: dict[str, list[str]] = {}
    for sentence in sentences:
        by_form.setdefault(normalised(sentence), []).append(sentence)
    by_form.pop("", None)
    found: set[str] = set()
    for line in training_text:
        found.update(by_form.pop(normalised(line), ()))
    return found


def without(task: Task, found: set[str]) -> Task | None:
    """A copy of the task whose scored rows hold none of the sentences; None if that changes nothing.

    A pair is left out when either sentence is among them. Training parts of the classifiers stay as they are; where all
    rows are tested in turn (MR, CR, SUBJ, MPQA) they are left out of both.
    """

    changed: Any = copy.copy(task)
    left_out = 0

    def clean(*columns: Sequence[Any]) -> list[list[Any]]:
        """The rows of which no text is among the sentences; the last column is none of text."""
        nonlocal left_out
        rows = list(zip(*columns, strict=True))
        kept = [row for row in rows if not any(" ".join(tokens) in found for tokens in row[:-1])]
        left_out += len(rows) - len(kept)
        return [list(column) for column in zip(*kept, strict=True)] or [[] for _ in columns]

    if isinstance(task, SimilarityTask):
        data = {subset: tuple(clean(*rows)) for subset, rows in task.data.items()}
        changed.data, changed.pair_scores = {subset: rows for subset, rows in data.items() if rows[2]}, {}
    elif isinstance(task, RelatednessTask):
        changed.parts = {**task.parts, "test": tuple(clean(*task.parts["test"]))}
    elif isinstance(task, ClassificationTask):
        scored = "test" if "test" in task.parts else "train"
        part = task.parts[scored]
        *texts, labels = clean(*part.texts, part.labels)
        changed.parts = {**task.parts, scored: replace(part, texts=tuple(texts), labels=labels)}
    else:
        raise TypeError(f"no rows are known of a {type(task).__name__}")
    return changed if left_out else None
