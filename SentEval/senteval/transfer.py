"""Classification tasks: embeddings as features of a classifier (transfer and probing).

Four shapes cover all of them: one sentence without a test part (MR, CR, SUBJ, MPQA), one sentence with a test part
(TREC), one sentence with dev and test parts (SST2, SST5, the ten probing tasks), and pairs of sentences (MRPC, SICK
entailment, SNLI). Data are sorted by length and label before anything is embedded, as in published runs: the folds and
the permutations refer to that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score

from senteval import data
from senteval.encoding import Batcher, Tokens, encode
from senteval.sts import SICK_FILES
from senteval.task import Result, Task, length_order, pair_features
from senteval.tools import validation
from senteval.tools.settings import Settings
from senteval.utils import dotdict

NO_REGULARISATION = 1e-9  # SNLI's 550 000 pairs are trained once, without a grid
PROBING_FILES = {
    "Length": "sentence_length.txt",
    "WordContent": "word_content.txt",
    "Depth": "tree_depth.txt",
    "TopConstituents": "top_constituents.txt",
    "BigramShift": "bigram_shift.txt",
    "Tense": "past_present.txt",
    "SubjNumber": "subj_number.txt",
    "ObjNumber": "obj_number.txt",
    "OddManOut": "odd_man_out.txt",
    "CoordinationInversion": "coordination_inversion.txt",
}


@dataclass
class Part:
    """One part of a task: a list of sentences per column (one, or two for pairs) and their labels."""

    texts: tuple[list[Tokens], ...]
    labels: list[int]

    def ordered(self, by: Sequence[int] = (0, 1), rank: Sequence[int] | None = None) -> Part:
        """Sorted stably by the lengths of the text columns in the order ``by``, then by label (or its rank)."""
        keys = [self.texts[column] for column in by if column < len(self.texts)]
        order = length_order(*keys, self.labels if rank is None else [rank[label] for label in self.labels])
        return Part(tuple([text[i] for i in order] for text in self.texts), [self.labels[i] for i in order])


class ClassificationTask(Task):
    """A trained task.

    Args:
        name: the task's name.
        parts: "train", and where the task has them "dev" and "test", already in their final order.
        nclasses: number of labels.
        seed: seed of the classifiers.
    """

    def __init__(self, name: str, parts: dict[str, Part], nclasses: int, seed: int = 1111) -> None:
        super().__init__(name, seed)
        self.parts = parts
        self.nclasses = nclasses

    @property
    def samples(self) -> list[Tokens]:
        return [tokens for part in self.parts.values() for text in part.texts for tokens in text]

    def features(self, params: dotdict, batcher: Batcher, part: Part) -> np.ndarray:
        """The classifier's input for one part: the embedding, or |u − v| beside u∘v for pairs."""
        if len(part.texts) == 1:
            return encode(params, batcher, part.texts[0], self.name)
        return pair_features(params, batcher, part.texts[0], part.texts[1], self.name)

    def settings(self, params: dotdict) -> Settings:
        """The classifier's settings out of the engine's parameters."""
        return Settings.from_params(params, self.nclasses, self.seed)

    def run(self, params: dotdict, batcher: Batcher) -> Result:
        settings = self.settings(params)  # a wrong setting is told before anything is embedded
        x = np.concatenate([self.features(params, batcher, part) for part in self.parts.values()])
        y = np.concatenate([part.labels for part in self.parts.values()])
        sizes = [len(part.labels) for part in self.parts.values()]
        rows = dict(zip(self.parts, np.split(np.arange(len(y)), np.cumsum(sizes)[:-1]), strict=True))
        return self.classify(x, y, rows, settings)

    def classify(self, x: np.ndarray, y: np.ndarray, rows: dict[str, np.ndarray], settings: Settings) -> Result:
        """With a dev part it chooses and stops; with only a test part folds of the training part do; else nested folds.

        Args:
            x: (n, dim) features of all parts.
            y: (n,) labels.
            rows: part → its row numbers.
            settings: the classifier.

        Returns:
            ``devacc`` and ``acc`` in percent, ``ndev``, ``ntest``.
        """
        if "dev" in rows:
            regs = self.regs(settings)
            devacc, acc = validation.split(x, y, rows["train"], rows["dev"], rows["test"], settings, regs)
            return {"devacc": devacc, "acc": acc, "ndev": len(rows["dev"]), "ntest": len(rows["test"])}
        if "test" in rows:
            devacc, acc, _ = validation.kfold(x, y, rows["train"], rows["test"], settings)
            return {"devacc": devacc, "acc": acc, "ndev": len(rows["train"]), "ntest": len(rows["test"])}
        devacc, acc = validation.inner_kfold(x, y, settings)
        return {"devacc": devacc, "acc": acc, "ndev": len(y), "ntest": len(y)}

    def regs(self, settings: Settings) -> tuple[float, ...] | None:
        """Regularisation values in place of the usual grid."""
        return None


