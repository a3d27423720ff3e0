"""Two processes give one process's loss and gradient on the same global batch: SimCSE, hard negatives, MLM, DiffCSE.

In double precision, where even the gradients that are zero in exact arithmetic (key biases) can be compared.
"""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from cacse_trainer.models import DiffcseModel, SentenceEmbeddingModel
from tests.distributed.processes import run_processes

WORLD = 2
CASES = {
    "unsupervised": (2, {"mlp_only_train": True}),
    "hard_negatives": (3, {"hard_negative_weight": 0.7}),
    "nt_xent": (2, {"objective": "nt_xent", "pooling": "mean"}),
    "batch_norm": (2, {"projection": "batch_norm"}),
    "mlm": (2, {"mlm_weight": 0.1}),
    "diffcse": (2, {"rtd_loss_weight": 1.0}),
    "diffcse_tokens": (3, {"rtd_loss_weight": 1.0, "rtd_positions": "tokens", "projection": "tanh"}),
}


def make_model(name: str, folder: str):
    torch.manual_seed(3)
    settings = CASES[name][1]
    if "rtd_loss_weight" in settings:
        return DiffcseModel.from_pretrained_parts(folder, folder, **settings).double().train()
    return SentenceEmbeddingModel.from_encoder(folder, **settings).double().train()


def global_batch(views: int) -> dict[str, torch.Tensor]:
    """(6, views, 9) inputs; the masked tokens are unevenly spread over the two halves."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 27, (6, views, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :, 6:], mask[4, 0, 4:], mask[5, :, 3:] = 0, 0, 0
    labels = torch.where((torch.rand(ids.shape, generator=generator) < 0.3) & (mask == 1), ids, -100)
    labels[0, 0], labels[3:, 0, 2:] = ids[0, 0], -100
    ids = ids * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mlm_input_ids": torch.where(labels == -100, ids, 4),
        "mlm_labels": labels,
    }


def step(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Loss, gradients and running statistics after one step."""
    output = model(**batch)
    output.loss.backward()
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    found = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    found.update({f"buffer.{name}": tensor for name, tensor in plain.named_buffers() if "running" in name})
    found.update({f"part.{name}": value for name, value in output.losses.items()})
    return {**found, "loss": output.loss.detach()}


def work(rank: int, folder: str, results: str) -> None:
    for name, (views, _) in CASES.items():
        model = DistributedDataParallel(make_model(name, folder), broadcast_buffers=False)
        batch = {key: tensor.chunk(WORLD)[rank] for key, tensor in global_batch(views).items()}
        torch.save(step(model, batch), f"{results}/{name}.{rank}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, masked_lm) -> tuple[str, str]:
    """The masked language model's folder, and that of both processes' results."""
    results = str(tmp_path_factory.mktemp("results"))
    run_processes(work, WORLD, results, masked_lm, results)
    return masked_lm, results


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(runs, name):
    folder, results = runs
    expected = step(make_model(name, folder), global_batch(CASES[name][0]))
    first, second = (torch.load(f"{results}/{name}.{rank}", weights_only=True) for rank in range(WORLD))
    assert first.keys() == second.keys() == expected.keys()
    for key, value in expected.items():
        if key in ("loss", "part.mlm", "part.rtd"):  # each process holds its share; their mean is what is logged
            found = (first[key] + second[key]) / 2
        else:
            assert torch.equal(first[key], second[key]), key
            found = first[key]
        scale = value.abs().max().clamp(min=1e-6)
        assert (found - value).abs().max() <= 1e-5 * scale, key
