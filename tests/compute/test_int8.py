"""Linear layers in int8: whole-number arithmetic to the last digit on every processor, and the error of its steps."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cacse_trainer.compute.int8 import LARGEST, LEVELS, PAIR, Int8Linear, int8_runs, project, scales_of, use_int8
from tests.tolerances import assert_near

pytestmark = pytest.mark.skipif(not int8_runs(), reason="torch has no int8 products on this processor")


def layer(width: int, outputs: int = 12, bias: bool = True, seed: int = 0) -> Int8Linear:
    torch.manual_seed(seed)
    made = nn.Linear(width, outputs, bias)
    assert use_int8(made) == 1
    return made


def numbers(made: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    scales = scales_of(made.weight.detach()).double()[:, None]
    return (made.weight.detach().double() / scales).round(), scales


@pytest.mark.parametrize("width", [1, 7, 64])
def test_the_formula_in_whole_numbers(width):
    """Also where every product is as large as it can be, and all of one sign: sums of 16 bits do not saturate."""
    made = layer(width)
    made.weight.data[:4] = torch.tensor([1.0, -1.0, 0.25, 0.0])[:, None]
    made.pack()
    states = torch.randn(5, width)
    states[0], states[1], states[2] = 3.0, 0.0, torch.arange(width) != 0
    p, scales = numbers(made)
    low, width_of = (
        states.amin(1, keepdim=True),
        (states.amax(1, keepdim=True) - states.amin(1, keepdim=True)).clamp(1e-12),
    )
    q = ((states - low) * width_of.reciprocal() * LEVELS).round().double()
    exact = width_of.double() / LEVELS * (q @ (scales * p).T) + low.double() * (scales * p).sum(1) + made.bias.double()
    assert_near(made(states), exact)


@pytest.mark.parametrize(("width", "bias"), [(33, True), (384, False)])
def test_the_error_is_that_of_the_steps(width, bias):
    """Half a step of each state times its weight, and half a step of each weight times its state."""
    made, states = layer(width, bias=bias), torch.randn(3, 5, width)
    states[..., 3] *= 20  # as a trained encoder has them
    p, scales = numbers(made)
    step = (states.amax(-1) - states.amin(-1))[..., None] / LEVELS
    bound = step / 2 * (p * scales).abs().sum(1) + states.abs().sum(-1, keepdim=True) * scales[:, 0] / 2
    difference = (made(states) - F.linear(states, made.weight, made.bias)).abs()
    assert bool((difference <= bound * 1.001).all()) and made(states).shape == (3, 5, 12)


def test_no_two_neighbours_saturate():
    torch.manual_seed(0)
    weight = torch.cat([torch.randn(200, 31), torch.ones(1, 31), torch.zeros(1, 31), torch.rand(50, 31)])
    p = F.pad((weight / scales_of(weight)[:, None]).round(), (0, 1)).unflatten(1, (-1, 2))
    assert p.abs().max() <= LARGEST
    assert p.clamp(min=0).sum(2).max() <= PAIR and (-p).clamp(min=0).sum(2).max() <= PAIR
    assert (LEVELS * PAIR) < 2**15


def test_a_token_is_blind_to_its_batch():
    made, states = layer(48), torch.randn(9, 48)
    whole = made(states)
    assert all(torch.equal(made(states[i : i + 1])[0], whole[i]) for i in range(9))
    assert made(states[:0]).shape == (0, 12)
    assert not torch.isfinite(made(torch.full((1, 48), torch.inf))).any()
    other = layer(48, 5, seed=1)
    assert all(map(torch.equal, project((made, other), states), (made(states), other(states))))
    plain = nn.Linear(48, 3)
    assert torch.equal(project((made, plain), states)[1], plain(states))


def test_parameters_stay(tiny_towers):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_towers("bert")[0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert use_int8(model) == sum(type(module) is Int8Linear for module in model.modules()) > 12
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
