"""Evaluation sentences that occur in the training text, and a task without them.

Sentences are compared by their letters and digits alone, case folded: the published files are tokenised in several ways
("it 's", "it's"), and training text in others.
"""

import copy
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace

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

    def clean(*texts: list[str]) -> bool:
        return not any(" ".join(tokens) in found for tokens in texts)

    changed = copy.copy(task)
    if isinstance(task, SimilarityTask) and isinstance(changed, SimilarityTask):
        changed.data, changed.pair_scores = {}, {}
        for subset, (first, second, gold) in task.data.items():
            kept = [i for i in range(len(gold)) if clean(first[i], second[i])]
            changed.data[subset] = ([first[i] for i in kept], [second[i] for i in kept], [gold[i] for i in kept])
        changed.data = {subset: rows for subset, rows in changed.data.items() if rows[2]}
        size = sum(len(gold) for _, _, gold in task.data.values())
        return changed if sum(len(gold) for _, _, gold in changed.data.values()) < size else None
    if isinstance(task, RelatednessTask) and isinstance(changed, RelatednessTask):
        first, second, gold = task.parts["test"]
        kept = [i for i in range(len(gold)) if clean(first[i], second[i])]
        rows = ([first[i] for i in kept], [second[i] for i in kept], [gold[i] for i in kept])
        changed.parts = {**task.parts, "test": rows}
        return changed if len(kept) < len(gold) else None
    if isinstance(task, ClassificationTask) and isinstance(changed, ClassificationTask):
        scored = "test" if "test" in task.parts else "train"
        part = task.parts[scored]
        kept = [i for i in range(len(part.labels)) if clean(*(text[i] for text in part.texts))]
        texts = tuple([text[i] for i in kept] for text in part.texts)
        changed.parts = {**task.parts, scored: replace(part, texts=texts, labels=[part.labels[i] for i in kept])}
        return changed if len(kept) < len(part.labels) else None
    raise TypeError(f"no rows are known of a {type(task).__name__}")
