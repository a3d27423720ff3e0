"""The fast paths on a CPU: dropout's distribution and reproducibility, everything else equal to the plain way."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertModel, RobertaModel

from cacse_trainer.compute.fast_paths import (
    AHEAD,
    LARGE_TABLE,
    FastDropout,
    SharedEmbedding,
    dropped_sum,
    run_ahead,
    use_fast_paths,
    use_plain_paths,
)
from cacse_trainer.compute.half import HalfLinear
from cacse_trainer.models import SentenceEmbeddingModel
from cacse_trainer.models.computing import ComputeSettings
from tests.conftest import tiny_config
from tests.models.test_cacse import batch as cacse_batch
from tests.models.test_cacse import build as build_cacse
from tests.tolerances import GRADIENT, assert_near, noise


def dropped_out(states: torch.Tensor, probability: float) -> torch.Tensor:
    return FastDropout(probability)(states)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.015, 0.1, 0.5])
def test_dropout_is_dropout(dtype, probability):
    """Kept with 1 - p, scaled by 1/(1 - p): the expected value is the input's, within 5 standard errors."""
    torch.manual_seed(0)
    count = 1_000_003
    dropped = dropped_out(torch.ones(count, dtype=dtype), probability).float()
    error = (probability * (1 - probability) / count) ** 0.5
    assert abs((dropped == 0).float().mean().item() - probability) < 5 * error
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / (1 - probability)).to(dtype).item()} or (
        dropped.max().item() == pytest.approx(1 / (1 - probability), rel=1e-4 if dtype == torch.float32 else 4e-3)
    )
    if dtype == torch.float32:
        assert abs(dropped.mean().item() - 1) < 5 * error / (1 - probability) + 2e-5
        expected = probability / (1 - probability)  # E[m²] - 1 with m = 1/(1-p) of chance 1-p
        assert dropped.var().item() == pytest.approx(expected, rel=0.02)


def test_dropout_lanes_are_independent():
    """No correlation between neighbours, between the four lanes of a draw, or between two calls; no lane is biased."""
    torch.manual_seed(1)
    first, second = (dropped_out(torch.ones(400_000), 0.5) == 0 for _ in range(2))
    bound = 5 / 400_000**0.5
    for other in (second, first.roll(1), first.roll(2), first.roll(3), first.roll(4)):
        assert abs(torch.corrcoef(torch.stack([first.float(), other.float()]))[0, 1].item()) < bound
    for lane in range(4):
        assert abs(first[lane::4].float().mean().item() - 0.5) < 2 * bound


def test_dropout_gradient_and_seed():
    states = torch.randn(5, 7, 3, requires_grad=True)
    torch.manual_seed(2)
    dropped = dropped_out(states, 0.3)
    scale = (dropped / states).detach()
    (gradient,) = torch.autograd.grad(dropped.sum(), states)
    assert torch.allclose(gradient, scale)
    state = torch.get_rng_state()
    again = [dropped_out(states, 0.3) for _ in range(2)]
    assert not torch.equal(again[0], again[1])
    torch.set_rng_state(state)
    assert torch.equal(again[0], dropped_out(states, 0.3))
    assert torch.equal(dropped_out(states, 0.0), states)
    assert not dropped_out(states, 1.0).any()
    assert torch.equal(FastDropout(0.3).eval()(states), states)


