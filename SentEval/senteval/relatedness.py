"""Trained similarity: a softmax over the scores' integers, fitted to |u − v| and u∘v (Tai, Socher, Manning 2015).

A score y between k and k + 1 becomes the distribution with k + 1 − y on k and y − k on k + 1; the prediction is the
expected integer. Trained with mean squared error and Adam (batch 64), a round is 50 passes, the state with the best dev
Pearson is kept, training stops at the fourth miss or past 1000 passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr

from senteval import data
from senteval.encoding import Batcher, Tokens
from senteval.sts import SICK_FILES, STS_BENCHMARK_FILES
from senteval.task import Result, Task, length_order, pair_features
from senteval.tools.batched import initial_state, widen
from senteval.tools.fits import threads
from senteval.tools.updates import Adam
from senteval.utils import dotdict

CLASSES = 5
BATCH = 64
ROUND = 50
TENACITY = 3
MAX_PASSES = 1000


def encode_scores(scores: Sequence[float], classes: int = CLASSES) -> np.ndarray:
    """Scores as distributions over the integers 1 … classes, (n, classes); a score below 1 keeps only its upper part.

    Example:
        >>> encode_scores([3.25]).tolist()
        [[0.0, 0.0, 0.75, 0.25, 0.0]]
    """
    table = np.zeros((len(scores), classes), dtype=np.float32)
    for row, score in enumerate(scores):
        floor = math.floor(score)
        if 1 <= floor <= classes:
            table[row, floor - 1] = floor + 1 - score
        if floor < classes:
            table[row, floor] = score - floor
    return table


def correlation(kind: str, a: np.ndarray, b: Sequence[float]) -> float:
    """Pearson or Spearman, 0 where it is undefined."""
    value = float((pearsonr if kind == "pearson" else spearmanr)(a, b)[0])
    return 0.0 if math.isnan(value) else value


def fit_scores(
    train: tuple[np.ndarray, Sequence[float]], dev: tuple[np.ndarray, Sequence[float]], seed: int
) -> tuple[torch.Tensor, float]:
    """Trains the regression.

    Args:
        train: features (n, dim) and scores.
        dev: features (m, dim) and scores; their Pearson correlation chooses the state.
        seed: seed of the initial layer and of the permutations.

    Returns:
        (weights and biases as one matrix (5, D), see ``batched.widen``; best dev Pearson).
    """
    x, target = widen(torch.from_numpy(train[0]).float()), torch.from_numpy(encode_scores(train[1]))
    weight = initial_state(train[0].shape[1], CLASSES, seed)
    update, stream = Adam(weight), np.random.RandomState(seed)
    best, best_score, misses, passes = weight.clone(), -1.0, 0, 0
    with torch.no_grad(), threads(1):
        while misses <= TENACITY and passes <= MAX_PASSES:
            for _ in range(ROUND):
                for rows in torch.from_numpy(stream.permutation(len(x))).split(BATCH):
                    update.step(weight, gradient(weight, x[rows], target[rows]))
            passes += ROUND
            score = correlation("pearson", predict(weight, dev[0]), dev[1])
            if score > best_score:
                best, best_score = weight.clone(), score
            else:
                misses += 1
    return best, best_score


def gradient(weight: torch.Tensor, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Gradient of mean (softmax(x wᵀ) − target)² by w; w (5, D), x (B, D), target (B, 5)."""
    share = torch.softmax(x @ weight.T, dim=-1)  # (B, 5)
    by_share = (share - target) * (2 / target.numel())
    by_logit = share * (by_share - (by_share * share).sum(-1, keepdim=True))  # (B, 5)
    return by_logit.T @ x


def predict(weight: torch.Tensor, features: np.ndarray) -> np.ndarray:
    """Expected scores (n,) for features (n, dim)."""
    share = torch.softmax(widen(torch.from_numpy(features).float()) @ weight.T, dim=-1)  # (n, 5)
    return share.numpy() @ np.arange(1, CLASSES + 1)


class RelatednessTask(Task):
    """SICKRelatedness-finetune and STSBenchmark-finetune: parts train, dev and test of scored pairs."""

    def __init__(self, name: str, parts: dict[str, data.Pairs], seed: int = 1111) -> None:
        super().__init__(name, seed)
        self.parts: dict[str, data.Pairs] = {}
        for part, (first, second, scores) in parts.items():
            order = length_order(first, second, scores)
            self.parts[part] = ([first[i] for i in order], [second[i] for i in order], [scores[i] for i in order])

    @property
    def samples(self) -> list[Tokens]:
        return [tokens for first, second, _ in self.parts.values() for tokens in first + second]

    def run(self, params: dotdict, batcher: Batcher) -> Result:
        x = {part: pair_features(params, batcher, a, b, self.name) for part, (a, b, _) in self.parts.items()}
        gold = {part: scores for part, (_, _, scores) in self.parts.items()}
        weight, devpearson = fit_scores((x["train"], gold["train"]), (x["dev"], gold["dev"]), self.seed)
        yhat = predict(weight, x["test"])
        return {
            "devpearson": devpearson,
            "devspearman": correlation("spearman", predict(weight, x["dev"]), gold["dev"]),
            "pearson": correlation("pearson", yhat, gold["test"]),
            "spearman": correlation("spearman", yhat, gold["test"]),
            "mse": float(np.mean((yhat - np.array(gold["test"])) ** 2)),
            "yhat": yhat,
            "ndev": len(gold["dev"]),
            "ntest": len(gold["test"]),
        }


def load_sts_benchmark_finetune(name: str, folder: Path, seed: int) -> RelatednessTask:
    """STS Benchmark with a trained regression."""
    return RelatednessTask(name, {p: data.sts_benchmark(folder / f) for p, f in STS_BENCHMARK_FILES.items()}, seed)


def load_sick_finetune(name: str, folder: Path, seed: int) -> RelatednessTask:
    """SICK relatedness with a trained regression."""
    return RelatednessTask(name, {part: data.sick(folder / f)[:3] for part, f in SICK_FILES.items()}, seed)
