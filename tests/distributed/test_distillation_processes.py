"""Several processes distil as one does on the same global batch: loss parts and gradients of the trainer's own step."""

import pytest
import torch
import torch.distributed as dist
from datasets import Dataset
from torch.nn.parallel import DistributedDataParallel
from transformers import BertTokenizerFast

from cacse_trainer import DistillationTrainer
from cacse_trainer.encoding.members import load_ensemble, load_members, load_similarities
from cacse_trainer.models import StudentModel
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.training.ranking import Ranking
from tests.distributed.processes import run_processes


def step(folders: list[str], output: str, share: slice, objective: str) -> dict[str, torch.Tensor]:
    """One step's loss parts and gradients on a share of 8 rows, in double precision."""
    a, b, c = folders
    torch.manual_seed(0)
    ranking = Ranking(objective) if objective != "vectors" else None
    if ranking is None:
        teacher, tokenizer = load_ensemble([*load_members(a, "cls"), *load_members(b, "cls")])
    else:
        teacher, tokenizer = load_similarities([load_members(a, "cls"), load_members(b, "cls")], [0.3, 0.7])
    trainer = DistillationTrainer(
        model=StudentModel.from_encoder(c, pooling="cls", mlp_only_train=ranking is not None).double().train(),
        teacher=teacher.double(),
        args=CacseTrainingArguments(output_dir=output, use_cpu=True, bf16=False, per_device_train_batch_size=4),
        train_dataset=Dataset.from_dict({"text": ["a man", "the dog"] * 8}),
        processing_class=BertTokenizerFast.from_pretrained(a),
        teacher_tokenizer=tokenizer,
        contrastive_weight=0.1,
        ranking=ranking,
    )
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 27, (8, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[2, 4:], mask[6, 2:] = 0, 0
    batch = {"input_ids": (ids * mask)[share], "attention_mask": mask[share]}
    model = trainer.model
    wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
    loss = trainer.compute_loss(wrapped, batch)
    loss.backward()
    assert not isinstance(trainer.teacher, DistributedDataParallel)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": loss.detach(), **{f"part.{k}": v for k, v in trainer._part_sums.items()}}


def work(rank: int, world: int, folders: list[str], objective: str, results: str) -> None:
    rows = 8 // world
    torch.save(step(folders, results, slice(rows * rank, rows * rank + rows), objective), f"{results}/{rank}")


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "world"), [("vectors", 2), ("vectors", 4), ("listnet", 2), ("listmle", 2)])
def test_processes_equal_one(objective, world, tiny_towers, tmp_path):
    folders = tiny_towers("bert")
    run_processes(work, world, str(tmp_path), world, folders, objective, str(tmp_path))
    expected = step(folders, str(tmp_path), slice(0, 8), objective)
    first, *others = (torch.load(tmp_path / str(rank), weights_only=True) for rank in range(world))
    assert first.keys() == expected.keys()
    for key, value in expected.items():
        assert all(torch.equal(first[key], other[key]) for other in others), key
        assert (first[key] - value).abs().max() <= 1e-10 * max(value.abs().max().item(), 1e-3), key
