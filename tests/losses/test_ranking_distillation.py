"""Ranking distillation: small cases by hand, loops in double, gradients, ties, precision, refusals."""

import math

import pytest
import torch

from cacse_trainer.losses import cosines, js_consistency, listmle_loss, listnet_loss

ROWS = 7


@pytest.fixture
def pairs():
    """The student's and the teacher's cosines of a batch, in double."""
    generator = torch.Generator().manual_seed(0)
    first, second, teacher = (torch.randn(ROWS, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    return cosines(first, second).requires_grad_(), cosines(teacher, teacher)


def shares(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def test_cosines():
    x, y = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 3.0], [5.0, 0.0]])
    assert torch.allclose(cosines(x, y), torch.tensor([[0.0, 1.0], [0.5**0.5, 0.5**0.5]]))


def test_listnet_by_loops(pairs):
    student, teacher = pairs
    total = 0.0
    for i in range(ROWS):
        others = [j for j in range(ROWS) if j != i]
        target = shares([teacher[i, j].item() for j in others], 0.02)
        found = shares([student[i, j].item() for j in others], 0.07)
        total -= sum(t * math.log(f) for t, f in zip(target, found, strict=True))
    assert listnet_loss(student, teacher, 0.07, 0.02).item() == pytest.approx(total / ROWS, rel=1e-12)


def test_listmle_by_loops(pairs):
    student, teacher = pairs
    total = 0.0
    for i in range(ROWS):
        order = sorted(range(ROWS), key=lambda j: -teacher[i, j].item())
        assert order[0] == i
        scores = [student[i, j].item() / 0.07 for j in order]
        total += sum(math.log(sum(map(math.exp, scores[k:]))) - scores[k] for k in range(ROWS))
    assert listmle_loss(student, teacher, 0.07).item() == pytest.approx(total / ROWS, rel=1e-12)


def test_js_by_loops(pairs):
    student, _ = pairs
    total = 0.0
    for i in range(ROWS):
        p, q = (shares(rows[i].tolist(), 0.3) for rows in (student, student.T))
        middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        for one in (p, q):
            total += sum(a * math.log(a / m) for a, m in zip(one, middle, strict=True)) / 2
    assert js_consistency(student, student.T, 0.3).item() == pytest.approx(total / ROWS, rel=1e-12)


def test_by_hand():
    """Two other sentences: shares by one difference; and a ranking of three by its two choices."""
    student = torch.tensor([[1.0, 0.2, 0.4], [0.2, 1.0, 0.3], [0.4, 0.3, 1.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.5], [0.1, 0.5, 1.0]], dtype=torch.float64)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    listnet = listmle = 0.0
    for own, given in ((0.2 - 0.4, 0.9 - 0.1), (0.2 - 0.3, 0.9 - 0.5), (0.4 - 0.3, 0.1 - 0.5)):
        share = sigmoid(given)
        listnet -= (share * math.log(sigmoid(own)) + (1 - share) * math.log(sigmoid(-own))) / 3
    for row in ((1.0, 0.2, 0.4), (1.0, 0.2, 0.3), (1.0, 0.3, 0.4)):  # in the teacher's order
        listmle += (math.log(sum(map(math.exp, row))) - row[0] + math.log(1 + math.exp(row[2] - row[1]))) / 3
    assert listnet_loss(student, teacher, 1.0, 1.0).item() == pytest.approx(listnet, rel=1e-12)
    assert listmle_loss(student, teacher, 1.0).item() == pytest.approx(listmle, rel=1e-12)
    assert js_consistency(student, student, 0.05).item() == pytest.approx(0.0, abs=1e-14)


def test_gradients(pairs):
    """Against differences; none reaches the teacher, and none the diagonal of ListNet."""
    student, teacher = pairs
    teacher.requires_grad_()
    for loss in (lambda s: listnet_loss(s, teacher), lambda s: listmle_loss(s, teacher, 0.5)):
        assert torch.autograd.gradcheck(loss, student, fast_mode=True)
    assert torch.autograd.gradcheck(lambda s: js_consistency(s, s.T, 0.5), student, fast_mode=True)
    listnet_loss(student, teacher).backward()
    assert teacher.grad is None and not student.grad.diagonal().any()


def test_the_best_student_is_the_teacher(pairs):
    """Gradient zero where the student's distribution is the teacher's, whatever the two temperatures."""
    _, teacher = pairs
    student = (2.0 * teacher).requires_grad_()
    (gradient,) = torch.autograd.grad(listnet_loss(student, teacher, 0.1, 0.05), student)
    assert gradient.abs().max() < 1e-12


def test_the_order_alone_counts_for_listmle_and_ties_stay_in_place(pairs):
    student, teacher = pairs
    assert torch.equal(listmle_loss(student, teacher), listmle_loss(student, teacher**3 + 5))
    tied = torch.zeros(ROWS, ROWS, dtype=torch.float64)
    falling = -torch.arange(ROWS, dtype=torch.float64).expand(ROWS, ROWS)
    assert torch.equal(listmle_loss(student, tied), listmle_loss(student, falling))


def test_one_row_and_extreme_cosines():
    one = torch.ones(1, 1, requires_grad=True)
    for loss in (listnet_loss(one, one), listmle_loss(one, one), js_consistency(one, one)):
        assert loss.item() == 0.0
    apart = (2 * torch.eye(4) - 1).requires_grad_()
    for loss in (listnet_loss(apart, -apart), listmle_loss(apart, -apart), js_consistency(apart, -apart)):
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, apart)[0]).all()


def test_half_precision_gives_float32(pairs):
    student, teacher = (rows.detach().bfloat16() for rows in pairs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cosines(student, teacher).dtype == torch.float32
        for loss in (listnet_loss(student, teacher), listmle_loss(student, teacher), js_consistency(student, teacher)):
            assert loss.dtype == torch.float32


@pytest.mark.parametrize("loss", [listnet_loss, listmle_loss, js_consistency])
def test_refusals(loss):
    with pytest.raises(ValueError, match=r"similarities must be \(N, N\), got \(2, 3\)"):
        loss(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(3, 3\)"):
        loss(torch.ones(2, 2), torch.ones(3, 3))
    with pytest.raises(ValueError, match="temperature must be positive"):
        loss(torch.ones(2, 2), torch.ones(2, 2), 0.0)
