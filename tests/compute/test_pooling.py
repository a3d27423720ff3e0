"""Poolings on literal tensors, with padding on either side."""

import pytest
import torch

from cacse_trainer.compute.pooling import LAYER_POOLINGS, POOLINGS, pool

# One row of three tokens and one of padding (99), H = 1; the layers below hold 10 and 20 times as much.
RIGHT = torch.tensor([[[1.0], [-2.0], [4.0], [99.0]]])
LEFT = RIGHT.roll(1, dims=1)
EXPECTED = {
    "cls": 1.0,
    "cls_before_pooler": 1.0,
    "mean": 1.0,  # (1 - 2 + 4) / 3
    "avg": 1.0,
    "avg_top2": 10.5,  # (1 + 20) / 2
    "avg_first_last": 10.5,  # with two layers, the first is the last but one
    "avg_embeddings_last": 5.5,  # (1 + 10) / 2
    "max": 4.0,
    "last_token": 4.0,
    "weighted_mean": 1.5,  # (1·1 - 2·2 + 3·4) / 6
}


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize(("states", "mask"), [(RIGHT, [1, 1, 1, 0]), (LEFT, [0, 1, 1, 1])])
def test_padding_on_either_side(name, states, mask):
    layers = (10 * states, 20 * states, states)
    assert pool(name, states, layers, torch.tensor([mask])).item() == pytest.approx(EXPECTED[name])


@pytest.mark.parametrize("name", POOLINGS)
def test_a_row_without_tokens_is_zero(name):
    states = torch.randn(2, 4, 3)
    found = pool(name, states, (states, states, states), torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0]]))
    assert found.any(dim=1).tolist() == [False, True]


@pytest.mark.parametrize("name", POOLINGS)
def test_no_mask_is_no_padding(name):
    states = torch.randn(3, 5, 4)
    layers = (torch.randn(3, 5, 4), torch.randn(3, 5, 4), states)
    assert torch.equal(pool(name, states, layers), pool(name, states, layers, torch.ones(3, 5, dtype=torch.long)))


@pytest.mark.parametrize("name", sorted(LAYER_POOLINGS))
def test_layers_are_asked_for(name):
    with pytest.raises(ValueError, match="output_hidden_states=True"):
        pool(name, RIGHT)


def test_unknown_pooling_names_the_known():
    with pytest.raises(ValueError, match=r"'avarage' is unknown; choose one of cls, .*last_token"):
        pool("avarage", RIGHT)
