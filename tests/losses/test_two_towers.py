"""TNCSE's losses: the release's values, brute force in double, autocast, refusals."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from cacse_trainer.losses import cross_nt_xent, norm_constraint, nt_xent
from tests.conftest import GOLDEN
from tests.tolerances import GRADIENT, noise

ROUNDED = 20 * 2**-25
"""The golden inputs are kept in single precision, the double values are of unrounded ones: half a unit, over τ = 0.05.
To 1e-12 the formula is held by `test_norm_constraint_by_loops` and `test_cross_by_loops_and_equal_sentences`."""


@pytest.mark.parametrize("case", ["near", "mixed"])
@pytest.mark.parametrize(
    ("dtype", "prefix", "tolerance"), [(torch.float32, "", noise(1.0)), (torch.float64, "float64.", ROUNDED)]
)
def test_tncse_golden(case, dtype, prefix, tolerance):
    """Every part, the total, and the gradient of each input."""
    golden = load_file(GOLDEN / "tncse" / "tensors.safetensors")
    names = ("a", "b", "pooled_a", "pooled_b")
    given = {name: golden[f"{case}.input.{name}"].to(dtype).requires_grad_() for name in names}
    a, b, pooled_a, pooled_b = given.values()
    parts = {
        "nt_a": nt_xent(a[::2], a[1::2]),
        "nt_b": nt_xent(b[::2], b[1::2]),
        "cross_ab": cross_nt_xent(a, b),
        "cross_ba": cross_nt_xent(b, a),
        "norm_ab": norm_constraint(a, b, pooled_a, pooled_b),
        "norm_ba": norm_constraint(b, a, pooled_b, pooled_a),
    }
    for name, loss in parts.items():
        expected = golden[f"{case}.{prefix}{name}"]
        assert abs(loss - expected) <= tolerance * max(abs(expected.item()), 1), name
    total = sum(loss for name, loss in parts.items() if name != "cross_ba")
    assert abs(total - golden[f"{case}.{prefix}tncse.loss"]) <= tolerance * total.item()
    total.backward()
    for name, tensor in given.items():
        expected = golden[f"{case}.{prefix}tncse.grad.{name}"]
        assert (tensor.grad - expected).abs().max() <= GRADIENT * tolerance * expected.abs().max(), name


def test_the_golden_case_has_opposed_cosines():
    golden = load_file(GOLDEN / "tncse" / "tensors.safetensors")
    a, b = (golden[f"mixed.input.{name}"] for name in "ab")
    assert (F.cosine_similarity(a[::2], b[1::2]) < 0).any() and (F.cosine_similarity(a[::2], b[1::2]) > 0).any()


def draw(rows=8, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(4)]


def test_cross_by_loops_and_equal_sentences():
    """Rows 0, 1 and 6, 7 are of one sentence: they are no negatives of each other, their partners stay."""
    u, v, _, _ = draw()
    for texts, same in ((None, set()), (torch.tensor([[3], [4], [5], [3]]), {(0, 3), (3, 0)})):
        entropies = []
        for i in range(8):
            compared = [j for j in range(8) if j != i and (i // 2, j // 2) not in same]
            scores = {j: math.exp(F.cosine_similarity(u[i], v[j], dim=0).item() / 0.1) for j in compared}
            entropies.append(-math.log(scores[i + 1 if i % 2 == 0 else i - 1] / sum(scores.values())))
        assert cross_nt_xent(u, v, 0.1, texts).item() == pytest.approx(sum(entropies) / 8, rel=1e-12)


@pytest.mark.parametrize("case", ["near", "mixed"])
def test_norm_constraint_by_loops(case):
    """The release's loop over rows, in double, with its gradients."""
    golden = load_file(GOLDEN / "tncse" / "tensors.safetensors")
    names = ("a", "b", "pooled_a", "pooled_b")
    found, expected = ([golden[f"{case}.input.{name}"].double().requires_grad_() for name in names] for _ in range(2))
    u, v, pu, pv = expected
    terms = []
    for i in range(0, len(u), 2):
        cosine = F.cosine_similarity(u[i], v[i + 1], dim=0)
        cosine = torch.tensor(1e-4, dtype=torch.float64) if cosine < 0 else cosine
        terms.append(-cosine.log() * (pu[i] - pv[i + 1]).norm() / (2 * (pu[i].norm() + pv[i + 1].norm())))
    loop, loss = sum(terms) / len(terms), norm_constraint(*found)
    loop.backward(), loss.backward()
    assert loss.item() == pytest.approx(loop.item(), rel=1e-12)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-10, atol=1e-14)


def test_a_cosine_that_is_not_positive_gets_no_gradient_and_its_norms_do():
    u, v, pu, pv = draw(rows=2)
    v = torch.stack([v[0], -u[0]]).requires_grad_()
    u.requires_grad_(), pu.requires_grad_()
    loss = norm_constraint(u, v, pu, pv)
    share = (pu[0] - pv[1]).norm() / (2 * (pu[0].norm() + pv[1].norm()))
    assert loss.item() == pytest.approx(-math.log(1e-4) * share.item(), rel=1e-12)
    loss.backward()
    assert not u.grad.any() and not v.grad.any() and pu.grad[0].any()
    at_right_angles = norm_constraint(torch.eye(2), torch.eye(2), torch.eye(2), torch.eye(2))
    assert torch.isfinite(at_right_angles)


def test_half_precision_gives_float32():
    rows = [tensor.bfloat16() for tensor in draw()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for loss in (cross_nt_xent(*rows[:2]), norm_constraint(*rows)):
            assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cross_nt_xent(torch.ones(3, 2), torch.ones(3, 2)), "an odd number"),
        (lambda: cross_nt_xent(torch.ones(4, 2), torch.ones(2, 2)), r"both tensors must be \(N, H\)"),
        (lambda: cross_nt_xent(torch.ones(4, 2), torch.ones(4, 2), 0.0), "temperature must be positive"),
        (lambda: norm_constraint(*[torch.ones(4, 2)] * 2, *[torch.ones(2, 2)] * 2), "one pooled row a row"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()
