"""STS-CFT: InfoNCE with hard negatives, and a whole step of a LLaMA with its LoRA adapter, against the release."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from cacse_trainer.losses import info_nce
from cacse_trainer.models import SentenceEmbeddingModel
from cacse_trainer.models.computing import ComputeSettings
from tests.conftest import GOLDEN
from tests.tolerances import GRADIENT, assert_near, noise

CFT = GOLDEN / "cft"
VIEWS = ("sent0", "sent1", "hard_neg")


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize(
    ("dtype", "suffix", "tolerance"), [(torch.float32, "", noise(1.0)), (torch.float64, ".f64", 1e-10)]
)
def test_info_nce(temperature, dtype, suffix, tolerance):
    golden = load_file(CFT / "infonce.safetensors")
    rows = {name: golden[name].to(dtype).requires_grad_() for name in ("query", "pos", "neg")}
    loss = info_nce(rows["query"], rows["pos"], rows["neg"], temperature)
    loss.backward()
    key = f"tau{temperature}"
    assert abs(loss.item() - golden[f"{key}.loss{suffix}"].item()) <= tolerance * loss.item()
    for name, tensor in rows.items():
        expected = golden[f"grad.{key}.{name}{suffix}"]
        assert (tensor.grad - expected).abs().max() <= GRADIENT * tolerance * expected.abs().max()


def batch(golden, side: str) -> dict[str, torch.Tensor]:
    """(4, 3, 12) inputs."""
    return {
        name: torch.stack([golden[f"input.{side}.{view}_{name}"] for view in VIEWS], dim=1)
        for name in ("input_ids", "attention_mask")
    }


@pytest.fixture(scope="module")
def model() -> SentenceEmbeddingModel:
    return SentenceEmbeddingModel.from_encoder(
        str(CFT / "base"), pooling="last_token", adapter=str(CFT / "adapter"), contrastive_temperature=0.05
    ).eval()


def test_end_to_end(model):
    """With left padding as the release; under right padding it reads a padding token, ours the last real one."""
    golden = load_file(CFT / "end_to_end.safetensors")
    for side in ("left", "right"):
        model.zero_grad()
        output = model(**batch(golden, side))
        output.loss.backward()
        assert output.loss.item() == pytest.approx(golden["left.loss"].item(), rel=noise(1.0))
        for view, name in enumerate(VIEWS):
            for key in (f"left.emb.{name}", f"unpadded_inference.emb.{name}"):
                assert_near(output.embeddings[:, view], golden[key])
        compared = 0
        for name, parameter in model.encoder.named_parameters():
            expected = golden.get(f"grad.left.base_model.model.model.{name}")
            assert parameter.requires_grad == (expected is not None), name
            if expected is not None:
                assert_near(parameter.grad, expected, times=GRADIENT)
                compared += 1
        assert compared == 16
    assert golden["right.loss"].item() != pytest.approx(golden["left.loss"].item(), rel=0.1)


def test_gradient_checkpointing_and_caching_change_nothing(model):
    golden, model = load_file(CFT / "end_to_end.safetensors"), copy.deepcopy(model).double()
    gradients = []
    for mini_batch_size, checkpointing in ((None, False), (None, True), (5, False), (5, True)):
        model.train()
        model.zero_grad()
        model.use(ComputeSettings(mini_batch_size=mini_batch_size))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch(golden, "left")).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        model.gradient_checkpointing_disable()
    for others in gradients[1:]:
        for one, other in zip(gradients[0], others, strict=True):
            assert torch.allclose(one, other, atol=1e-10 * one.abs().max())
