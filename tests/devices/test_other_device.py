"""The whole program on a device that is not the CPU: the same numbers as on the CPU, and nothing left behind on it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.devices.other_device import NAME, can_be_built
from tests.devices.roads import roads

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_be_built(), reason="the test device needs g++ and ninja"),
]
BF16_NOISE = 0.02
"""Of a loss of about 1: bfloat16 has 8 bits, and the CPU's own autocast rounds at other places."""
PADDED = {"simcse_buckets"}
"""Trainings of encoders of BERT's kind that are told to pad."""
FLOAT32_NOISE = 1e-4
"""Of losses up to 30: sums in another order, over four steps of a rate of 1e-4."""


def run_roads(device: str, folder: Path, senteval: Path) -> dict[str, dict]:
    """What each road said on a device, by its name."""
    chosen = {"ACCELERATE_TORCH_DEVICE": NAME} if device != "cpu" else {"ACCELERATE_USE_CPU": "true"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "SentEval"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.devices.roads", device, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, **chosen, "PYTHONPATH": path, "SENTEVAL_SAMPLE": str(senteval)},
        cwd=ROOT,
    )
    told = {line["road"]: line for line in map(json.loads, re.findall(r'^{"road".*$', done.stdout, re.M))}
    failed = [name for name in roads(folder, device) if told.get(name, {}).get("code") != 0]
    assert not failed, f"{device}: {', '.join(failed)}\n{done.stderr[-6000:]}"
    return told


def test_every_road(tmp_path, senteval_sample, monkeypatch):
    monkeypatch.setenv("SENTEVAL_SAMPLE", str(senteval_sample))
    for device in ("cpu", NAME):
        (tmp_path / device).mkdir()
    here, there = (run_roads(device, tmp_path / device, senteval_sample) for device in ("cpu", NAME))
    flat = {road for road, found in there.items() if found["flat"]}
    assert flat == {name for name in there if name.startswith(("cacse", "simcse", "diffcse", "distill"))} - PADDED
    assert not any(found["flat"] for found in here.values())
    for road, found in here.items():
        noise = BF16_NOISE if road == "simcse_bf16" else FLOAT32_NOISE
        assert there[road].get("losses") == pytest.approx(found.get("losses"), abs=noise), road
    for mine, other in zip(here["encode"]["vectors"], there["encode"]["vectors"], strict=True):
        assert mine == pytest.approx(other, abs=1e-3)


IN_PLACE = """
import torch
from tests.devices.other_device import NAME, register
register()
found = torch.ones(3, 3, device=NAME)
found.fill_diagonal_(0)
found.t()[2].mul_(5)
found[:, 1].masked_fill_(torch.tensor([True, False, False], device=NAME), 7)
print(found.cpu().tolist())
"""


def test_what_is_written_in_place_stays_in_its_view():
    """A part of a tensor keeps its strides: a loss's mask of equal sentences is such a diagonal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", IN_PLACE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [[0, 7, 5], [1, 0, 5], [1, 1, 0]]
