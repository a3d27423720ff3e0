"""Two and four gloo processes give CACSE's and TNCSE's one-process loss and gradient; a launched run exports once."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from cacse_trainer import CacseBertModel, TncseModel
from tests.conftest import ROOT
from tests.distributed.processes import run_processes
from tests.models.test_cacse import batch

ROWS = 8


def build(folders, method="cacse") -> CacseBertModel | TncseModel:
    torch.manual_seed(0)
    if method == "tncse":
        return TncseModel.from_towers(*folders[:2]).double().train()
    model = CacseBertModel.from_towers(
        *folders, cascade_start_layer=2, constraint_layers=2, cascade_dropout=0.0, constraint_dropout=0.0
    )
    return model.double().train()


def step(model) -> dict[str, torch.Tensor]:
    """Loss, its parts and every gradient of one step."""
    output = model["run"](**model["batch"])
    output.loss.backward()
    gradients = {name: p.grad for name, p in model["plain"].named_parameters() if p.grad is not None}
    return {**gradients, "loss": output.loss.detach(), **{f"part.{k}": v for k, v in output.losses.items()}}


def work(rank: int, world: int, folders: list[str], method: str, results: str) -> None:
    plain = build(folders, method)
    part = {name: tensor.chunk(world)[rank] for name, tensor in batch(ROWS).items()}
    found = step({"plain": plain, "run": DistributedDataParallel(plain, broadcast_buffers=False), "batch": part})
    torch.save(found, f"{results}/{rank}")


@pytest.mark.parametrize(
    ("method", "world"), [("cacse", 2), pytest.param("cacse", 4, marks=pytest.mark.slow), ("tncse", 2)]
)
def test_processes_equal_one(method, world, tiny_towers, tmp_path):
    folders = tiny_towers("bert")
    run_processes(work, world, str(tmp_path), world, folders, method, str(tmp_path))
    plain = build(folders, method)
    expected = step({"plain": plain, "run": plain, "batch": batch(ROWS)})
    for rank in range(world):
        found = torch.load(tmp_path / str(rank))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert (found[name] - value).abs().max() <= 1e-10 * max(1.0, value.abs().max().item()), name


@pytest.mark.slow
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_a_launched_run(tmp_path, tiny_towers, text_file, dev_file, streaming):
    a, b, constraint = tiny_towers("bert")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("-m", "cacse_trainer.cli.train", "--tower_a", a, "--tower_b", b, "--constraint", constraint),
        *("--cascade_start_layer", "2", "--constraint_layers", "1", "--train_file", str(text_file)),
        *("--dev_file", f"stsb={dev_file}", "--max_steps", "4", "--per_device_train_batch_size", "8"),
        *("--eval_steps", "2", "--bf16", "false"),
        *("--streaming", streaming, "--use_cpu", "true", "--report_to", "none", "--output_dir", str(tmp_path / "run")),
    ]
    path = os.pathsep.join([str(ROOT), str(ROOT / "SentEval"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "run" / "training_report.json").read_text())
    assert report["run"]["processes"] == 2 and report["run"]["global_batch"] == 16
    assert report["run"]["effective_negatives"] == 30
    assert report["exported"]["ensemble"]["stsb"] == pytest.approx(report["best"], abs=1e-6)
    assert done.stdout.count("report: ") == 1  # said once, by the first process
