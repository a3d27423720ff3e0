"""The pure losses: golden values, small cases worked out by hand, autocast, refusals."""

import math

import pytest
import torch
from safetensors.torch import load_file

from cacse_trainer.losses import angle_loss, cosent_loss, distillation_loss, info_nce, interleave, nt_xent
from tests.conftest import GOLDEN
from tests.tolerances import GRADIENT, noise


@pytest.mark.parametrize("rows", [2, 6, 64])
@pytest.mark.parametrize("temperature", [0.05, 0.1])
@pytest.mark.parametrize(
    ("dtype", "prefix", "tolerance"), [(torch.float32, "", noise(1.0)), (torch.float64, "float64.", 1e-10)]
)
def test_nt_xent_golden(rows, temperature, dtype, prefix, tolerance):
    golden = load_file(GOLDEN / "cacse" / "infonce" / "tensors.safetensors")
    vectors = golden[f"y_{rows}"].to(dtype).requires_grad_()
    loss = nt_xent(vectors[0::2], vectors[1::2], temperature)
    loss.backward()
    expected = golden[f"{prefix}loss_{rows}_tau{temperature}"]
    assert abs(loss - expected) <= tolerance * max(expected.item(), 1)
    gradient = golden[f"{prefix}grad_{rows}_tau{temperature}"]
    assert (vectors.grad - gradient).abs().max() <= max(GRADIENT * tolerance * gradient.abs().max().item(), 1e-12)


@pytest.mark.parametrize(("case", "weight"), [("self", 0.01), ("uc", 0.1)])
@pytest.mark.parametrize(
    ("dtype", "prefix", "tolerance"), [(torch.float32, "", noise(1.0)), (torch.float64, "float64.", 1e-10)]
)
def test_distillation_golden(case, weight, dtype, prefix, tolerance):
    golden = load_file(GOLDEN / "cacse" / "distill" / "tensors.safetensors")
    student = golden["student"].to(dtype).requires_grad_()
    teacher = golden[f"{prefix}{case}.teacher"].to(dtype)
    assert torch.allclose(interleave(teacher, student), golden[f"{prefix}{case}.interleaved"].to(dtype))
    loss = distillation_loss(student, teacher, 0.05, weight)
    loss.backward()
    assert abs(loss - golden[f"{prefix}{case}.loss"]) <= tolerance * loss.item()
    gradient = golden[f"{prefix}{case}.grad_student"]
    assert (student.grad - gradient).abs().max() <= GRADIENT * tolerance * gradient.abs().max()


LABELS = {
    "binary": [1, 1, 0, 0, 1, 1, 0, 0],
    "graded0to5": [5, 5, 3, 3, 3, 3, 0, 0],
    "stsb_float": [4.8, 4.8, 2.5, 2.5, 3.75, 3.75, 0.4, 0.4],
    "all_equal": [1] * 8,
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(("loss", "name"), [(cosent_loss, "cosine_loss.{}"), (angle_loss, "angle_loss.{}.tau20")])
def test_ranking_golden(labels, loss, name):
    """The golden rows lie in pairs (2k, 2k+1), with the pair's label on both."""
    golden = load_file(GOLDEN / "angle" / "tensors.safetensors")
    rows = golden["emb8"].double().requires_grad_()
    value = loss(rows[0::2], rows[1::2], torch.tensor(LABELS[labels][0::2]), scale=20.0)
    value.backward()
    key = name.format(labels)
    assert abs(value - golden[f"{key}.loss.f64"].item()) < 1e-8
    assert torch.allclose(rows.grad, golden[f"grad.{key}.f64"].double(), atol=1e-8)


def test_nt_xent_by_hand():
    """Orthogonal pairs: the partner's logit is 1/τ, the two others' are 0."""
    x = torch.eye(2)
    assert nt_xent(x, x, 0.5).item() == pytest.approx(math.log(1 + 2 * math.exp(-2)))


def test_info_nce_by_hand():
    x = torch.eye(2)
    negatives = torch.tensor(
        [[0.0, 1.0], [1.0, 0.0]]
    )  # each anchor's own negative is orthogonal, the other equal to it
    # logits of row 0: positives (1, 0), negatives (0 + 0.7, 1)
    expected = -math.log(math.e / (math.e + 1 + math.exp(0.7) + math.e))
    assert info_nce(x, x, negatives, temperature=1.0, hard_negative_weight=0.7).item() == pytest.approx(expected)


def test_info_nce_of_several_negatives_by_hand():
    """Each row has all four negatives of the batch, and the weight on its own two."""
    x = torch.eye(2)
    negatives = torch.stack([x.flip(0), x], dim=1)  # (2, 2, 2): of each anchor one orthogonal, one equal to it
    # logits of row 0: positives (1, 0), own negatives (0 + 0.7, 1 + 0.7), those of row 1 (1, 0)
    total = math.e + 1 + math.exp(0.7) + math.exp(1.7) + math.e + 1
    found = info_nce(x, x, negatives, temperature=1.0, hard_negative_weight=0.7)
    assert found.item() == pytest.approx(1 - 2 + math.log(total))
    torch.manual_seed(0)
    a, p, n = torch.randn(3, 5, 8, dtype=torch.float64).unbind()
    assert info_nce(a, p, n[:, None], hard_negative_weight=0.7) == info_nce(a, p, n, hard_negative_weight=0.7)


def test_nt_xent_is_symmetric_and_info_nce_is_not():
    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 8, dtype=torch.float64)
    assert nt_xent(x, y, 0.1).item() == pytest.approx(nt_xent(y, x, 0.1).item(), rel=1e-10)
    assert info_nce(x, y, temperature=0.1).item() != pytest.approx(info_nce(y, x, temperature=0.1).item(), rel=1e-3)


def test_float32_inside_autocast():
    torch.manual_seed(0)
    x, y = torch.randn(16, 32), torch.randn(16, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [nt_xent(x, y, 0.05), info_nce(x, y), cosent_loss(x, y, torch.arange(16.0))]
    outside = [nt_xent(x, y, 0.05), info_nce(x, y), cosent_loss(x, y, torch.arange(16.0))]
    for a, b in zip(inside, outside, strict=True):
        assert a.dtype == torch.float32
        assert a.item() == b.item()
    assert nt_xent(x.bfloat16(), y.bfloat16(), 0.05).dtype == torch.float32


def test_no_cubic_tensor():
    """2048 rows of width 512: an N×N×H tensor would take 8 GB."""
    before = torch.randn(2048, 512, requires_grad=True)
    nt_xent(before[:1024], before[1024:], 0.05).backward()
    assert torch.isfinite(before.grad).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: nt_xent(x, x[:1], 0.05), r"\(2, 2\) and \(1, 2\)"),
        (lambda x: nt_xent(x, x, 0.0), "temperature must be positive, got 0"),
        (lambda x: info_nce(x, x, x[:1]), r"\(2, 2\) and \(1, 2\)"),
        (lambda x: distillation_loss(x, x, 0.05, 1.5), "within"),
        (lambda x: angle_loss(x[:, :1], x[:, :1], torch.ones(2)), "H must be even, got 1"),
        (lambda x: cosent_loss(x, x, torch.ones(3)), r"labels must be \(N,\)"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.eye(2))
