"""Checkpoints of SimCSE and DiffCSE, as a training run or a release left them, become the same plain encoder."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from cacse_trainer.importers.simcse import load_simcse_checkpoint
from tests.conftest import tiny_config
from tests.tolerances import assert_near

IDS = torch.tensor([[2, 6, 7, 3]])


@pytest.fixture(params=["bert", "roberta"])
def made(request, tmp_path):
    """A plain encoder of the released form, and ``write(tensors)`` → a folder with its config and these tensors."""
    torch.manual_seed(0)
    encoder = AutoModel.from_config(tiny_config(request.param, layers=2)).eval()

    def write(tensors: dict[str, torch.Tensor]) -> str:
        encoder.config.save_pretrained(tmp_path)
        save_file(
            {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors"
        )
        return str(tmp_path)

    return request.param, encoder, write


def training_state(kind: str, encoder, extra: bool) -> dict[str, torch.Tensor]:
    """The keys of a training checkpoint; with ``extra`` those of the auxiliary loss, and an old buffer."""
    state = {
        f"{kind}.{name}": tensor for name, tensor in encoder.state_dict().items() if not name.startswith("pooler.")
    }
    state.update({f"mlp.dense.{name}": tensor for name, tensor in encoder.pooler.dense.state_dict().items()})
    if extra:
        state[f"{kind}.embeddings.position_ids"] = torch.arange(64)[None]
        state["lm_head.bias"] = state["lm_head.decoder.bias"] = torch.zeros(27)
        state["lm_head.decoder.weight"] = torch.zeros(27, 32)
    return state


@pytest.mark.parametrize("extra", [False, True])
def test_supervised_training_checkpoint(made, extra):
    kind, encoder, write = made
    model = load_simcse_checkpoint(write(training_state(kind, encoder, extra)), use_head=True)
    expected = encoder(IDS)
    assert_near(model.embed(IDS), expected.pooler_output)
    assert_near(model.encoder(IDS).pooler_output, expected.pooler_output)
    assert (model.config.pooling, model.config.projects_at_inference) == ("cls", True)


def test_unsupervised_training_checkpoint(made):
    kind, encoder, write = made
    state = {f"module.{name}": tensor for name, tensor in training_state(kind, encoder, True).items()}
    model = load_simcse_checkpoint(write(state), use_head=False)
    assert_near(model.embed(IDS), encoder(IDS).last_hidden_state[:, 0])
    assert model.config.pooling == "cls_before_pooler"


def test_released_model(made):
    _, encoder, write = made
    folder = write(encoder.state_dict())
    expected = encoder(IDS)
    assert_near(load_simcse_checkpoint(folder, use_head=True).embed(IDS), expected.pooler_output)
    raw = load_simcse_checkpoint(folder, use_head=False)
    assert_near(raw.embed(IDS), expected.last_hidden_state[:, 0])


@pytest.mark.parametrize("discriminator", ["discriminator", "aux_bert"])
def test_diffcse_checkpoint(made, tmp_path, discriminator):
    kind, encoder, write = made
    plain = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("pooler.")}
    state = {f"{kind}.{name}": tensor for name, tensor in plain.items()}
    state.update({f"{discriminator}.{name}": torch.zeros_like(tensor) for name, tensor in plain.items()})
    state.update({"electra_head.weight": torch.zeros(2, 32), "generator.anything": torch.zeros(1)})
    for layer, shape in (("0.weight", (64, 32)), ("1.weight", (64,)), ("1.bias", (64,)), ("3.weight", (32, 64))):
        state[f"mlp.net.{layer}"] = torch.zeros(shape)
    state["mlp.net.4.num_batches_tracked"] = torch.zeros(1)
    model = load_simcse_checkpoint(write(state), use_head=False)
    assert_near(model.embed(IDS), encoder(IDS).last_hidden_state[:, 0])
    model.encoder.save_pretrained(tmp_path / "plain")
    reloaded = AutoModel.from_pretrained(tmp_path / "plain", add_pooling_layer=False)
    assert torch.equal(reloaded(IDS).last_hidden_state, model.encoder(IDS).last_hidden_state)


def test_what_does_not_fit(made):
    kind, encoder, write = made
    state = training_state(kind, encoder, False)
    with pytest.raises(ValueError, match=r"left over: \['c_head.weight'\]"):
        load_simcse_checkpoint(write({**state, "c_head.weight": torch.zeros(1)}), use_head=True)
    del state[f"{kind}.encoder.layer.1.output.dense.weight"]
    with pytest.raises(ValueError, match=r"missing: \['encoder.encoder.layer.1.output.dense.weight'\]"):
        load_simcse_checkpoint(write(state), use_head=True)
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("mlp.")}
    with pytest.raises(ValueError, match="holds no head"):
        load_simcse_checkpoint(write(headless), use_head=True)
