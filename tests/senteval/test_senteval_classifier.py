"""The classifier protocol: the vectorised fits equal the plain ones, and both follow the published procedure."""

import numpy as np
import pytest
import senteval
import torch
from senteval.tools import validation
from senteval.tools.batched import blocks, fit_linear
from senteval.tools.classifier import fit_plain
from senteval.tools.fits import Fit, hold_out
from senteval.tools.settings import Settings, make_optimizer
from senteval.tools.updates import UPDATES
from senteval.transfer import SnliTask
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from torch import nn

REGS = (1e-5, 1e-3, 1e-1)


def problem(rows: int, classes: int, dim: int = 20, noise: float = 0.2):
    x, y = make_classification(
        rows, dim, n_informative=8, n_classes=classes, flip_y=noise, class_sep=0.7, random_state=0
    )
    return x.astype(np.float32), y.astype(np.int64)


def settings(**changes) -> Settings:
    return Settings(**{"nclasses": 2, "batch_size": 16, "tenacity": 2, "epoch_size": 2, "kfold": 3, **changes})


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
@pytest.mark.parametrize("options", ["", ",lr=0.05"])
def test_updates_are_torchs(name, options):
    torch.manual_seed(0)
    ours = torch.randn(3, 4, dtype=torch.float64)
    theirs = nn.Parameter(ours.clone())
    optimizer = make_optimizer(name + options, [theirs], weight_decay=0.1)
    update = UPDATES[name](ours, **({"lr": 0.05} if options else {}))
    for _ in range(30):
        gradient = torch.randn(3, 4, dtype=torch.float64)
        theirs.grad = gradient.clone()
        optimizer.step()
        update.step(ours, gradient + 0.1 * ours)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("optim", ["adam", "rmsprop", "adam,lr=0.01"])
@pytest.mark.parametrize("classes", [2, 3])
def test_vectorised_fits_equal_plain_ones(optim, classes):
    """Folds of unequal sizes (also in their number of batches), hold-outs and given dev rows, several L2 values."""
    x, y = problem(230, classes)
    chosen = settings(nclasses=classes, optim=optim)
    rows = np.random.RandomState(1).permutation(230)
    fits = [
        Fit(rows[:160], rows[160:200], REGS),
        Fit(rows[20:180], rows[180:], REGS),
        Fit(rows[5:164], rows[164:230], REGS),  # 159 rows: the same number of batches, a shorter last one
        Fit(rows[:100], rows[100:140], REGS),  # fewer batches
        Fit(rows[30:190], None, REGS),
        Fit(rows[:162], None, REGS[:1]),
    ]
    features, labels = torch.from_numpy(x), torch.from_numpy(y)
    together = fit_linear(features, labels, fits, chosen)
    for fit, fitted in zip(fits, together, strict=True):
        for reg, vectorised in zip(fit.regs, fitted, strict=True):
            plain = fit_plain(features, labels, fit, reg, chosen)
            assert vectorised.accuracy == pytest.approx(plain.accuracy, abs=1e-12)
            assert (vectorised.predict(x) == plain.predict(x)).mean() > 0.995


def test_blocks_keep_equal_batch_counts_together():
    rows = np.arange(100)
    fits = [Fit(rows[:n], rows[n:], REGS) for n in (64, 63, 65, 50)]  # 4, 4, 5 and 4 batches of 16
    found = [part.tolist() for part in blocks(fits, settings(), width=32, workers=1)]
    assert sorted(found) == [[0, 1, 3], [2]]


def test_a_hold_out_is_the_first_permutation():
    rows = np.arange(100, 140)
    expected = np.random.RandomState(7).permutation(40)
    stream = np.random.RandomState(7)
    train, dev = hold_out(Fit(rows, None, REGS), stream)
    assert dev.tolist() == rows[expected[:2]].tolist()  # int(0.05 · 40) = 2
    assert train.tolist() == rows[expected[2:]].tolist()
    assert stream.get_state()[2] != np.random.RandomState(7).get_state()[2]  # the passes draw what follows
    with pytest.raises(senteval.SettingsError, match="19 training rows are too few"):
        hold_out(Fit(rows[:19], None, REGS), stream)


@pytest.mark.parametrize("tenacity, epoch_size, max_epoch, rounds", [(2, 3, 200, 4), (0, 1, 200, 2), (9, 4, 8, 3)])
def test_when_training_stops(monkeypatch, tenacity, epoch_size, max_epoch, rounds):
    """Accuracies that never improve after the first: tenacity + 1 misses follow, or no round begins past max_epoch."""
    passes = []
    monkeypatch.setattr("senteval.tools.classifier.train_pass", lambda *a: passes.append(1))
    monkeypatch.setattr("senteval.tools.classifier.accuracy", lambda *a: 0.5)
    x, y = problem(60, 2)
    chosen = settings(tenacity=tenacity, epoch_size=epoch_size, max_epoch=max_epoch)
    fit = Fit(np.arange(40), np.arange(40, 60), REGS)
    assert fit_plain(torch.from_numpy(x), torch.from_numpy(y), fit, 1e-4, chosen).accuracy == 0.5
    assert len(passes) == rounds * epoch_size


