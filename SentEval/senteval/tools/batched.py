"""Many linear classifiers trained side by side, each as if it were alone.

A cross-validation over folds and L2 values fits hundreds of linear layers (410 for one binary task with ten folds).
Every fit starts anew from the same seed, so all share their initial weights, fits of equally many rows share their
stream of permutations, and the L2 values of one fold share the data itself. Here fits with the same number of batches a
pass step together: one gather of a batch serves all L2 values of a fold, two batched matrix products and one optimizer
step serve all folds. Each classifier keeps its own early stopping; those that have stopped leave the computation.

The result is that of ``classifier.fit_plain`` up to float32 rounding (tested). Letters in shapes: G folds, R L2 values,
C classes, B rows of a batch, D features: the task's, then a 1 that carries the bias, then zeros to a multiple of 16.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn

from senteval.tools.fits import HOLD_OUT, Fit, Fitted, hold_out, threads
from senteval.tools.settings import Settings, parse_optimizer
from senteval.tools.updates import UPDATES, Index

GATHER_BYTES = 3 << 19  # the rows of one step stay in a core's second-level cache (1.5 MiB)
LARGE_STEP = 1 << 23  # multiply-adds of one step from which several threads share it


def can_batch(settings: Settings) -> bool:
    """Whether these settings are a linear layer with an optimizer that is vectorised here."""
    method, options = parse_optimizer(settings.optim)
    return settings.nhid == 0 and method in UPDATES and set(options) <= {"lr"}


def widen(features: torch.Tensor) -> torch.Tensor:
    """Features (n, dim) with the bias column and the zeros behind them: (n, D)."""
    count, dim = features.shape
    wide = features.new_zeros(count, (dim // 16 + 1) * 16)
    wide[:, :dim] = features
    wide[:, dim] = 1
    return wide


def initial_state(dim: int, classes: int, seed: int) -> torch.Tensor:
    """A fresh linear layer in the layout of ``widen``, (C, D); torch's random stream is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(dim, classes)
    state = widen(layer.weight.detach())
    state[:, dim] = layer.bias.detach()
    return state


