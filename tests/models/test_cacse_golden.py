"""CACSE against the reference implementation: both kinds, outputs, losses, gradients, 25 AdamW steps."""

import pytest
import torch
from safetensors.torch import load_file

from cacse_trainer import CacseBertModel, CacseRobertaModel, load_reference_checkpoint
from cacse_trainer.importers.reference import convert_reference_checkpoint, rename_reference_keys
from tests.conftest import GOLDEN
from tests.tolerances import GRADIENT, noise

CASES = {"bert_begin7_constraint4": (7, 4, CacseBertModel), "roberta_begin11_constraint1": (11, 1, CacseRobertaModel)}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def relative(ours, theirs) -> float:
    """Largest difference over the largest reference entry."""
    return ((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()).item()


def load_case(case: str, dtype=torch.float32):
    folder = GOLDEN / "cacse" / case
    start, constraint_layers, _ = CASES[case]
    model, report = convert_reference_checkpoint(
        folder / "reference_state_dict.safetensors",
        str(folder / "submodel1"),
        str(folder / "submodel2"),
        str(folder / "constraint"),
        cascade_start_layer=start,
        constraint_layers=constraint_layers,
        cascade_dropout=0.0,
        constraint_dropout=0.0,
    )
    return model.to(dtype), report, load_file(folder / "tensors.safetensors")


def views(tensors, prefix="") -> dict:
    """The reference interleaves the views (x0, y0, x1, y1, …): (2B, L) → (B, 2, L)."""
    return {name: tensors[prefix + name].unflatten(0, (-1, 2)) for name in INPUTS if prefix + name in tensors}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("dtype", "prefix", "tolerance"), [(torch.float32, "", noise(1.0)), (torch.float64, "float64.", 1e-10)]
)
def test_outputs_and_losses(case, dtype, prefix, tolerance):
    model, _, golden = load_case(case, dtype)
    assert type(model) is CASES[case][2]
    model.train()  # every dropout is 0
    output = model(**views(golden))
    found = {
        "out_submodel1": output.tower_a_embeddings.flatten(0, 1),
        "out_submodel2": output.tower_b_embeddings.flatten(0, 1),
        "out_cascade": output.cascade_embeddings.flatten(0, 1),
        "loss_1": output.losses["tower_a"],
        "loss_2": output.losses["tower_b"],
        "loss_3": output.losses["cascade"],
        "loss_total": output.loss,
        "eval_embedding": model.eval().embed(**{name: golden[name] for name in INPUTS if name in golden}),
    }
    model.config.cascade_loss_weight = 0.3
    found["loss_total_hylambda_0.3"] = model(**views(golden)).loss
    for name, value in found.items():
        assert relative(value, golden[prefix + name]) < tolerance, name


@pytest.mark.parametrize("case", CASES)
def test_blocks(case):
    model, _, golden = load_case(case)
    outputs = []
    for block in model.cascade.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    model(**views(golden))
    for i, (x, y) in enumerate(outputs):
        name = "constraint_in" if i == 0 else f"subsequent_index{i}_out"
        assert relative(x, golden[f"mid.{name}_A"][:, 0]) < noise(1.0)
        assert relative(y, golden[f"mid.{name}_B"][:, 0]) < noise(1.0)


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    model, _, golden = load_case(case)
    model(**views(golden)).loss.backward()
    depth, (_, layers, _) = model.config.constraint_config.num_hidden_layers, CASES[case]
    reference = {}
    for name, gradient in golden.items():
        if name.startswith("grad."):
            # the reference lists the constraint layers' parameters under their place in the whole constraint model
            name = name.removeprefix("grad.")
            for i in range(layers):
                name = name.replace(
                    f"Encoderlayers_Model.encoder.layer.{depth - layers + i}.", f"constraint_layer.{i}."
                )
            reference[name] = gradient
    reference, report = rename_reference_keys(reference)
    assert not report.left_over
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found.keys() == reference.keys()
    for name, gradient in reference.items():
        if not name.endswith("attention.self.key.bias"):  # zero in exact arithmetic
            assert relative(found[name], gradient) < GRADIENT * noise(1.0), name


ROUNDING = 5e-6
"""Of a gradient's largest entry; the reference's own float32 gradients are off by up to 5.3e-5 of it."""


@pytest.mark.parametrize(
    ("dtype", "prefix", "tolerance"), [(torch.float32, "", GRADIENT * noise(1.0)), (torch.float64, "float64.", 1e-9)]
)
def test_trajectory(dtype, prefix, tolerance):
    """25 steps of AdamW.

    Its first steps are the gradient's sign: an entry of 4e-7 beside one of 1.1, whose sign is rounding, moves by the
    whole learning rate, and one such flip (it depends on the processor's GELU) moves later losses by 0.01. In float32
    the 20 or so entries in 436 000 that are that small are taken from a twin in float64. What is left is the noise of
    the gradients: with AVX2 0.4e-3, with SSE 0.5e-3 of a loss of 19.
    """
    model, twin = (load_case("bert_begin7_constraint4", chosen)[0].train() for chosen in (dtype, torch.float64))
    golden = load_file(GOLDEN / "cacse" / "trajectory" / "tensors.safetensors")
    settings = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    optimizers = [torch.optim.AdamW(each.parameters(), **settings) for each in (model, twin)]
    atol = tolerance * golden[f"{prefix}loss_total"].max().item()
    for step in range(25):
        batch = {name: golden[f"batches.{name}"][step].unflatten(0, (-1, 2)) for name in INPUTS}
        loss, exact = model(**batch).loss, twin(**batch).loss
        assert abs(loss.item() - golden[f"{prefix}loss_total"][step].item()) < atol, step
        for part, optimizer in zip((loss, exact), optimizers, strict=True):
            optimizer.zero_grad()
            part.backward()
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            if theirs.grad is not None:
                tiny = theirs.grad.abs() <= ROUNDING * theirs.grad.abs().max()
                ours.grad[tiny] = theirs.grad[tiny].to(dtype)
        for optimizer in optimizers:
            optimizer.step()
    probe = model.eval().embed(**{name: golden[f"probe.{name}"] for name in INPUTS})
    assert relative(probe, golden[f"{prefix}final_probe_embedding"]) < 2 * tolerance


def test_reference_keys_are_accounted_for():
    _, report, _ = load_case("bert_begin7_constraint4")
    assert not report.missing and not report.left_over
    assert any("in_proj_weight (query and key rows)" in name for name in report.skipped)
    assert any("Encoderlayers_Model.pooler" in name for name in report.skipped)


def test_an_imported_checkpoint_keeps_what_its_export_needs(tmp_path):
    """The towers' own dropout for the exports, training's in the model; no machine's folder in what is saved."""
    folder = GOLDEN / "cacse" / "bert_begin7_constraint4"
    parts = {"tower_a": folder / "submodel1", "tower_b": folder / "submodel2", "constraint": folder / "constraint"}
    model = load_reference_checkpoint(
        folder / "reference_state_dict.safetensors",
        **{name: str(path) for name, path in parts.items()},
        tower_dropout=[0.15, 0.1],
        cascade_loss_weight=0.3,
    )
    assert model.config.original_dropout == {"tower_a": [0.0, 0.0], "tower_b": [0.0, 0.0]}
    assert model.tower_b.encoder.layer[0].output.dropout.p == 0.1 and model.config.cascade_loss_weight == 0.3
    model.save_pretrained(tmp_path)
    assert str(folder) not in (tmp_path / "config.json").read_text()
