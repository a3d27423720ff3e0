"""Two processes give one process's loss and gradient: STS-CFT's golden ranks, labelled pairs, triplets, LoRA."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from cacse_trainer.compute.distributed import gather_rows
from cacse_trainer.losses import info_nce
from cacse_trainer.models import SentenceEmbeddingModel
from tests.conftest import GOLDEN
from tests.distributed.processes import run_processes

WORLD = 2
CFT = GOLDEN / "cft"
CASES = {
    "cosent": (2, True, {"objective": "cosent"}),
    "angle_labelled": (2, True, {"objective": "angle_combined", "positive_threshold": 3.0, "angle_weight": 1.0}),
    "angle_triplets": (3, False, {"objective": "angle_combined", "cosine_weight": 1.0, "angle_weight": 1.0}),
    "bellm": (3, False, {"objective": "bellm", "ibn_weight": 20.0, "bidirectional_start_layer": 3}),
    "cft": (3, False, {"objective": "info_nce"}),
    "several_negatives": (5, False, {"objective": "info_nce", "hard_negative_weight": 0.7}),
    "matryoshka": (
        3,
        False,
        {"within_view_negatives": True, "matryoshka_dims": [48, 8]},
    ),
}


def make_model(name: str) -> SentenceEmbeddingModel:
    settings = {"pooling": "last_token", "adapter": str(CFT / "adapter"), **CASES[name][2]}
    return SentenceEmbeddingModel.from_encoder(str(CFT / "base"), **settings).double().eval()


def global_batch(views: int, labelled: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 200, (6, views, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :, 6:], mask[4, 0, 4:] = 0, 0
    labels = {"labels": torch.tensor([5.0, 1.0, 3.5, 0.0, 4.0, 2.0])} if labelled else {}
    return {"input_ids": ids, "attention_mask": mask, **labels}


def step(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    output = model(**batch)
    output.loss.backward()
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    gradients = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad}
    return {**gradients, "loss": output.loss.detach()}


def work(rank: int, results: str) -> None:
    golden = load_file(CFT / "infonce.safetensors")
    rows = torch.stack([golden[name].double() for name in ("query", "pos", "neg")], dim=1)  # (8, 3, H)
    mine = rows.chunk(WORLD)[rank].clone().requires_grad_()
    loss = info_nce(*gather_rows(mine).unbind(dim=1), 0.05)
    loss.backward()
    torch.save({"loss": loss.detach(), "grad": mine.grad}, f"{results}/golden.{rank}")
    for name, (views, labelled, _) in CASES.items():
        model = DistributedDataParallel(make_model(name), broadcast_buffers=False)
        batch = {key: tensor.chunk(WORLD)[rank] for key, tensor in global_batch(views, labelled).items()}
        torch.save(step(model, batch), f"{results}/{name}.{rank}")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("results"))
    run_processes(work, WORLD, folder, folder)
    return folder


def test_golden_ranks(results):
    """The release's ranks hold the loss of their own anchors: ours hold the mean, with the same gradients."""
    golden = load_file(CFT / "infonce.safetensors")
    expected = sum(golden[f"world2.rank{rank}.loss.f64"].item() for rank in range(WORLD)) / WORLD
    for rank in range(WORLD):
        found = torch.load(f"{results}/golden.{rank}", weights_only=True)
        assert found["loss"].item() == pytest.approx(expected, rel=1e-10)
        for view, name in enumerate(("query", "pos", "neg")):
            gradient = golden[f"grad.world2.rank{rank}.{name}.f64"]
            assert torch.allclose(found["grad"][:, view], gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(results, name):
    views, labelled, _ = CASES[name]
    expected = step(make_model(name), global_batch(views, labelled))
    assert len(expected) == 17  # 4 layers × q, v × A, B; and the loss
    for rank in range(WORLD):
        found = torch.load(f"{results}/{name}.{rank}", weights_only=True)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert (found[key] - value).abs().max() <= 1e-6 * value.abs().max(), key
