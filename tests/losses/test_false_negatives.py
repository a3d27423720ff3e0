"""A guide's false negatives, similarities within the views, Matryoshka: against loops that spell the formulas out."""

import math

import pytest
import torch

from cacse_trainer.losses import false_negatives, info_nce
from cacse_trainer.models import SentenceEmbeddingConfig
from cacse_trainer.models.objectives import compute

ROWS, NEGATIVES, WIDTH = 6, 3, 8


def vectors(seed: int = 0, negatives: int = NEGATIVES, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(ROWS, 2 + negatives, WIDTH, generator=generator, dtype=torch.float64)
    return rows + torch.ones(WIDTH, dtype=torch.float64) * (1 - spread)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b / a.norm() / b.norm()).item()


def spelled_out(x, guide, margin, kind, within, weight=0.3, temperature=0.1) -> tuple[float, int]:
    """The loss by loops over rows and candidates, and how many candidates were left out."""
    total, left = 0.0, 0
    for i in range(len(x)):
        own = cosine(guide[i, 0], guide[i, 1])
        bound = own - margin if kind == "absolute" else own * (1 - margin)
        # (this row's view, the other row, its view) of each candidate, and what is added to its logit
        candidates = [(0, j, 1, 0.0) for j in range(len(x)) if j != i]
        candidates += [(0, j, v, weight * (i == j)) for j in range(len(x)) for v in range(2, x.shape[1])]
        if within:
            candidates += [(view, j, view, 0.0) for view in (0, 1) for j in range(len(x)) if j != i]
        positive = math.exp(cosine(x[i, 0], x[i, 1]) / temperature)
        denominator = positive
        for mine, j, view, added in candidates:
            if cosine(guide[i, mine], guide[j, view]) > bound:
                left += 1
            else:
                denominator += math.exp(cosine(x[i, mine], x[j, view]) / temperature + added)
        total -= math.log(positive / denominator)
    return total / len(x), left


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize(
    ("margin", "kind"), [(0.0, "absolute"), (0.2, "absolute"), (-0.3, "absolute"), (0.1, "relative")]
)
def test_guided_info_nce_is_the_formula(margin, kind, within):
    x, guide = vectors(0), vectors(1, spread=0.8)
    mask = false_negatives(guide, margin, kind, within)
    assert mask.shape == (ROWS, ROWS * (1 + NEGATIVES + 2 * within))
    found = info_nce(x[:, 0], x[:, 1], x[:, 2:], 0.1, 0.3, within_views=within, left_out=mask)
    expected, left = spelled_out(x, guide, margin, kind, within)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    assert 0 < left < mask.numel() - ROWS


def test_its_own_positive_and_what_has_no_guide_stay():
    """A guide whose vectors are all the same leaves nothing out: no candidate is above the positive."""
    same = torch.ones(4, 2, 3)
    assert not false_negatives(same, 0.0).any()
    assert false_negatives(same, 0.5).sum() == 4 * 3  # with a margin all but the own positives
    x = vectors(negatives=0)
    nothing = torch.zeros(ROWS, ROWS, dtype=torch.bool)
    assert info_nce(x[:, 0], x[:, 1], left_out=nothing) == info_nce(x[:, 0], x[:, 1])


def test_equal_texts_within_the_views_are_no_negatives():
    x = vectors(negatives=0)
    x[3] = x[1]
    texts = torch.tensor([[i, 10 + i] for i in (0, 1, 2, 1, 4, 5)])
    guide = torch.randn(ROWS, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    guide[3] = guide[1]
    equal = torch.zeros(ROWS, 3 * ROWS, dtype=torch.bool)
    for part in range(3):
        equal[1, part * ROWS + 3] = equal[3, part * ROWS + 1] = True
    found = info_nce(x[:, 0], x[:, 1], texts=texts, within_views=True)
    assert found == info_nce(x[:, 0], x[:, 1], within_views=True, left_out=equal)
    assert found < info_nce(x[:, 0], x[:, 1], within_views=True)


@pytest.mark.parametrize("objective", ["info_nce", "nt_xent", "cosent", "angle_combined"])
def test_matryoshka_is_the_weighted_sum_over_the_first_coordinates(objective):
    settings = {"objective": objective, "pooling": "mean", "ranking_scale": 2.0, "contrastive_temperature": 0.5}
    x = vectors(negatives=0 if objective == "nt_xent" else 1)
    plain = SentenceEmbeddingConfig({"model_type": "bert", "hidden_size": WIDTH}, **settings)
    sized = {"matryoshka_dims": [8, 4, 2], "matryoshka_weights": [1.0, 0.5, 2.0]}
    config = SentenceEmbeddingConfig({"model_type": "bert", "hidden_size": WIDTH}, **settings, **sized)
    expected = sum(w * compute(x[..., :d], plain, None) for d, w in zip([8, 4, 2], [1.0, 0.5, 2.0], strict=True))
    assert compute(x, config, None).item() == pytest.approx(expected.item(), rel=1e-12)
    config.matryoshka_weights = None
    expected = sum(compute(x[..., :d], plain, None) for d in (8, 4, 2))
    assert compute(x, config, None).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"matryoshka_dims": [16, 8]}, r"matryoshka_dims \[16, 8\]: give different numbers from 1 to the vectors' 8"),
        ({"matryoshka_dims": [4, 4]}, "give different numbers"),
        ({"matryoshka_dims": [0]}, "give different numbers"),
        ({"matryoshka_weights": [1.0]}, "matryoshka_weights belong to matryoshka_dims"),
        ({"matryoshka_dims": [8, 4], "matryoshka_weights": [1.0]}, "one above 0 for each of the 2 dimensions"),
        ({"matryoshka_dims": [8, 3], "objective": "angle"}, "splits vectors in halves, give even ones"),
        ({"matryoshka_dims": [4], "pooling": "cls", "mlp_only_train": True}, "which mlp_only_train drops"),
    ],
)
def test_wrong_sizes_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        SentenceEmbeddingConfig({"model_type": "bert", "hidden_size": WIDTH}, **{"pooling": "mean", **settings})


def test_wrong_guides_are_refused():
    with pytest.raises(ValueError, match="'percent' is unknown; choose one of absolute, relative"):
        false_negatives(vectors(), 0.1, "percent")
    with pytest.raises(ValueError, match=r"must be \(N, 2 \+ K, H\), got \(6, 8\)"):
        false_negatives(vectors()[:, 0])
    config = SentenceEmbeddingConfig({"model_type": "bert"}, objective="nt_xent")
    with pytest.raises(ValueError, match="objective nt_xent leaves out no negatives"):
        compute(vectors(negatives=0), config, None, left_out=torch.zeros(ROWS, ROWS, dtype=torch.bool))
