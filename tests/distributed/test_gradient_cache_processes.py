"""Two processes with gradient caching and accumulation give one process's plain gradient on the same batches."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from cacse_trainer.models.computing import ComputeSettings
from tests.distributed.processes import run_processes
from tests.distributed.test_cacse_processes import build
from tests.distributed.test_simcse_two_processes import CASES, global_batch, make_model
from tests.models.test_cacse import batch as cacse_batch

WORLD = 2
NAMES = ["cacse", "hard_negatives", "batch_norm", "mlm", "diffcse"]


def case(name: str, towers: list[str], folder: str):
    """A model, and the two batches of an optimizer step."""
    if name == "cacse":
        return build(towers), [cacse_batch(8, seed=seed) for seed in (0, 1)]
    views = CASES[name][0]
    first = global_batch(views)
    return make_model(name, folder), [first, {key: tensor.flip(0) for key, tensor in first.items()}]


def gradients(plain) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}


def work(rank: int, towers: list[str], folder: str, results: str) -> None:
    for name in NAMES:
        plain, batches = case(name, towers, folder)
        plain.use(ComputeSettings(2, 2))
        model = DistributedDataParallel(plain, broadcast_buffers=False)
        parts = [{key: tensor.chunk(WORLD)[rank] for key, tensor in batch.items()} for batch in batches]
        with model.no_sync():
            model(**parts[0]).loss.backward()
        model(**parts[1]).loss.backward()
        torch.save(gradients(plain), f"{results}/{name}.{rank}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_towers, masked_lm) -> tuple[list[str], str, str]:
    """The towers, the masked language model's folder, and that of both processes' results."""
    results = str(tmp_path_factory.mktemp("results"))
    towers = tiny_towers("bert")
    run_processes(work, WORLD, results, towers, masked_lm, results)
    return towers, masked_lm, results


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(runs, name):
    towers, folder, results = runs
    model, batches = case(name, towers, folder)
    for batch in batches:
        model(**batch).loss.backward()
    expected = gradients(model)
    for rank in range(WORLD):
        found = torch.load(f"{results}/{name}.{rank}", weights_only=True)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert (found[key] - value).abs().max() <= 1e-9 * max(1.0, value.abs().max().item()), key