class LinearBank:
    """G × R linear layers that take their optimizer steps together.

    Args:
        initial: the one initial state all start from, (C, D).
        regs: L2 values, (G, R).
        optim: "adam" or "rmsprop", with or without ",lr=…".
    """

    def __init__(self, initial: torch.Tensor, regs: torch.Tensor, optim: str) -> None:
        method, options = parse_optimizer(optim)
        self.regs = regs[:, :, None, None]  # (G, R, 1, 1)
        self.minus_one = initial.new_tensor(-1.0)  # a number would be made a tensor anew in every step
        self.weight = initial.expand(*regs.shape, -1, -1).clone()  # (G, R, C, D)
        self.update = UPDATES[method](self.weight, **options)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs for rows x (G, B, D): (G, R, C, B); for two classes only the second minus the first, (G, R, B)."""
        if self.weight.shape[2] == 2:
            return torch.bmm(self.weight[:, :, 1] - self.weight[:, :, 0], x.transpose(1, 2))
        flat = self.weight.flatten(1, 2)
        return torch.bmm(flat, x.transpose(1, 2)).unflatten(1, self.weight.shape[1:3])

    def predictions(self, x: torch.Tensor) -> torch.Tensor:
        """Labels for rows x (G, B, D): (G, R, B)."""
        logits = self.logits(x)
        return (logits > 0).long() if logits.dim() == 3 else logits.argmax(2)

    def step(self, x: torch.Tensor, targets: torch.Tensor, share: torch.Tensor) -> None:
        """One optimizer step on the mean cross-entropy plus the coupled L2.

        Args:
            x: rows, (G, B, D).
            targets: labels, (G, 1, B); for two classes in the features' type.
            share: what each row counts in the mean, one number or (G, 1, B).
        """
        error = self.logits(x)
        gradient = self.regs * self.weight
        if error.dim() == 3:  # d loss / d (second − first) = sigmoid − label
            error.sigmoid_().sub_(targets).mul_(share)
            slope = torch.bmm(error, x)
            gradient[:, :, 1].add_(slope)
            gradient[:, :, 0].sub_(slope)
        else:  # d loss / d logit = softmax − one-hot
            error = torch.softmax(error, dim=2)
            index = targets[:, None].expand(-1, error.shape[1], -1, -1)  # (G, R, 1, B)
            error = error.scatter_add_(2, index, self.minus_one.expand(index.shape)).flatten(1, 2).mul_(share)
            gradient.flatten(1, 2).baddbmm_(error, x)
        self.update.step(self.weight, gradient)

    def keep(self, index: Index) -> None:
        """Drops all classifiers but ``index`` (folds (G', 1), L2 slots (G', R')), optimizer state included."""
        self.weight, self.regs = self.weight[index], self.regs[index]
        self.update.keep(index)


class Batches:
    """The rows of each fold, pass after pass, in the order each fold's own random stream gives.

    Args:
        fits: what is fitted; the same number of batches a pass each.
        settings: seed and batch size.
        device: where the row numbers go.

    Attributes:
        dev: row numbers of each fold's dev part, repeated to a common length, (G, m).
        dev_sizes: their true number, (G,).
    """

    def __init__(self, fits: Sequence[Fit], settings: Settings, device: torch.device) -> None:
        self.size, self.device = settings.batch_size, device
        self.kind = [(len(fit.train), fit.dev is None) for fit in fits]
        self.streams: dict[tuple[int, bool], np.random.RandomState] = {}
        parts = []
        for fit, kind in zip(fits, self.kind, strict=True):
            self.streams[kind] = np.random.RandomState(settings.seed)  # anew: alike fits draw the same hold-out
            parts.append(hold_out(fit, self.streams[kind]))
        self.train = [torch.from_numpy(rows).to(device) for rows, _ in parts]
        longest = max(len(rows) for _, rows in parts)
        self.dev = torch.from_numpy(np.stack([np.resize(rows, longest) for _, rows in parts])).to(device)
        self.dev_sizes = torch.tensor([len(rows) for _, rows in parts], device=device)

    def one_pass(self, active: list[int], targets: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Row numbers (G, B) of the active folds, their targets (G, 1, B) and what each counts in its mean, by batch.

        Folds may differ by a few rows in the last batch: the shorter ones are filled up with rows that count nothing.
        """
        kinds = {self.kind[g] for g in active}
        orders = {
            kind: torch.from_numpy(self.streams[kind].permutation(len(self.train[self.kind.index(kind)])))
            for kind in sorted(kinds)
        }
        rows = [self.train[g][orders[self.kind[g]].to(self.device)] for g in active]
        ordered = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (G, n)
        wanted = targets[ordered][:, None]  # (G, 1, n)
        *full, last = zip(ordered.split(self.size, dim=1), wanted.split(self.size, dim=2), strict=True)
        share = torch.tensor(1 / self.size, device=self.device)
        for batch in full:
            yield *batch, share
        sizes = torch.tensor([len(r) for r in rows], device=self.device) - self.size * len(full)  # (G,)
        counts = torch.arange(last[0].shape[1], device=self.device) < sizes[:, None]  # (G, B)
        yield *last, (counts / sizes[:, None])[:, None, :]


@torch.no_grad()
def fit_together(
    wide: torch.Tensor, labels: torch.Tensor, fits: Sequence[Fit], initial: torch.Tensor, settings: Settings
) -> list[list[Fitted]]:
    """Trains fits that have the same number of batches a pass and of L2 values.

    Args:
        wide: features with the bias column, (rows, D).
        labels: (rows,) int64.
        fits: what is fitted.
        initial: initial state, (C, D).
        settings: the classifier.

    Returns:
        For each fit one ``Fitted`` an L2 value.
    """
    device = wide.device
    batches = Batches(fits, settings, device)
    regs = torch.tensor([fit.regs for fit in fits], dtype=wide.dtype, device=device)
    bank = LinearBank(initial, regs, settings.optim)
    best_weight = bank.weight.clone()  # (G, R, C, D)
    best = torch.full_like(regs, -1, dtype=torch.long)  # (G, R): correct dev rows
    misses = torch.zeros_like(best)
    counted = torch.arange(batches.dev.shape[1], device=device) < batches.dev_sizes[:, None]  # (G, m)
    targets = labels if settings.nclasses > 2 else labels.to(wide.dtype)
    buffer = wide.new_empty(len(fits) * settings.batch_size, wide.shape[1])
    # which fold and which L2 value each place in the bank belongs to: (G', 1) and (G', R')
    places = torch.meshgrid(*(torch.arange(n, device=device) for n in regs.shape), indexing="ij")
    here: Index = (places[0][:, :1], places[1])

    passes = 0
    while len(here[0]) and passes <= settings.max_epoch:
        active = here[0][:, 0]
        for _ in range(settings.epoch_size):
            for rows, wanted, share in batches.one_pass(active.tolist(), targets):
                x = torch.index_select(wide, 0, rows.reshape(-1), out=buffer[: rows.numel()])
                bank.step(x.view(*rows.shape, -1), wanted, share)
        passes += settings.epoch_size
        dev = batches.dev[active]
        hits = bank.predictions(wide[dev]) == labels[dev][:, None, :]  # (G', R', m)
        correct = (hits & counted[active][:, None, :]).sum(-1)  # (G', R')
        better = (correct > best[here]) & (misses[here] <= settings.tenacity)
        best[here] = torch.where(better, correct, best[here])
        best_weight[here] = torch.where(better[:, :, None, None], bank.weight, best_weight[here])
        misses[here] += (~better).long()
        here = leave(bank, here, misses[here] <= settings.tenacity)
    accuracy = best / batches.dev_sizes[:, None].double()  # (G, R)
    return [
        [Fitted(float(accuracy[g, r]), predictor(best_weight[g, r])) for r in range(regs.shape[1])]
        for g in range(len(fits))
    ]


def leave(bank: LinearBank, here: Index, going: torch.Tensor) -> Index:
    """Takes the stopped classifiers out of the bank: folds without a going one, and L2 places no fold needs any more.

    Args:
        bank: the classifiers.
        here: their folds (G, 1) and L2 values (G, R).
        going: (G, R) those that train on.

    Returns:
        ``here`` of what is left. A fold with fewer going classifiers than another carries stopped ones along.
    """
    folds = going.any(1).nonzero()  # (G', 1)
    places = int(going.sum(1).max())
    if len(folds) == going.shape[0] and places == going.shape[1]:
        return here
    slots = going[folds[:, 0]].sort(dim=1, descending=True, stable=True).indices[:, :places]  # (G', R')
    bank.keep((folds, slots))
    return here[0][folds[:, 0]], here[1][folds, slots]


def predictor(state: torch.Tensor) -> Callable[[np.ndarray], np.ndarray]:
    """The labels a linear layer (C, D) gives to rows (n, dim)."""

    def predict(rows: np.ndarray) -> np.ndarray:
        dim = rows.shape[1]
        x = torch.from_numpy(np.asarray(rows, dtype=np.float32)).to(state.device)
        return torch.addmm(state[:, dim], x, state[:, :dim].T).argmax(1).cpu().numpy()

    return predict


def blocks(fits: Sequence[Fit], settings: Settings, width: int, workers: int) -> list[np.ndarray]:
    """Numbers of the fits that step together, in equal blocks small enough for the cache, at least one a worker."""
    alike: dict[tuple[int, int, bool], list[int]] = defaultdict(list)
    for number, fit in enumerate(fits):
        held_out = fit.dev is None
        rows = len(fit.train) - (int(HOLD_OUT * len(fit.train)) if held_out else 0)
        alike[-(-rows // settings.batch_size), len(fit.regs), held_out].append(number)
    largest = max(1, GATHER_BYTES // (4 * settings.batch_size * width))
    found: list[np.ndarray] = []
    for numbers in alike.values():
        found += np.array_split(numbers, min(len(numbers), max(workers, -(-len(numbers) // largest))))
    return found


def fit_linear(
    features: torch.Tensor, labels: torch.Tensor, fits: Sequence[Fit], settings: Settings
) -> list[list[Fitted]]:
    """Trains all fits, block by block, the blocks spread over torch's number of threads.

    Args:
        features: (rows, dim) float32.
        labels: (rows,) int64.
        fits: what is to be fitted.
        settings: such that ``can_batch``.

    Returns:
        For each fit one ``Fitted`` an L2 value, in the order given.
    """
    wide = widen(features)
    initial = initial_state(features.shape[1], settings.nclasses, settings.seed).to(features.device)
    workers = torch.get_num_threads() if features.device.type == "cpu" else 1
    parts = blocks(fits, settings, wide.shape[1], workers)
    step = len(parts[0]) * len(fits[0].regs) * settings.nclasses * settings.batch_size * wide.shape[1]
    if len(parts) == 1 and step >= LARGE_STEP:
        workers = 1
        done = [fit_together(wide, labels, fits, initial, settings)]
    else:
        with threads(1), ThreadPoolExecutor(workers) as pool:
            jobs = [pool.submit(fit_together, wide, labels, [fits[n] for n in p], initial, settings) for p in parts]
            done = [job.result() for job in jobs]
    by_number: dict[int, list[Fitted]] = {}
    for part, fitted in zip(parts, done, strict=True):
        by_number.update(zip(part.tolist(), fitted, strict=True))
    return [by_number[number] for number in range(len(fits))]
