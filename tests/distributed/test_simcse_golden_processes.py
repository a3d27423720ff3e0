"""The SimCSE release's own two-process run against ours, on two gloo processes under DDP.

The release gathers the other process's vectors without a gradient and puts its own in their place: each process's
gradient then lacks the paths through the other's rows, and DDP's mean over W processes is 1/W of the gradient of the
global batch. Here the gathered rows carry their gradient: ours is W times theirs, which is one process's.
"""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from cacse_trainer.importers.simcse import rename_simcse_keys
from tests.conftest import GOLDEN
from tests.distributed.processes import run_processes
from tests.models.test_simcse_golden import ZERO_GRADIENTS, Case, simcse
from tests.tolerances import GRADIENT, assert_near, noise

WORLD = 2


def work(rank: int, results: str) -> None:
    case = Case("simcse", "unsupervised", torch.float32)
    plain = simcse(case, mlp_only_train=True)
    model = DistributedDataParallel(plain, broadcast_buffers=False)
    output = model(**{name: tensor.chunk(WORLD)[rank] for name, tensor in case.inputs.items()})
    output.loss.backward()
    gradients = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    torch.save({"loss": output.loss.detach(), **gradients}, f"{results}/{rank}")


@pytest.mark.slow
def test_reference_on_two_processes(tmp_path):
    run_processes(work, WORLD, str(tmp_path), str(tmp_path))
    reference = load_file(GOLDEN / "simcse" / "two_processes.safetensors")
    checked = 0
    for rank in range(WORLD):
        ours = torch.load(tmp_path / str(rank), weights_only=True)
        assert ours["loss"].item() == pytest.approx(reference[f"loss.rank{rank}"].item(), rel=noise(1.0))
        for key, theirs in reference.items():
            if key.startswith("grad.") and not key.endswith(ZERO_GRADIENTS):
                (name,) = rename_simcse_keys({key.removeprefix("grad."): theirs})[0]
                assert_near(ours[name], WORLD * theirs, times=GRADIENT)
                checked += 1
    assert checked >= 2 * 7
