"""Linear layers whose bias, GELU and sum are one with a bfloat16 product: the exact result, and who may not take it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel

from cacse_trainer.compute import half
from cacse_trainer.compute.half import _HALF, HalfLinear, fusing, fusing_runs, keep_copies, use_half
from cacse_trainer.compute.reading import pool_packed
from tests.tolerances import noise

WIDTH, OUTPUTS = 48, 20
needs_bf16 = pytest.mark.skipif(not fusing_runs(), reason="this processor multiplies no bfloat16")


def layer(bias: bool = True) -> HalfLinear:
    torch.manual_seed(0)
    made = nn.Linear(WIDTH, OUTPUTS, bias).eval()
    use_half(made, torch.bfloat16)
    assert type(made) is HalfLinear
    return made


def in_bf16():
    return torch.autocast("cpu", torch.bfloat16)


@needs_bf16
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, WIDTH), (2, 3, WIDTH), (0, WIDTH)])
def test_it_is_the_product_rounded_once(bias, shape):
    """Against float64 on the same rounded numbers: half an ulp of bfloat16 for the result, and float32's sums."""
    made, states, more = layer(bias), torch.randn(shape).bfloat16(), torch.randn(*shape[:-1], OUTPUTS).bfloat16()
    exact = F.linear(states.double(), made.weight.double(), None if made.bias is None else made.bias.double())
    expected = [exact, F.gelu(exact), exact + more.double()]
    with in_bf16(), torch.inference_mode():
        found = [made(states), made.fused(states, gelu=True), made.fused(states, plus=more)]
        assert torch.equal(made(states.float()), found[0])  # cast by the layer itself
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.bfloat16 and ours.shape == theirs.shape
        if theirs.numel():
            bound = torch.finfo(torch.bfloat16).eps / 2 * theirs.abs() + noise(theirs, WIDTH)
            assert bool(((ours.double() - theirs).abs() <= bound).all())


@needs_bf16
def test_who_may_not_take_it(monkeypatch):
    made, states = layer(), torch.randn(3, WIDTH)
    with torch.no_grad():
        assert not made.fuses(states)  # without autocast
    with in_bf16():
        assert not made.fuses(states)  # its weights may be asked for a gradient
        made.requires_grad_(False)
        assert made.fuses(states) and fusing(made, states) and not made.fuses(states.clone().requires_grad_())
        hook = made.register_forward_hook(lambda *given: None)
        assert not fusing(made, states)
        hook.remove()
        monkeypatch.setattr(half, "fusing_runs", lambda: False)
        assert not made.fuses(states) and made(states).dtype == torch.bfloat16
        monkeypatch.undo()
        assert made.fuses(states) and not made.train().fuses(states)


@needs_bf16
def test_trained_weights_are_kept_in_bfloat16_as_long_as_an_evaluation():
    trained, states = nn.Sequential(nn.Linear(WIDTH, OUTPUTS)).eval(), torch.randn(3, WIDTH)
    keep_copies(trained)
    assert type(trained[0]) is HalfLinear and trained[0].weight.dtype == torch.float32
    with in_bf16():
        assert not trained[0].fuses(states)  # it has a graph
        with torch.no_grad():
            before = trained(states)
            assert trained[0].fuses(states) and trained[0] in _HALF
        trained.train()(states).sum().backward()
        assert trained[0] not in _HALF
    with torch.no_grad():
        trained[0].weight.sub_(trained[0].weight.grad)
        with in_bf16():
            assert not torch.equal(trained.eval()(states), before)
    with torch.no_grad():
        assert torch.equal(trained(states), nn.functional.linear(states, *trained.parameters()))  # float32 as ever


@needs_bf16
def test_new_weights_are_seen():
    made, states = layer(), torch.randn(3, WIDTH)
    with in_bf16(), torch.inference_mode():
        before = made(states)
    with torch.no_grad():
        made.weight.mul_(2)
        made.bias.mul_(2)
    with in_bf16(), torch.inference_mode():
        assert torch.equal(made(states), 2 * before)
    with torch.inference_mode(), in_bf16():
        assert torch.equal(layer()(states), before)  # parameters that count no versions


@needs_bf16
@pytest.mark.parametrize("pooling", ["mean", "cls_before_pooler", "avg_first_last"])
def test_a_packed_encoder_is_as_near_to_float32_as_by_plain_autocast(tiny_towers, pooling, monkeypatch):
    model = AutoModel.from_pretrained(tiny_towers("bert")[0]).eval()
    torch.manual_seed(0)
    lengths = torch.randint(2, 30, (40,))
    mask = (torch.arange(30) < lengths[:, None]).long()
    inputs = {"input_ids": torch.randint(5, 20, (40, 30)) * mask, "attention_mask": mask}
    with torch.no_grad():
        exact = pool_packed(model, pooling, **inputs)
        with in_bf16():
            plain = pool_packed(model, pooling, **inputs)
        use_half(model, torch.bfloat16)
        calls = []
        fused = HalfLinear.fused
        monkeypatch.setattr(HalfLinear, "fused", lambda *given, **how: calls.append(how) or fused(*given, **how))
        with in_bf16():
            found = pool_packed(model, pooling, **inputs)
    assert found.dtype == torch.float32  # of the pooling, whatever the states are
    assert {"gelu"} in map(set, calls) and {"plus"} in map(set, calls)
    assert (found - exact).norm() < 2 * (plain - exact).norm()