def test_misses_are_never_reset(monkeypatch):
    """tenacity 1: misses in rounds 2 and 4 stop the training although round 3 improved."""
    scores = iter([0.5, 0.4, 0.6, 0.6, 0.9])
    monkeypatch.setattr("senteval.tools.classifier.accuracy", lambda *a: next(scores))
    x, y = problem(60, 2)
    fit = Fit(np.arange(40), np.arange(40, 60), REGS)
    assert fit_plain(torch.from_numpy(x), torch.from_numpy(y), fit, 1e-4, settings(tenacity=1)).accuracy == 0.6


def test_a_fit_leaves_the_random_streams_alone():
    x, y = problem(80, 2)
    torch.manual_seed(3)
    np.random.seed(3)
    validation.inner_kfold(x, y, settings())
    validation.inner_kfold(x, y, settings(nhid=4))
    after = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    assert after == (torch.rand(1).item(), np.random.rand())


def test_a_fit_leaves_the_thread_count_alone():
    before = torch.get_num_threads()
    validation.inner_kfold(*problem(80, 2), settings())
    assert torch.get_num_threads() == before


def test_ties_go_to_the_smaller_l2():
    from senteval.tools.fits import Fitted

    fits = [[Fitted(a, np.asarray) for a in row] for row in ([0.5, 0.8, 0.7], [0.7, 0.6, 0.7], [0.6, 0.7, 0.7])]
    assert validation.best_of(REGS, fits) == (1e-3, 70.0)  # means 60, 70, 70


@pytest.mark.parametrize("scheme", ["inner_kfold", "kfold", "split"])
def test_schemes_are_the_same_by_the_plain_path(scheme, monkeypatch):
    x, y = problem(180, 2)
    arguments = {
        "inner_kfold": (),
        "kfold": (np.arange(140), np.arange(140, 180)),
        "split": (np.arange(100), np.arange(100, 140), np.arange(140, 180)),
    }[scheme]
    run = getattr(validation, scheme)
    fast = run(x, y, *arguments, settings())
    monkeypatch.setattr(validation, "can_batch", lambda s: False)
    plain = run(x, y, *arguments, settings())
    assert fast[:2] == plain[:2]


def test_nested_folds_ignore_the_seed_and_simple_folds_do_not():
    y = np.array([0, 1] * 20)
    nested = [
        list(map(tuple, (t for _, t in validation.folds(y, settings(seed=s), validation.OUTER_SEED)))) for s in (1, 2)
    ]
    simple = [list(map(tuple, (t for _, t in validation.folds(y, settings(seed=s), s)))) for s in (1, 2)]
    assert nested[0] == nested[1] and simple[0] != simple[1]


@pytest.mark.parametrize("classes", [2, 4])
def test_agreement_with_scikit_learn(classes):
    """Half a point on 4000 test rows, with the published settings of mode test."""
    x, y = problem(7000, classes, dim=32, noise=0.1)
    train, dev, test = np.arange(2500), np.arange(2500, 3000), np.arange(3000, 7000)
    preset = senteval.classifier_settings("test")["classifier"]
    _, ours = validation.split(x, y, train, dev, test, Settings(nclasses=classes, **preset))
    theirs = 100 * LogisticRegression(C=10, max_iter=2000).fit(x[train], y[train]).score(x[test], y[test])
    assert ours == pytest.approx(theirs, abs=0.5)


def test_hidden_layer_other_optimizers_and_scikit_learn_path():
    x, y = problem(300, 3, noise=0.0)
    parts = (np.arange(200), np.arange(200, 250), np.arange(250, 300))
    linear = validation.split(x, y, *parts, settings(nclasses=3, optim="rmsprop"))[1]
    for changes in (
        {"nhid": 16, "dropout": 0.1, "optim": "adam,lr=0.01", "epoch_size": 5},
        {"optim": "sgd,lr=0.1"},
        {"optim": "adagrad,lr=0.1"},
        {"usepytorch": False},
    ):
        assert validation.split(x, y, *parts, settings(nclasses=3, **changes))[1] > linear - 15


@pytest.mark.parametrize("usepytorch", [True, False])
def test_snli_is_not_regularised(usepytorch):
    """Its one value is a tiny L2 for torch, and a large C, the inverse, for scikit-learn."""
    x, y = problem(300, 3, noise=0.0)
    rows = {"train": np.arange(200), "dev": np.arange(200, 250), "test": np.arange(250, 300)}
    result = SnliTask("SNLI", {}, 3).classify(x, y, rows, settings(nclasses=3, epoch_size=20, usepytorch=usepytorch))
    assert result["acc"] > 60


def test_too_many_folds_are_told():
    with pytest.raises(senteval.SettingsError, match="kfold=7 does not suit 10 rows"):
        validation.inner_kfold(*problem(10, 2), settings(kfold=7))