class ParaphraseTask(ClassificationTask):
    """MRPC: also the F1 of the positive class."""

    def classify(self, x: np.ndarray, y: np.ndarray, rows: dict[str, np.ndarray], settings: Settings) -> Result:
        devacc, acc, predicted = validation.kfold(x, y, rows["train"], rows["test"], settings)
        f1 = round(100 * f1_score(y[rows["test"]], predicted), 2)
        return {"devacc": devacc, "acc": acc, "f1": float(f1), "ndev": len(rows["train"]), "ntest": len(rows["test"])}


class SnliTask(ClassificationTask):
    """SNLI: features u, v, u∘v, |u − v|, and no grid of L2 values."""

    def features(self, params: dotdict, batcher: Batcher, part: Part) -> np.ndarray:
        u = encode(params, batcher, part.texts[0], self.name)
        v = encode(params, batcher, part.texts[1], self.name)
        x = np.empty((len(u), 4 * u.shape[1]), dtype=np.float32)  # (n, 4·dim), filled without a second copy
        for column, block in enumerate((u, v, u * v, np.abs(u - v))):
            x[:, column * u.shape[1] : (column + 1) * u.shape[1]] = block
        return x

    def regs(self, settings: Settings) -> tuple[float, ...] | None:
        return (NO_REGULARISATION,) if settings.usepytorch else (1 / NO_REGULARISATION,)  # an L2, or scikit-learn's C


class WordContentTask(ClassificationTask):
    """WordContent's 1000 classes are always separated by a linear layer."""

    def settings(self, params: dotdict) -> Settings:
        return replace(super().settings(params), nhid=0)


def load_binary(name: str, folder: Path, seed: int, positive: str, negative: str) -> ClassificationTask:
    """MR, CR, SUBJ, MPQA: the positive file, then the negative one."""
    first, second = data.plain_sentences(folder / positive), data.plain_sentences(folder / negative)
    part = Part((first + second,), [1] * len(first) + [0] * len(second))
    return ClassificationTask(name, {"train": part.ordered()}, 2, seed)


def load_trec(name: str, folder: Path, seed: int) -> ClassificationTask:
    """TREC: six coarse question types."""
    files = {"train": "train_5500.label", "test": "TREC_10.label"}
    parts = {part: data.trec(folder / file) for part, file in files.items()}
    return ClassificationTask(name, {p: Part((x,), y).ordered() for p, (x, y) in parts.items()}, 6, seed)


def load_sst(name: str, folder: Path, seed: int, nclasses: int) -> ClassificationTask:
    """SST2 and SST5 in their published splits."""
    parts = {part: data.sst(folder / f"sentiment-{part}", nclasses) for part in ("train", "dev", "test")}
    return ClassificationTask(name, {p: Part((x,), y).ordered() for p, (x, y) in parts.items()}, nclasses, seed)


def load_mrpc(name: str, folder: Path, seed: int) -> ClassificationTask:
    """MRPC."""
    parts = {part: data.mrpc(folder / f"msr_paraphrase_{part}.txt") for part in ("train", "test")}
    return ParaphraseTask(name, {p: Part((a, b), y).ordered() for p, (a, b, y) in parts.items()}, 2, seed)


def load_sick_entailment(name: str, folder: Path, seed: int) -> ClassificationTask:
    """SICK entailment, three classes."""
    found = {part: data.sick(folder / file) for part, file in SICK_FILES.items()}
    return ClassificationTask(name, {p: Part((a, b), y).ordered() for p, (a, b, _, y) in found.items()}, 3, seed)


def load_snli(name: str, folder: Path, seed: int) -> ClassificationTask:
    """SNLI, sorted by the hypothesis' length first, and at last by the labels' names."""
    found = {part: data.snli(folder, part) for part in ("train", "dev", "test")}
    rank = [sorted(data.SNLI_LABELS).index(label) for label in data.SNLI_LABELS]
    parts = {p: Part((a, b), y).ordered(by=(1, 0), rank=rank) for p, (a, b, y) in found.items()}
    return SnliTask(name, parts, 3, seed)


def load_probing(name: str, folder: Path, seed: int) -> ClassificationTask:
    """One of the ten probing tasks."""
    found = data.probing(folder / PROBING_FILES[name])
    parts = {split: Part((x,), y).ordered() for split, (x, y) in found.items()}
    kind = WordContentTask if name == "WordContent" else ClassificationTask
    return kind(name, parts, max(parts["train"].labels) + 1, seed)
