"""A guide on two processes: what is left out, the loss and the gradient are those of one process with all rows."""

import torch
from torch.nn.parallel import DistributedDataParallel

from cacse_trainer.encoding.loading import load_encoder
from cacse_trainer.models import SentenceEmbeddingModel
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.models.tokenizer_bundle import load_tokenizer_of
from cacse_trainer.training.guide import GUIDE, Guide, GuidedCollator
from tests.conftest import WORDS
from tests.distributed.processes import run_processes

WORLD = 2


def global_rows() -> list[dict[str, str]]:
    """8 rows of an anchor, a positive and two negatives."""
    picked = torch.randint(len(WORDS), (8, 4, 5), generator=torch.Generator().manual_seed(0)).tolist()
    names = ("anchor", "positive", "negative_1", "negative_2")
    return [{n: " ".join(WORDS[i] for i in ids) for n, ids in zip(names, row, strict=True)} for row in picked]


def step(folder: str, rows: list[dict[str, str]], mini_batch_size: int | None = None) -> dict[str, torch.Tensor]:
    guide = Guide(load_encoder(folder, pooling="mean", device="cpu"), margin=0.01)
    torch.manual_seed(3)
    settings = {"pooling": "mean", "within_view_negatives": True, "contrastive_temperature": 0.2}
    model = SentenceEmbeddingModel.from_encoder(folder, **settings).double().train()
    model.use(ComputeSettings(mini_batch_size=mini_batch_size))
    collator = GuidedCollator(load_tokenizer_of(folder, model.config.encoder_config), 16, guide.reader)
    batch = collator(rows)
    left_out = guide.left_out(batch, model.compute, within_views=True)
    inputs = {name: ids for name, ids in batch.items() if not name.startswith(GUIDE) and name != "text_ids"}
    wrapped = DistributedDataParallel(model) if torch.distributed.is_initialized() else model
    output = wrapped(**inputs, left_out=left_out)
    output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**gradients, "loss": output.loss.detach(), "left_out": left_out}


def work(rank: int, folder: str, results: str) -> None:
    torch.save(step(folder, global_rows()[4 * rank : 4 * rank + 4], mini_batch_size=3), f"{results}/{rank}")


def test_two_processes_equal_one(masked_lm, tmp_path):
    expected = step(masked_lm, global_rows())
    assert expected["left_out"].shape == (8, 40) and 8 < expected["left_out"].sum() < 200
    run_processes(work, WORLD, str(tmp_path), masked_lm, str(tmp_path))
    for rank in range(WORLD):
        found = torch.load(tmp_path / str(rank), weights_only=True)
        assert found.keys() == expected.keys()
        assert torch.equal(found.pop("left_out"), expected["left_out"])
        for name, value in found.items():
            assert (value - expected[name]).abs().max() <= 1e-9 * expected[name].abs().max().clamp(min=1e-3), name
