"""The whole program on a device that is not the CPU: the same numbers as on the CPU, and nothing left behind on it."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.devices.other_device import NAME, can_be_built
from tests.devices.roads import roads

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_be_built(), reason="the test device needs g++ and ninja"),
]
NAMES = (
    *("cacse", "cacse_roberta", "simcse", "simcse_cached", "simcse_buckets", "simcse_mlm", "simcse_bf16"),
    *("simcse_mean", "diffcse", "decoder", "distill", "resume", "export", "encode", "search", "evaluate"),
)
BF16_NOISE = 0.02
"""Of a loss of about 2: bfloat16 has 8 bits, and the CPU's own autocast rounds at other places."""


@pytest.fixture(scope="module")
def told(tmp_path_factory, senteval_sample) -> dict[str, dict[str, dict]]:
    """What each road said, by device."""
    found = {}
    for device in ("cpu", NAME):
        folder = tmp_path_factory.mktemp(device)
        chosen = {"ACCELERATE_TORCH_DEVICE": NAME} if device != "cpu" else {"ACCELERATE_USE_CPU": "true"}
        path = os.pathsep.join([str(ROOT), str(ROOT / "SentEval"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, **chosen, "PYTHONPATH": path, "SENTEVAL_SAMPLE": str(senteval_sample)}
        done = subprocess.run(
            [sys.executable, "-m", "tests.devices.roads", device, str(folder)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"road"')]
        found[device] = {line["road"]: line for line in lines}
        found[f"{device} errors"] = {"text": done.stderr[-3000:]}
    return found


def test_names(tmp_path, monkeypatch):
    """Each road below is one that is run."""
    monkeypatch.setenv("SENTEVAL_SAMPLE", "")
    assert list(roads(tmp_path, "cpu")) == list(NAMES)


@pytest.mark.parametrize("road", NAMES)
def test_road(told, road):
    here, there = (told[device].get(road) for device in ("cpu", NAME))
    assert here is not None and here["code"] == 0, told["cpu errors"]["text"]
    assert there is not None and there["code"] == 0, told[f"{NAME} errors"]["text"]
    noise = BF16_NOISE if road == "simcse_bf16" else 1e-4  # float32 sums in another order, over a few steps of 1e-3
    assert there.get("losses") == pytest.approx(here.get("losses"), abs=noise)
    if road == "encode":
        for mine, other in zip(here["vectors"], there["vectors"], strict=True):
            assert mine == pytest.approx(other, abs=1e-3)
