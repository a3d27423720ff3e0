"""SimCSE and DiffCSE against the values of their reference implementations, in float32 and in float64."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from cacse_trainer.compute.distributed import world_size
from cacse_trainer.data import mask_tokens
from cacse_trainer.importers.simcse import rename_simcse_keys
from cacse_trainer.models import DiffcseConfig, DiffcseModel, SentenceEmbeddingConfig, SentenceEmbeddingModel
from cacse_trainer.models.computing import ComputeSettings
from tests.conftest import GOLDEN
from tests.tolerances import GRADIENT, assert_near, noise

PRECISIONS = (torch.float32, torch.float64)
# Zero in exact arithmetic: a constant added to every key changes no attention, one added to every row no batch norm.
ZERO_GRADIENTS = ("attention.self.key.bias",)
ZERO_UNDER_BATCH_NORM = (*ZERO_GRADIENTS, "bert.encoder.layer.3.output.LayerNorm.bias")


class Case:
    """The tensors of one golden case: inputs, and expected values in one precision."""

    def __init__(self, folder: str, name: str, dtype: torch.dtype):
        self.tensors = load_file(GOLDEN / folder / f"{name}.safetensors")
        self.state = load_file(GOLDEN / folder / "state.safetensors")
        self.state.update({key[6:]: tensor for key, tensor in self.tensors.items() if key.startswith("state.")})
        self.dtype = dtype
        self.tolerance = noise(1.0) if dtype == torch.float32 else 1e-10

    @property
    def inputs(self):
        return {key[6:]: tensor for key, tensor in self.tensors.items() if key.startswith("input.")}

    def expected(self, name: str) -> torch.Tensor:
        return self.tensors[f"float64.{name}" if self.dtype == torch.float64 else name]

    def check(self, name: str, found: torch.Tensor) -> None:
        expected = self.expected(name)
        error = (found.detach().reshape(expected.shape) - expected).abs().max() / expected.abs().max()
        assert error <= self.tolerance, f"{name}: {error:.1e}"

    def check_gradients(self, model, left_out=ZERO_GRADIENTS) -> None:
        prefix = "float64.grad." if self.dtype == torch.float64 else "grad."
        parameters = dict(model.named_parameters())
        checked = 0
        for key, expected in self.tensors.items():
            reference = key.removeprefix(prefix)
            if not key.startswith(prefix) or reference.endswith(left_out):
                continue
            (ours,) = rename_simcse_keys({reference: expected})[0]
            error = (parameters[ours].grad - expected).abs().max() / expected.abs().max()
            assert error <= GRADIENT * self.tolerance, f"{ours}: {error:.1e}"
            checked += 1
        assert checked > 5


def simcse(case: Case, **settings) -> SentenceEmbeddingModel:
    encoder_config = AutoConfig.from_pretrained(GOLDEN / "simcse" / "bert.json")
    encoder = AutoModel.from_config(encoder_config, add_pooling_layer=False)
    model = SentenceEmbeddingModel(SentenceEmbeddingConfig(encoder_config, **settings), encoder)
    renamed, report = rename_simcse_keys(case.state)
    assert not report.left_over
    assert not model.load_state_dict(renamed, strict=False).missing_keys
    return model.to(case.dtype).train()


def diffcse(case: Case, **settings):
    encoder_config = AutoConfig.from_pretrained(GOLDEN / "diffcse" / "bert.json")
    generator_config = AutoConfig.from_pretrained(GOLDEN / "diffcse" / "generator.json")
    # The discriminator starts from the encoder's weights, and the file holds them once.
    encoder = {key: tensor for key, tensor in case.state.items() if key.startswith("bert.")}
    discriminator = {key.replace("bert.", "discriminator.", 1): tensor.clone() for key, tensor in encoder.items()}
    other = "mlp.net." if settings.get("projection") == "tanh" else "mlp.dense."
    state = {key: tensor for key, tensor in case.state.items() if not key.startswith(other)}
    renamed, report = rename_simcse_keys({**state, **discriminator})
    assert not report.left_over
    renamed = {name: tensor for name, tensor in renamed.items() if not name.startswith("lm_head.")}  # unused there
    encoders = [AutoModel.from_config(encoder_config, add_pooling_layer=False) for _ in range(2)]
    config = DiffcseConfig(encoder_config, generator_config, reference_padding=True, **settings)
    model = DiffcseModel(config, *encoders)
    loading = model.load_state_dict(renamed, strict=False)
    tied = {f"generator.{name}" for name in model.generator.all_tied_weights_keys}
    assert set(loading.missing_keys) <= tied and not loading.unexpected_keys
    return model.to(case.dtype).train()


@pytest.mark.parametrize("buckets", [1, 3])
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("unsupervised", {"mlp_only_train": True}),
        # The reference adds a float32 tensor of the weight, in double too.
        ("supervised", {"hard_negative_weight": float(np.float32(0.7))}),
        ("mlm", {"mlm_weight": 0.1}),
    ],
)
def test_simcse(name, settings, dtype, buckets):
    case = Case("simcse", name, dtype)
    model = simcse(case, **settings)
    model.use(ComputeSettings(buckets))
    output = model(**case.inputs)
    case.check("loss", output.loss)
    case.check("loss_contrastive", output.losses["contrastive"])
    case.check("z", output.embeddings)
    if "mlm" in output.losses:
        case.check("loss_mlm", output.losses["mlm"])
    output.loss.backward()
    case.check_gradients(model)


@pytest.mark.parametrize("mlp_only_train", [False, True])
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("pooling", ["cls", "cls_before_pooler", "avg", "avg_top2", "avg_first_last"])
def test_simcse_embedding(pooling, mlp_only_train, dtype):
    case = Case("simcse", "poolings", dtype)
    model = simcse(case, pooling=pooling, mlp_only_train=mlp_only_train).eval()
    output = model(**case.inputs)
    case.check(f"emb.{pooling}.mlp_only_train={int(mlp_only_train)}", output.sentence_embedding)
    case.check("last_hidden_state", output.last_hidden_state)


def test_reference_gradient_on_two_processes_is_half():
    """The release lets only the own rows' gradient pass, so DDP's average is half of ours; its loss is the same."""
    case = Case("simcse", "unsupervised", torch.float32)
    reference = load_file(GOLDEN / "simcse" / "two_processes.safetensors")
    model = simcse(case, mlp_only_train=True)
    output = model(**case.inputs)
    output.loss.backward()
    assert world_size() == 1
    assert output.loss.item() == pytest.approx(reference["loss.rank0"].item(), rel=noise(1.0))
    ours, theirs = model.projection_head.dense.weight.grad, reference["grad.mlp.dense.weight"]
    assert_near(ours / 2, theirs, times=GRADIENT)


def test_masking_draws_as_the_reference():
    """The masked copies of the case come from torch's generator seeded with 77; 3 is the mask token there."""
    case = Case("simcse", "mlm", torch.float32)
    ids = case.inputs["input_ids"].flatten(0, 1)
    masked, labels = case.inputs["mlm_input_ids"].flatten(0, 1), case.inputs["mlm_labels"].flatten(0, 1)
    special = torch.isin(ids, torch.tensor([0, 101, 102]))
    mask_id = int(masked[(labels != -100) & (masked != ids)].mode().values)
    found = mask_tokens(ids, special, mask_id, 200, 0.15, torch.Generator().manual_seed(77))
    assert torch.equal(found[1], labels)
    assert torch.equal(found[0] == mask_id, masked == mask_id)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("name", "weight"), [("batch_norm", 0.005), ("tanh", 1.0)])
