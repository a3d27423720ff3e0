"""The check of a GPU at toy size, on the CPU and the tests' device: what it asserts holds, and a part fails alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.devices.other_device import can_be_built

CHECKOUT = Path(__file__).parents[2]
sys.path.insert(0, str(CHECKOUT / "benchmarks"))

import gpu_check  # noqa: E402
from common_models import OTHER  # noqa: E402

needs_the_test_device = pytest.mark.skipif(not can_be_built(), reason="the test device needs g++ and ninja")


def check(folder: Path, *words: str) -> list[dict]:
    output = folder / "lines.jsonl"
    patient = ["--patience", "20", "--minutes", "30"]  # other tests run beside
    command = [sys.executable, "benchmarks/gpu_check.py", "--output", str(output), *patient, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=False)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert done.returncode == (1 if any("error" in line for line in lines) else 0), done.stderr[-2000:]
    return lines


@pytest.mark.slow
def test_every_part_at_toy_size(tmp_path):
    lines = check(tmp_path)
    assert [line["part"] for line in lines] == list(gpu_check.PARTS)
    assert not [line for line in lines if "error" in line or "left_out" in line]
    check_rates(lines, peak_is_told=True)


def check_rates(lines: list[dict], peak_is_told: bool) -> None:
    """Trainings have a rate and products; what a device does not tell is null."""
    trainings = [line for line in lines if "batch" in line]
    assert trainings
    for line in trainings:
        assert line["sentences_per_second"] > 0 and line["tflop_a_step"] > 0
        assert (line["peak_gb"] is not None) == peak_is_told and line["share_of_bf16_peak"] is None


@pytest.mark.slow
@needs_the_test_device
def test_every_part_on_the_test_device(tmp_path):
    """But the roads: tests/devices compares theirs with the CPU's."""
    parts = [part for part in gpu_check.PARTS if part != "roads"]
    lines = check(tmp_path, "--device", OTHER, "--parts", *parts)
    assert [line["part"] for line in lines] == parts
    assert not [line for line in lines if "error" in line or "left_out" in line]
    check_rates(lines, peak_is_told=False)
    found = {line["part"]: line for line in lines}
    assert found["encode"]["computed_in"] == "bfloat16" and found["encode"]["least_cosine"] > 0.99
    assert all("loss in bfloat16" in found["families"][kind] for kind in ("simcse", "cacse", "tncse", "decoder"))


@pytest.mark.slow
@needs_the_test_device
def test_the_estimate(tmp_path):
    """The products of SimCSE's 36 steps over 64 sentences of 25 tokens, by the rule of six a weight and token."""
    toy = tmp_path / "toy.jsonl"
    toy.write_text("".join(json.dumps({"part": part, "seconds": 2.0}) + "\n" for part in ("golden", "simcse_64")))
    words = ["--estimate", str(toy), "--parts", "golden", "simcse_64", "--minutes"]
    outcomes = []
    for minutes in ("7", "0.1"):
        command = [sys.executable, "benchmarks/gpu_check.py", *words, minutes]
        done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=False)
        outcomes.append((done.returncode, "too long" in done.stdout))
    assert outcomes == [(0, False), (1, True)], done.stderr[-2000:]
    table = done.stdout.partition("part ")[2].partition("\n\n")[0]  # the one by parts
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line.strip()}
    assert rows["golden"][1:4] == ["0", "0", "0"] and rows["simcse_64"][1] == "36"
    assert float(rows["simcse_64"][2]) == pytest.approx(36 * 64 * 2 * 25 * 6 * 85e6 / 1e12, rel=0.15)
    assert 1 < float(rows["simcse_64"][3]) / 36 / 1000 < 2  # operations of 12 layers, forward and backward


def test_a_step_takes_the_longest_of_its_limits():
    import gpu_estimate

    step = gpu_estimate.Step(rows=100, flop=0.3 * gpu_estimate.PEAK, bytes=2e12, launches=1000, parameters=1)
    limits = step.limits(text_rate=1000.0)
    expected = {"products": 1.0, "memory": 2 / 3.35, "launches": 0.005, "text": 0.1}
    assert limits == pytest.approx(expected)


def test_a_part_that_breaks_or_hangs_costs_only_itself(monkeypatch, tmp_path, capsys):
    def breaks(_check):
        raise ValueError("the device is on fire")

    def hangs(_check):
        while True:
            pass

    parts = {"breaks": (breaks, 20), "hangs": (hangs, 1), "works": (lambda _check: {"found": 1}, 20)}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--output", str(tmp_path / "lines.jsonl")])
    assert gpu_check.main() == 1
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert [line.get("error") for line in lines] == ["ValueError: the device is on fire", "not done after 1 s", None]
    assert lines[2]["found"] == 1 and "failed: breaks, hangs" in capsys.readouterr().out


def test_a_wrong_gradient_is_found(tmp_path, monkeypatch):
    """The bound follows from the CPU's own noise: a hundredth off is far outside of it."""
    found = gpu_check.Check("cpu", "toy", tmp_path)
    model = found.model("simcse", small=True, dropout=0.0)
    batch = gpu_check.first_batch(found.trainer("simcse", 8, 1))
    right = gpu_check.loss_and_gradients
    assert all(entry["off"] <= entry["bound"] for entry in gpu_check.compare(model, batch, "cpu").values())

    def wrong(model, batch, device, dtype):
        computed = right(model, batch, "cpu", dtype)
        if device == "there":
            computed["gradients"] = {name: value * 1.01 for name, value in computed["gradients"].items()}
        return computed

    monkeypatch.setattr(gpu_check, "loss_and_gradients", wrong)
    with pytest.raises(AssertionError, match="gradients in float32"):
        gpu_check.compare(model, batch, "there")


def test_no_road_is_begun_that_could_not_end(tmp_path, monkeypatch):
    from tests.devices import roads

    begun = []

    def run_all(device, folder):
        for name in ("train", "distill", "encode"):
            begun.append(name)
            yield {"road": name, "code": 0}

    monkeypatch.setattr(roads, "run_all", run_all)
    monkeypatch.setattr(roads, "roads", lambda folder, device: {name: [] for name in ("train", "distill", "encode")})
    for seconds, late in ((1000.0, []), (gpu_check.LONGEST_ROAD, ["distill", "encode"])):
        begun.clear()
        found = gpu_check.roads(gpu_check.Check(OTHER, "toy", tmp_path, seconds))
        assert found == {"roads": 3 - len(late), "no_time_for": late} and len(begun) == 3 - len(late)
