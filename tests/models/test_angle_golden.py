"""AnglE's weighted combinations and BeLLM's loss against the releases' values, in double; and what they refuse.

No targets, since the release errs there: in-batch losses of graded labels (0 for scores in [0, 1), arbitrary for
others), and pairs with a weight (the release ignores it).
"""

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from cacse_trainer.losses import labelled_nt_xent
from cacse_trainer.models import SentenceEmbeddingConfig
from cacse_trainer.models.objectives import OBJECTIVES, check_format, compute, needs_binary_labels
from tests.conftest import GOLDEN

BINARY, EQUAL, GRADED = [1, 0, 1, 0], [1, 1, 1, 1], [4.8, 2.5, 3.75, 0.4]
LABELLED = {
    "A.default": {},
    "A.cos1_ibn1_angle1": {"cosine_weight": 1, "angle_weight": 1},
    "A.cos0_ibn30_angle1": {"ibn_weight": 30, "angle_weight": 1},
}
TRIPLETS = {
    "C.default": {},
    "C.ibn0": {"ibn_weight": 0},
    "C.cln0": {"cln_weight": 0},
    "C.angle0": {"angle_weight": 0},
    "C.angle_only": {"ibn_weight": 0, "cln_weight": 0, "angle_weight": 1},
    "C.cos1": {"cosine_weight": 1},
    "C.ibn2_cln3_angle1_cos0.5": {"ibn_weight": 2, "cln_weight": 3, "angle_weight": 1, "cosine_weight": 0.5},
}


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "angle" / "tensors.safetensors")


def settings(objective: str = "angle_combined", **weights) -> SentenceEmbeddingConfig:
    return SentenceEmbeddingConfig(LlamaConfig(), pooling="mean", objective=objective, **weights)


def agree(golden, key: str, config: SentenceEmbeddingConfig, views: int, labels: list | None = None) -> None:
    """Loss and gradient of the golden rows: pairs lie at (2k, 2k+1), triplets at (3k, 3k+1, 3k+2)."""
    rows = golden["emb12" if views == 3 else "emb8"].double().requires_grad_()
    loss = compute(rows.unflatten(0, (-1, views)), config, None if labels is None else torch.tensor(labels))
    loss.backward()
    assert loss.item() == pytest.approx(golden[f"{key}.loss.f64"].item(), rel=1e-7)
    assert torch.allclose(rows.grad, golden[f"grad.{key}.f64"].double(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("weights", LABELLED)
@pytest.mark.parametrize(("name", "labels"), [("binary", BINARY), ("all_equal", EQUAL)])
def test_labelled_pairs(golden, weights, name, labels):
    agree(golden, f"AngleLoss.{weights}.{name}", settings(**LABELLED[weights]), 2, labels)


@pytest.mark.parametrize("weights", TRIPLETS)
def test_triplets(golden, weights):
    agree(golden, f"AngleLoss.{weights}", settings(**TRIPLETS[weights]), 3)


def test_pairs(golden):
    """The release's own row with a weight is the one without: ours is weighted."""
    agree(golden, "AngleLoss.B.default", settings(), 2)
    pairs = golden["emb8"].double().unflatten(0, (-1, 2))
    assert compute(pairs, settings(ibn_weight=5), None).item() == pytest.approx(
        5 * golden["AngleLoss.B.default.loss.f64"].item(), rel=1e-7
    )


def test_bellm(golden):
    weights = {"ibn_weight": 20, "cosine_weight": 0, "angle_weight": 1}
    agree(golden, "bellm_era.v0.4.0.formatB.cos0_ibn20_angle1", settings("bellm", **weights), 3)


@pytest.mark.parametrize(("name", "labels"), [("binary", BINARY), ("all_equal", EQUAL)])
def test_in_batch_part(golden, name, labels):
    rows = golden["emb8"].double().requires_grad_()
    loss = labelled_nt_xent(rows[0::2], rows[1::2], torch.tensor(labels))
    loss.backward()
    assert loss.item() == pytest.approx(golden[f"in_batch_negative_loss.{name}.loss.f64"].item(), rel=1e-7)
    assert torch.allclose(rows.grad, golden[f"grad.in_batch_negative_loss.{name}.f64"].double(), atol=1e-9)


def test_graded_labels(golden):
    """Refused in the in-batch part, unless a threshold cuts them; without that part they are what the ranking wants."""
    vectors = golden["emb8"].double().unflatten(0, (-1, 2))
    graded = torch.tensor(GRADED)
    with pytest.raises(ValueError, match="positive_threshold"):
        compute(vectors, settings(), graded)
    assert needs_binary_labels(settings()) and not needs_binary_labels(settings(ibn_weight=0))
    cut = compute(vectors, settings(positive_threshold=3.0, angle_weight=0), graded)
    assert cut.item() == pytest.approx(golden["in_batch_negative_loss.binary.loss.f64"].item(), rel=1e-7)
    ranked = compute(vectors, settings(ibn_weight=0, angle_weight=1), graded)
    assert ranked.item() == pytest.approx(golden["angle_loss.stsb_float.tau20.loss.f64"].item(), rel=1e-7)
    assert compute(vectors, settings("angle"), graded).item() == pytest.approx(ranked.item())
    expected = golden["cosine_loss.stsb_float.loss.f64"].item()
    assert compute(vectors, settings("cosent"), graded).item() == pytest.approx(expected, rel=1e-7)


def test_ranking_of_triplets_is_that_of_their_pairs(golden):
    """(anchor, positive, 1) and (anchor, negative, 0)."""
    vectors = golden["emb12"].double().unflatten(0, (-1, 3))
    pairs = torch.cat([vectors[:, :2], vectors[:, ::2]])  # (2B, 2, H)
    labels = torch.tensor([1.0] * 4 + [0.0] * 4)
    for name in ("cosent", "angle"):
        expected = compute(pairs, settings(name), labels).item()
        assert compute(vectors, settings(name), None).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("objective", "views", "labelled"),
    [("info_nce", 2, True), ("nt_xent", 3, False), ("cosent", 2, False), ("bellm", 2, False), ("bellm", 2, True)],
)
def test_formats_that_do_not_fit(objective, views, labelled):
    with pytest.raises(ValueError, match=f"objective {objective} compares"):
        check_format(objective, views, labelled)


def test_every_objective_names_formats():
    assert set(OBJECTIVES) == {"info_nce", "nt_xent", "cosent", "angle", "angle_combined", "bellm", "margin_mse"}
    for name, words in (("cosine_weight", "must not be negative"), ("ranking_scale", "must be positive")):
        with pytest.raises(ValueError, match=words):
            settings(**{name: -1})
