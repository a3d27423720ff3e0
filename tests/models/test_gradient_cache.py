"""Gradient caching: mini-batches of the encoder, the loss of the whole batch, the gradients of the plain step."""

import pytest
import torch

from cacse_trainer.compute import bucketing
from cacse_trainer.models import DiffcseModel, SentenceEmbeddingModel, StudentModel
from cacse_trainer.models.computing import ComputeSettings
from tests.models.test_cacse import batch as cacse_batch
from tests.models.test_cacse import build as build_cacse
from tests.models.test_sentence_embedding import make_batch
from tests.models.test_tncse import build as build_tncse

SINGLE = {
    "unsupervised": (2, {}),
    "hard_negatives": (3, {"hard_negative_weight": 0.7}),
    "several_negatives": (5, {"hard_negative_weight": 0.7, "pooling": "mean"}),
    "matryoshka": (4, {"pooling": "mean", "matryoshka_dims": [32, 8, 4], "within_view_negatives": True}),
    "nt_xent": (2, {"objective": "nt_xent", "pooling": "avg_first_last"}),
    "batch_norm": (2, {"projection": "batch_norm"}),
    "mlm": (2, {"mlm_weight": 0.1}),
    "diffcse": (2, {"rtd_loss_weight": 1.0}),
    "diffcse_tokens": (2, {"rtd_loss_weight": 1.0, "rtd_positions": "tokens"}),
}
CASES = ["cacse", "cacse_frozen_embeddings", "tncse", "student", *SINGLE]


@pytest.fixture
def make(masked_lm, tiny_towers):
    """``make(case, dropout)`` → a model in double precision and a batch of 8 to 12 sentences."""

    def of(case: str, dropout: float = 0.0):
        torch.manual_seed(3)
        if case.startswith("cacse"):
            settings = {"freeze_embeddings": True} if case.endswith("embeddings") else {}
            dropouts = {"tower_dropout": [dropout] * 2, "cascade_dropout": dropout, "constraint_dropout": dropout}
            return build_cacse(tiny_towers, **dropouts, **settings).double().train(), cacse_batch()
        if case == "tncse":
            return build_tncse(tiny_towers, tower_dropout=[dropout] * 2).double().train(), cacse_batch()
        if case == "student":
            rows = {name: make_batch()[name].flatten(0, 1) for name in ("input_ids", "attention_mask")}
            return StudentModel.from_encoder(masked_lm, dropout=dropout).double().train(), rows
        views, settings = SINGLE[case]
        if "rtd_loss_weight" in settings:
            model = DiffcseModel.from_pretrained_parts(masked_lm, masked_lm, dropout=dropout, **settings)
        else:
            model = SentenceEmbeddingModel.from_encoder(masked_lm, dropout=dropout, **settings)
        return model.double().train(), make_batch(views)

    return of


def step(model, batch) -> dict[str, torch.Tensor]:
    """Loss, gradients and the random state after one step from one seed."""
    model.zero_grad()
    torch.manual_seed(11)
    output = model(**batch)
    loss = output.loss if output.loss is not None else (output.embeddings**3).mean()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**gradients, "loss": loss.detach(), "random": torch.rand(3, dtype=torch.float64)}


def assert_same(found, expected, bound):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= bound * max(1.0, value.abs().max().item()), name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("buckets", [1, 2, None])
def test_equals_the_plain_step(make, case, buckets):
    model, batch = make(case)
    expected = step(model, batch)
    model.use(ComputeSettings(buckets, 3))
    assert_same(step(model, batch), expected, 1e-10)


@pytest.mark.parametrize("case", CASES)
def test_dropout_agrees_between_the_two_encodings(make, case, monkeypatch):
    """Against the same mini-batches with their graphs kept, from the same seed; the random state goes on alike."""
    model, batch = make(case, dropout=0.3)
    model.use(ComputeSettings(mini_batch_size=3))
    found = step(model, batch)
    monkeypatch.setattr(bucketing, "_encode_twice", lambda encode, part: encode(**part))
    assert_same(found, step(model, batch), 1e-10)


def test_no_more_than_a_mini_batch_is_encoded_at_once(make):
    """12 rows in mini-batches of 5: 4 rows each, once forward and once for the gradient; with 12 rows once."""
    model, batch = make("cacse")
    seen = []
    model.tower_b.embeddings.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    model.use(ComputeSettings(mini_batch_size=5))
    step(model, batch)
    assert seen == [4] * 6
    seen.clear()
    model.use(ComputeSettings(mini_batch_size=12))
    step(model, batch)
    assert seen == [12]
    seen.clear()
    model.use(ComputeSettings(mini_batch_size=5))
    with torch.no_grad():
        model(**batch)
    assert seen == [4] * 3


def test_saved_tensors_do_not_grow_with_the_batch(make):
    """Bytes kept for the gradient after the forward pass, the loss's own apart: those of no mini-batch."""
    model, batch = make("student")
    kept = []

    def bytes_kept(mini_batch_size):
        kept.clear()
        model.use(ComputeSettings(mini_batch_size=mini_batch_size))

        def pack(tensor):
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(**batch)
        return sum(kept)

    assert bytes_kept(2) < bytes_kept(None) / 10


def test_left_padding_and_no_mask(make):
    model, batch = make("unsupervised")
    left = {name: tensor.flip(-1) for name, tensor in batch.items()}
    bare = {"input_ids": batch["input_ids"]}
    for given in (left, bare):
        model.use(ComputeSettings())
        expected = step(model, given)
        model.use(ComputeSettings(mini_batch_size=3))
        assert_same(step(model, given), expected, 1e-10)


def test_half_precision_loses_no_more_than_the_plain_step(make):
    """bfloat16: the sum over the mini-batches is in float32; the error against float32 is that of the plain step."""
    model, _ = make("unsupervised")
    model = model.float()
    generator = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randint(5, 25, (64, 2, 9), generator=generator)}

    def gradient(autocast, mini_batch_size):
        model.use(ComputeSettings(mini_batch_size=mini_batch_size))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            model.zero_grad()
            loss = model(**batch).loss
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact = gradient(False, None)
    plain, cached = ((gradient(True, size) - exact).norm() / exact.norm() for size in (None, 2))
    assert cached < 1.2 * plain < 0.1
