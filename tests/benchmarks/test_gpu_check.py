"""The check of a GPU, at toy size on the CPU: what it asserts holds there, and one part's failure costs only itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
sys.path.insert(0, str(CHECKOUT / "benchmarks"))

import gpu_check  # noqa: E402


def check(folder: Path, *words: str) -> list[dict]:
    output = folder / "lines.jsonl"
    command = [sys.executable, "benchmarks/gpu_check.py", "--output", str(output), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=False)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert done.returncode == (1 if any("error" in line for line in lines) else 0), done.stderr[-2000:]
    return lines


@pytest.mark.slow
def test_every_part_at_toy_size(tmp_path):
    lines = check(tmp_path)
    assert [line["part"] for line in lines] == list(gpu_check.PARTS)
    assert not [line for line in lines if "error" in line or "left_out" in line]
    assert all(line["sentences_per_second"] > 0 and line["tflop_a_step"] > 0 for line in lines if "batch" in line)


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