@pytest.mark.parametrize("dropout", [FastDropout(0.3), FastDropout(0.3).eval(), nn.Dropout(0.3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_sum_after_dropout_is_dropout_and_a_sum(dtype, dropout):
    """Value and gradients are those of dropout by the same draws; bfloat16's product is not rounded before the sum."""
    states = torch.randn(5, 8, dtype=dtype, requires_grad=True)
    residual = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    found = []
    for summed in (dropped_sum, lambda dropout, states, residual: dropout(states) + residual):
        torch.manual_seed(2)
        result = summed(dropout, states, residual)
        found.append([result, *torch.autograd.grad((result * residual.detach()).sum(), (states, residual))])
    rounding = 1e-14 if dtype == torch.float64 else 2**-8 * 2 * states.abs().max().item()
    for ours, plain in zip(*found, strict=True):
        assert ours.dtype == plain.dtype
        assert torch.allclose(ours, plain, rtol=0, atol=rounding)
    assert torch.equal(found[0][2], found[1][2])


def large(model_class, kind, **changes):
    torch.manual_seed(0)
    return model_class(tiny_config(kind, **{"vocab_size": LARGE_TABLE, "max_position_embeddings": 80, **changes}))


def inputs(rows=6, length=11) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, LARGE_TABLE, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:], mask[2, 4:] = 0, 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def gradients(model, bf16=False, passes=2) -> dict[str, torch.Tensor]:
    """Gradients of one backward through several calls, as with length buckets."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        states = [model(**inputs(rows)).last_hidden_state[:, 0].float() for rows in range(4, 4 + passes)]
    sum((part**3).sum() for part in states).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("model_class", "kind"), [(BertModel, "bert"), (RobertaModel, "roberta")])
def test_gradients_and_outputs_are_those_of_the_plain_model(model_class, kind):
    plain = large(model_class, kind).double().train()
    plain.encoder.layer[0].requires_grad_(False)
    fast = copy.deepcopy(plain)
    use_fast_paths(fast)
    assert isinstance(fast.embeddings.word_embeddings, SharedEmbedding)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    for _ in range(2):  # the second step uses the kept nodes
        expected, found = gradients(plain), gradients(fast)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].layout == torch.strided
            assert (found[name] - value).abs().max() <= 1e-10 * max(1.0, value.abs().max().item()), name
    with torch.no_grad():
        states = [model.eval()(**inputs()).last_hidden_state for model in (plain, fast)]
    real = inputs()["attention_mask"].bool()
    assert (states[0] - states[1])[real].abs().max() < 1e-10
    copy.deepcopy(fast)  # what is kept is beside the modules


def test_frozen_half_copies_follow_the_weights():
    torch.manual_seed(0)
    plain = nn.Linear(8, 8).requires_grad_(False)
    fast = copy.deepcopy(plain)
    use_fast_paths(fast)
    assert type(fast) is HalfLinear
    states = torch.randn(3, 8, requires_grad=True)

    def outputs():
        with torch.autocast("cpu", torch.bfloat16):
            return fast(states), plain(states)

    with torch.inference_mode():
        assert torch.equal(*outputs())
    found, expected = outputs()  # after an evaluation, with a graph
    assert torch.equal(*(torch.autograd.grad(output.sum(), states)[0] for output in (found, expected)))
    for linear in (fast, plain):
        linear.load_state_dict({"weight": torch.full((8, 8), 0.5), "bias": torch.ones(8)})
    assert torch.equal(*outputs()) and not torch.equal(outputs()[0], found)
    for linear in (fast, plain):
        linear.requires_grad_(True)
    assert torch.equal(*outputs())
    assert torch.equal(fast(states), F.linear(states, fast.weight, fast.bias))  # without autocast


def test_a_model_in_bf16_is_as_near_to_float32(tiny_towers):
    """The gradient's distance from float32's, plain and fast, in mini-batches or not."""
    dropouts = {"tower_dropout": [0.0, 0.0], "cascade_dropout": 0.0, "constraint_dropout": 0.0}
    model = build_cacse(tiny_towers, **dropouts, attn_implementation="eager").train()
    batch = cacse_batch(16)

    def gradient(bf16):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**batch).loss
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact, plain = gradient(False), gradient(True)
    model = build_cacse(tiny_towers, **dropouts).train()
    use_fast_paths(model)
    error = (plain - exact).norm()
    assert (gradient(True) - exact).norm() < 1.3 * error
    model.use(ComputeSettings(mini_batch_size=8))
    assert (gradient(True) - exact).norm() < 1.3 * error
    assert (gradient(False) - exact).norm() < GRADIENT * noise(1.0) * exact.norm()


def test_what_is_saved_is_plain(tmp_path):
    folder = tmp_path / "encoder"
    large(BertModel, "bert").save_pretrained(folder)
    model = SentenceEmbeddingModel.from_encoder(str(folder), pooling="cls_before_pooler")
    use_fast_paths(model)
    model.save_pretrained(tmp_path / "saved")
    assert "cacse_cpu_training" not in (tmp_path / "saved" / "config.json").read_text()
    reloaded = SentenceEmbeddingModel.from_pretrained(tmp_path / "saved")
    assert type(reloaded.encoder.embeddings.word_embeddings) is nn.Embedding
    assert reloaded.encoder.config._attn_implementation == "sdpa"
    model.eval()
    assert_near(model.embed(**inputs()), reloaded.embed(**inputs()))


def test_a_mask_made_without_looking_gives_the_same(tiny_towers):
    """With padding and without any, in training and out of it."""
    plain = BertModel.from_pretrained(tiny_towers("bert")[0], attn_implementation="sdpa")
    ahead = copy.deepcopy(plain)
    run_ahead(ahead)
    assert (plain.config._attn_implementation, ahead.config._attn_implementation) == ("sdpa", AHEAD)
    assert "cacse" not in ahead.config.to_json_string()
    ids = torch.randint(5, 20, (4, 9))
    for mask in (torch.ones_like(ids), (torch.arange(9) < torch.tensor([[9], [4], [7], [2]])).long()):
        for mode in (True, False):
            states = []
            for model in (plain.train(mode), ahead.train(mode)):
                torch.manual_seed(0)
                states.append(model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()])
            torch.testing.assert_close(*states, atol=1e-5, rtol=1e-5)


def test_the_plain_way_again(tiny_towers):
    """Classes, hooks and attention are those of before."""
    model = BertModel.from_pretrained(tiny_towers("bert")[0]).train()

    def state():
        return [
            (type(part), len(part._forward_pre_hooks)) for part in model.modules()
        ], model.config._attn_implementation

    before = state()
    use_fast_paths(model)
    assert state() != before
    use_plain_paths(model)
    assert state() == before
