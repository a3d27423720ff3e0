"""Every objective on several processes: global negatives give one process's step, local ones the mean of the parts.

In double precision and without dropout, so that a difference is a fault and not rounding.
"""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from cacse_trainer.models import CacseBertModel, DiffcseModel, SentenceEmbeddingModel
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.models.objectives import compute
from tests.distributed.processes import run_processes

ROWS = 8
CASES: dict[str, tuple[int, bool, dict]] = {  # views, labels, settings
    "info_nce": (2, False, {"mlp_only_train": True}),
    "hard_negatives": (3, False, {"hard_negative_weight": 0.7}),
    "several_negatives": (5, False, {"hard_negative_weight": 0.7, "pooling": "mean"}),
    "nt_xent": (2, False, {"objective": "nt_xent", "pooling": "mean"}),
    "batch_norm": (2, False, {"projection": "batch_norm"}),
    "mlm": (2, False, {"mlm_weight": 0.1}),
    "cosent": (2, True, {"objective": "cosent", "pooling": "mean"}),
    "angle": (2, True, {"objective": "angle", "pooling": "mean"}),
    "angle_combined": (2, True, {"objective": "angle_combined", "pooling": "mean", "positive_threshold": 0.5}),
    "angle_triplets": (3, False, {"objective": "angle_combined", "pooling": "mean"}),
    "bellm": (3, False, {"objective": "bellm", "pooling": "mean"}),
    "margin_mse": (4, True, {"objective": "margin_mse", "pooling": "mean"}),
    "diffcse": (2, False, {"rtd_loss_weight": 1.0}),
    "cacse": (2, False, {"cascade_start_layer": 1, "constraint_layers": 1, "cascade_dropout": 0.0}),
}
PER_PROCESS = ("loss", "part.mlm", "part.rtd")  # each process holds its share; their mean is what is logged


def make_model(name: str, folder: str, negatives: str = "global"):
    torch.manual_seed(3)
    settings = CASES[name][2]
    if name == "cacse":
        model = CacseBertModel.from_towers(folder, folder, constraint_dropout=0.0, **settings)
    elif "rtd_loss_weight" in settings:
        model = DiffcseModel.from_pretrained_parts(folder, folder, **settings)
    else:
        model = SentenceEmbeddingModel.from_encoder(folder, **settings)
    model.use(ComputeSettings(negatives=negatives))
    return model.double().train()


def global_batch(name: str) -> dict[str, torch.Tensor]:
    """8 rows; rows 1 and 6, in different parts, hold the same sentence."""
    views, labelled, settings = CASES[name]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 27, (ROWS, views, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :, 6:], mask[4, 0, 4:], mask[5, :, 3:] = 0, 0, 0
    ids = ids * mask
    batch = {"input_ids": ids, "attention_mask": mask}
    if "mlm_weight" in settings or "rtd_loss_weight" in settings:
        masked = (torch.rand(ids.shape, generator=generator) < 0.3) & (mask == 1)
        masked[:, 0, 1] = True
        batch.update(mlm_input_ids=torch.where(masked, 4, ids), mlm_labels=torch.where(masked, ids, -100))
    if labelled:
        shape = (ROWS,) if views == 2 else (ROWS, views - 2)  # a grade a pair, or a margin a negative
        batch["labels"] = torch.rand(shape, generator=generator, dtype=torch.float64)
    if name != "cosent" and name != "angle":
        texts = torch.arange(ROWS)[:, None].expand(-1, views).clone()
        texts[6] = texts[1]
        batch["text_ids"] = texts
    return batch


def step(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Loss, its parts, gradients and running statistics after one step."""
    output = model(**batch)
    output.loss.backward()
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    found = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    found.update({f"buffer.{name}": tensor for name, tensor in plain.named_buffers() if "running" in name})
    found.update({f"part.{name}": value for name, value in output.losses.items()})
    return {**found, "loss": output.loss.detach()}


def work(rank: int, world: int, folder: str, results: str, negatives: str) -> None:
    for name in CASES:
        model = DistributedDataParallel(make_model(name, folder, negatives), broadcast_buffers=False)
        batch = {key: tensor.chunk(world)[rank] for key, tensor in global_batch(name).items()}
        torch.save(step(model, batch), f"{results}/{name}.{rank}")


def results_of(world: int, folder: str, results: str, negatives: str) -> dict[str, list[dict[str, torch.Tensor]]]:
    """By case, what each process found."""
    run_processes(work, world, results, world, folder, results, negatives)
    return {
        name: [torch.load(f"{results}/{name}.{rank}", weights_only=True) for rank in range(world)] for name in CASES
    }


def check(name: str, found: list[dict[str, torch.Tensor]], expected: dict[str, torch.Tensor]) -> None:
    assert all(one.keys() == expected.keys() for one in found), name
    for key, value in expected.items():
        values = [one[key] for one in found]
        if key not in PER_PROCESS:
            assert all(torch.equal(values[0], other) for other in values), f"{name}: {key} differs between processes"
        mean = torch.stack(values).mean(dim=0)
        scale = value.abs().max().clamp(min=1e-6)
        assert (mean - value).abs().max() <= 1e-5 * scale, f"{name}: {key}"


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_global_negatives_are_one_process(world, masked_lm, tmp_path):
    for name, found in results_of(world, masked_lm, str(tmp_path), "global").items():
        check(name, found, step(make_model(name, masked_lm), global_batch(name)))


LOCAL = [name for name in CASES if name not in ("batch_norm", "mlm", "diffcse")]


@pytest.mark.slow
def test_local_negatives_are_the_mean_of_the_parts(masked_lm, tmp_path):
    """Each half as one process's own batch; the gradient is the mean of both."""
    found = results_of(2, masked_lm, str(tmp_path), "local")
    for name in LOCAL:
        halves = [
            step(
                make_model(name, masked_lm), {key: tensor.chunk(2)[half] for key, tensor in global_batch(name).items()}
            )
            for half in range(2)
        ]
        expected = {key: torch.stack([half[key] for half in halves]).mean(dim=0) for key in halves[0]}
        for key, value in expected.items():
            mean = torch.stack([one[key] for one in found[name]]).mean(dim=0)
            assert (mean - value).abs().max() <= 1e-5 * value.abs().max().clamp(min=1e-6), f"{name}: {key}"
    # The batch norm's statistics are the global batch's all the same, on every process.
    first, second = found["batch_norm"]
    model, batch = make_model("batch_norm", masked_lm), global_batch("batch_norm")
    texts = batch.pop("text_ids")
    rows = {key: tensor.flatten(0, 1) for key, tensor in batch.items()}
    vectors = model.projection_head(model._encode_rows(rows).unflatten(0, (ROWS, 2)))
    parts = zip(vectors.chunk(2), texts.chunk(2), strict=True)
    loss = sum(compute(part, model.config, None, own) for part, own in parts) / 2
    loss.backward()
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(first[key], second[key])
            scale = parameter.grad.abs().max().clamp(min=1e-6)
            assert (first[key] - parameter.grad).abs().max() <= 1e-5 * scale, key
    for key, tensor in model.named_buffers():
        if "running" in key:
            assert torch.allclose(first[f"buffer.{key}"], tensor) and torch.equal(
                first[f"buffer.{key}"], second[f"buffer.{key}"]
            )
