"""The plain classifier: one network, one fit, one step after the other.

It is the definition that the vectorised linear classifier (``batched.py``) is tested against, and the path that
networks with a hidden layer and optimizers other than Adam and RMSprop take.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from senteval.tools.fits import Fit, Fitted, hold_out, threads
from senteval.tools.settings import Settings, make_optimizer


def accuracy(network: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of rows whose largest output is their label; features (n, dim), labels (n,)."""
    network.eval()
    with torch.no_grad():
        return float((network(features).argmax(1) == labels).sum()) / len(labels)


def train_pass(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    features: torch.Tensor,
    labels: torch.Tensor,
    order: np.ndarray,
    batch_size: int,
) -> None:
    """One pass over the rows in ``order``, a step of mean cross-entropy a batch."""
    network.train()
    for start in range(0, len(order), batch_size):
        rows = torch.from_numpy(order[start : start + batch_size]).to(features.device)
        loss = nn.functional.cross_entropy(network(features[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def fit_plain(features: torch.Tensor, labels: torch.Tensor, fit: Fit, reg: float, settings: Settings) -> Fitted:
    """Trains one classifier.

    Each fit starts anew from the seed: the network is created, a hold-out (if any) takes one NumPy permutation, each
    pass takes the next. After every ``epoch_size`` passes the dev accuracy is taken; the state is kept on strict
    improvement; misses are counted without ever being reset.

    Args:
        features: (rows, dim) float32, all rows of the task.
        labels: (rows,) int64.
        fit: rows to train on and to stop with.
        reg: L2, as the optimizer's coupled weight decay.
        settings: everything else.

    Returns:
        The best state.
    """
    stream = np.random.RandomState(settings.seed)
    with threads(1), torch.random.fork_rng(devices=[]):  # the dropout draws from the stream the layers were made from
        torch.manual_seed(settings.seed)
        network = settings.network(features.shape[1]).to(features.device)
        optimizer = make_optimizer(settings.optim, network.parameters(), weight_decay=reg)
        train_rows, dev_rows = (torch.from_numpy(rows).to(features.device) for rows in hold_out(fit, stream))
        train_x, train_y = features[train_rows], labels[train_rows]
        dev_x, dev_y = features[dev_rows], labels[dev_rows]
        best, best_accuracy, misses, passes = network, -1.0, 0, 0
        while misses <= settings.tenacity and passes <= settings.max_epoch:
            for _ in range(settings.epoch_size):
                train_pass(network, optimizer, train_x, train_y, stream.permutation(len(train_y)), settings.batch_size)
            passes += settings.epoch_size
            score = accuracy(network, dev_x, dev_y)
            if score > best_accuracy:
                best, best_accuracy = copy.deepcopy(network), score
            else:
                misses += 1
    best.eval()

    def predict(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return best(torch.from_numpy(rows).float().to(features.device)).argmax(1).cpu().numpy()

    return Fitted(best_accuracy, predict)
