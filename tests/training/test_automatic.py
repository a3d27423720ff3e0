"""What ``fast_paths: auto`` comes to: measured once, in the run's own precision and ways."""

import logging

import pytest
import torch

from cacse_trainer.settings import precision
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.training import automatic
from cacse_trainer.training.automatic import choose, tell_choice


def made(**settings) -> CacseTrainingArguments:
    return CacseTrainingArguments("out", **{"use_cpu": True, "bf16": "false", **settings})


@pytest.mark.parametrize("gain", [0.6, 0.84, 0.86, 3.0])
def test_left_where_they_are_clearly_slower(gain, monkeypatch, caplog):
    monkeypatch.setattr(automatic, "fast_paths_gain", lambda bf16, padded: gain)
    args = made()
    with caplog.at_level(logging.INFO):
        assert choose(args) == args.use_fast_paths == (gain >= automatic.LEAST_GAINED)
        assert not choose(args) and args.gains == {"fast_paths": gain}
        tell_choice(args)
    ways = "taken" if gain >= automatic.LEAST_GAINED else "left"
    assert f"fast_paths auto: {ways} (a narrow layer's step was {gain:.2f} times as fast)" in caplog.text


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({}, [(False, False)]),
        ({"bf16": "true"}, [(True, False)]),
        ({"length_buckets": "1"}, [(False, True)]),
        ({"bf16": "auto"}, [(True, False)]),
        ({"fast_paths": "true"}, []),
        ({"fast_paths": "false"}, []),
        ({"torch_compile": True}, []),
    ],
)
def test_measured_as_the_run_computes(settings, asked, monkeypatch):
    found = []
    monkeypatch.setattr(automatic, "fast_paths_gain", lambda bf16, padded: found.append((bf16, padded)) or 2.0)
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(precision, "measured_gain", lambda: 2.0)
    args = made(**settings)
    choose(args)
    assert found == asked and args.use_fast_paths == (bool(asked) or settings.get("fast_paths") == "true")


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_recorded_is_not_measured(kept, monkeypatch):
    monkeypatch.setattr(automatic, "fast_paths_gain", lambda bf16, padded: pytest.fail("measured"))
    args = made()
    assert choose(args, {"fast_paths": kept, "fast_paths_gain": 1.7}) == kept
    assert args.use_fast_paths == kept and args.gains == {"fast_paths": 1.7} and not args.undecided
    assert choose(args, {"fast_paths": not kept}) and args.gains == {}  # of an earlier version
    given = made(fast_paths=str(not kept).lower())
    choose(given, {"fast_paths": kept})
    assert given.use_fast_paths != kept  # and refused by name


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("bf16", [True, False])
def test_the_measurement_leaves_the_random_state(bf16, padded, monkeypatch):
    monkeypatch.setattr(automatic, "ROWS", 2)
    before = torch.get_rng_state()
    assert automatic.fast_paths_gain.__wrapped__(bf16, padded) > 0
    assert torch.equal(torch.get_rng_state(), before)