def test_diffcse(name, weight, dtype):
    case = Case("diffcse", name, dtype)
    model = diffcse(case, projection=name, rtd_loss_weight=weight)
    output = model(**case.inputs)
    case.check("loss", output.loss)
    case.check("loss_contrastive", output.losses["contrastive"])
    case.check("loss_rtd", output.losses["rtd"])
    case.check("z", output.embeddings)
    _, on_replaced, on_kept = case.tensors["metrics_electra_acc_rep_fix"].tolist()
    assert output.losses["rtd_accuracy_replaced"].item() == pytest.approx(on_replaced, abs=1e-6)
    assert output.losses["rtd_accuracy_kept"].item() == pytest.approx(on_kept, abs=1e-6)
    output.loss.backward()
    if f"{'float64.' if dtype == torch.float64 else ''}grad.electra_head.weight" in case.tensors:
        case.check_gradients(model, ZERO_UNDER_BATCH_NORM if name == "batch_norm" else ZERO_GRADIENTS)
    assert all(parameter.grad is None for parameter in model.generator.parameters())
    if name == "batch_norm":
        for ours, theirs in ((model.projection_head.norm, "bn1"), (model.projection_head.output_norm, "bn2")):
            case.check(f"after.{theirs}.running_mean", ours.running_mean)
            case.check(f"after.{theirs}.running_var", ours.running_var)


def test_diffcse_edits():
    case = Case("diffcse", "batch_norm", torch.float32)
    model = diffcse(case)
    filled, replaced = model._edit({name: tensor.flatten(0, 1) for name, tensor in case.inputs.items()})
    assert torch.equal(filled, case.tensors["e_inputs"])
    assert torch.equal(replaced, case.tensors["rtd_labels"])


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    ("pooling", "mlp_only_train", "name"),
    [
        ("cls", False, "cls.bn.mlp_only_train=0"),
        ("cls", True, "cls.bn.mlp_only_train=1"),
        ("avg", False, "avg"),
        ("avg_top2", False, "avg_top2"),
        ("avg_embeddings_last", False, "avg_first_last"),
    ],
)
def test_diffcse_embedding(pooling, mlp_only_train, name, dtype):
    case = Case("diffcse", "poolings", dtype)
    model = simcse(case, pooling=pooling, projection="batch_norm", mlp_only_train=mlp_only_train).eval()
    case.check(f"emb.{name}", model.embed(**case.inputs))


@pytest.mark.parametrize("name", ["bert", "bert_mlm", "roberta", "roberta_mlm"])
def test_keys_become_those_of_a_plain_encoder(name):
    """The release's own conversion strips the prefix and calls the head the pooler; so does ours."""
    mapping = json.loads((GOLDEN / "simcse" / "conversion" / f"{name}.json").read_text())
    renamed, report = rename_simcse_keys({theirs: torch.zeros(1) for theirs in mapping})
    assert not report.left_over
    plain = {re.sub(r"^(projection_head|encoder\.)", "", key) for key in renamed if not key.startswith("lm_head.")}
    expected = {key for key in mapping.values() if not key.startswith("lm_head.") and "position_ids" not in key}
    assert {
        key.replace(".dense.", "pooler.dense.", 1) if key.startswith(".dense.") else key for key in plain
    } == expected
