"""The single tower: any encoder, save and load, losses against the loss functions, and what must be refused."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    DebertaV2Config,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    XLMRobertaConfig,
)

from cacse_trainer.losses import info_nce, nt_xent
from cacse_trainer.models import SentenceEmbeddingConfig, SentenceEmbeddingModel
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.models.objectives import OBJECTIVES, Objective
from tests.conftest import tiny_config
from tests.tolerances import noise

SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
MODERN = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
KINDS = {
    "bert": lambda: tiny_config("bert", layers=2),
    "roberta": lambda: tiny_config("roberta", layers=2),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=40, dim=24, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40, pad_token_id=1
    ),
    "mpnet": lambda: MPNetConfig(**SIZES),
    "deberta_v2": lambda: DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "xlm_roberta": lambda: XLMRobertaConfig(**SIZES),
    "modernbert": lambda: ModernBertConfig(**SIZES, **MODERN),
}


@pytest.fixture(scope="module", params=KINDS)
def masked_lm(request, tmp_path_factory) -> str:
    """Folder of a tiny random masked language model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    AutoModelForMaskedLM.from_config(KINDS[request.param]()).save_pretrained(folder)
    return str(folder)


def make_batch(views: int = 2) -> dict[str, torch.Tensor]:
    """(4, views, 9) inputs, some shorter, with masked copies; token_type_ids, which many kinds do not know."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 25, (4, views, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :, 6:], mask[2, 0, 4:] = 0, 0
    labels = torch.where((torch.rand(ids.shape, generator=generator) < 0.4) & (mask == 1), ids, -100)
    return {
        "input_ids": ids.masked_fill(mask == 0, 1),
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
        "mlm_input_ids": torch.where(labels == -100, ids, 4).masked_fill(mask == 0, 1),
        "mlm_labels": labels,
    }


def rows(batch: dict[str, torch.Tensor], view: int) -> dict[str, torch.Tensor]:
    return {name: batch[name][:, view] for name in ("input_ids", "attention_mask", "token_type_ids")}


def test_any_encoder(masked_lm, tmp_path):
    """Loaded weights stay, everything trainable gets a gradient, and a saved model comes back equal."""
    model = SentenceEmbeddingModel.from_encoder(masked_lm, mlm_weight=0.1, dropout=0.0).train()
    loaded = AutoModel.from_pretrained(masked_lm).state_dict()
    assert all(
        torch.equal(tensor, loaded[name]) for name, tensor in model.encoder.state_dict().items() if "pooler" not in name
    )
    batch = make_batch()
    output = model(**batch)
    output.loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert set(output.losses) == {"contrastive", "mlm"}
    assert output.loss.item() == pytest.approx(output.losses["contrastive"].item() + 0.1 * output.losses["mlm"].item())

    model.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path)
    assert type(reloaded) is SentenceEmbeddingModel
    assert [p.requires_grad for p in reloaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(model.eval()(**batch).loss, reloaded(**batch).loss)


def test_mlm_loss_is_that_of_the_masked_lm(masked_lm):
    model = SentenceEmbeddingModel.from_encoder(masked_lm, mlm_weight=0.1).eval()
    whole = AutoModelForMaskedLM.from_pretrained(masked_lm).eval()
    batch = make_batch()
    flat = {name: tensor.flatten(0, 1) for name, tensor in batch.items()}
    expected = whole(
        input_ids=flat["mlm_input_ids"], attention_mask=flat["attention_mask"], labels=flat["mlm_labels"]
    ).loss
    assert model(**batch).losses["mlm"].item() == pytest.approx(expected.item(), abs=noise(expected))


@pytest.fixture
def encoder(tiny_towers) -> str:
    return tiny_towers("bert")[0]


@pytest.mark.parametrize(("views", "weight"), [(2, 0.0), (3, 0.0), (3, 0.7), (6, 0.7)])
def test_info_nce(encoder, views, weight):
    model = SentenceEmbeddingModel.from_encoder(encoder, hard_negative_weight=weight).double().eval()
    batch = make_batch(views)
    vectors = [model.embed(**rows(batch, view)) for view in range(views)]
    negatives = torch.stack(vectors[2:], dim=1) if views > 2 else None
    expected = info_nce(*vectors[:2], negatives, temperature=0.05, hard_negative_weight=weight)
    output = model(**batch)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert torch.allclose(output.embeddings, torch.stack(vectors, dim=1), atol=1e-10)


def test_nt_xent(encoder):
    model = SentenceEmbeddingModel.from_encoder(encoder, objective="nt_xent", contrastive_temperature=0.1)
    model = model.double().eval()
    batch = make_batch()
    expected = nt_xent(model.embed(**rows(batch, 0)), model.embed(**rows(batch, 1)), 0.1)
    assert model(**batch).loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert (model.effective_negatives(64), SentenceEmbeddingModel.from_encoder(encoder).effective_negatives(64)) == (
        126,
        63,
    )


def test_a_new_objective_is_a_function_and_a_line(encoder, monkeypatch):
    def distance(vectors, config):
        return (vectors[:, 0] - vectors[:, 1]).abs().mean() / config.contrastive_temperature

    monkeypatch.setitem(OBJECTIVES, "distance", Objective(distance, lambda batch: 0))
    output = SentenceEmbeddingModel.from_encoder(encoder, objective="distance").eval()(**make_batch())
    expected = (output.embeddings[:, 0] - output.embeddings[:, 1]).abs().mean() / 0.05
    assert output.loss.item() == pytest.approx(expected.item())


def test_gradient_checkpointing_changes_nothing(encoder):
    model = SentenceEmbeddingModel.from_encoder(encoder).double().train()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(**make_batch()).loss.backward()
        gradients.append(model.encoder.embeddings.word_embeddings.weight.grad.clone())
        model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    assert torch.allclose(*gradients, atol=1e-10)


@pytest.mark.parametrize("pooling", ["cls", "mean", "avg_top2", "last_token"])
@pytest.mark.parametrize("buckets", [2, 4, None])
def test_buckets_change_nothing(encoder, pooling, buckets):
    model = SentenceEmbeddingModel.from_encoder(encoder, pooling=pooling).double().train()
    batch = make_batch(3)
    plain = model(**batch)
    plain.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.use(ComputeSettings(buckets))
    output = model(**batch)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(plain.loss.item(), rel=1e-10)
    for name, gradient in expected.items():
        found = dict(model.named_parameters())[name].grad
        assert (found - gradient).abs().max() <= 1e-10 * max(1.0, gradient.abs().max().item()), name


def test_head_is_drawn_with_the_encoders_range(encoder):
    torch.manual_seed(0)
    dense = SentenceEmbeddingModel.from_encoder(encoder).projection_head.dense
    assert dense.weight.std().item() == pytest.approx(0.2, rel=0.1)  # initializer_range of the tiny config
    assert not dense.bias.any()


def test_dropout_of_every_kind(masked_lm):
    model = SentenceEmbeddingModel.from_encoder(masked_lm, dropout=0.37)
    found = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert 0.37 in found
    assert found <= {0.37, 0.0}
    assert model.config.original_dropout and 0.37 not in model.config.original_dropout.values()


def test_embedding_does_not_depend_on_padding(encoder):
    model = SentenceEmbeddingModel.from_encoder(encoder, pooling="mean").double().eval()
    ids = torch.tensor([[2, 6, 7, 3]])
    padded, mask = torch.tensor([[2, 6, 7, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    assert torch.allclose(model.embed(ids), model.embed(padded, mask), atol=1e-10)


def test_output_forms(encoder):
    model = SentenceEmbeddingModel.from_encoder(encoder).eval()
    ids = torch.tensor([[2, 6, 7, 3]])
    output = model(ids)
    assert output.loss is None and output.last_hidden_state.shape == (1, 4, 32)
    assert torch.equal(model(ids, return_dict=False)[1], output.sentence_embedding)


def test_projection_only_in_training(encoder):
    ids = torch.tensor([[2, 6, 7, 3]])
    raw = SentenceEmbeddingModel.from_encoder(encoder, mlp_only_train=True).eval()
    assert torch.equal(raw.embed(ids), raw.encoder(ids).last_hidden_state[:, 0])
    projected = SentenceEmbeddingModel.from_encoder(encoder).eval()
    assert torch.equal(projected.embed(ids), projected.projection_head(projected.encoder(ids).last_hidden_state[:, 0]))
    assert not hasattr(SentenceEmbeddingModel.from_encoder(encoder, pooling="cls_before_pooler"), "projection_head")


def test_a_batch_without_masked_tokens(encoder, tiny_towers):
    model = SentenceEmbeddingModel(SentenceEmbeddingConfig(tiny_config("bert"), mlm_weight=0.1)).train()
    batch = {**make_batch(), "mlm_labels": torch.full((4, 2, 9), -100)}
    assert model(**batch).losses["mlm"].item() == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pooling": "first"}, "pooling 'first' is unknown; choose one of cls"),
        ({"objective": "simclr"}, "objective 'simclr' is unknown; choose one of info_nce, nt_xent"),
        ({"projection": "linear"}, "projection 'linear' is unknown; choose one of tanh, batch_norm"),
        ({"contrastive_temperature": 0.0}, "contrastive_temperature must be positive, got 0.0"),
        ({"mlm_weight": -0.1}, "mlm_weight must not be negative"),
        ({"dropout": 1.0}, "dropout must be within"),
    ],
)
def test_wrong_settings(encoder, settings, words):
    with pytest.raises(ValueError, match=words):
        SentenceEmbeddingModel.from_encoder(encoder, **settings)


def test_wrong_inputs(encoder):
    model = SentenceEmbeddingModel.from_encoder(encoder)
    with pytest.raises(ValueError, match=r"info_nce compares .*, got 1 views of each row"):
        model(**make_batch(1))
    with pytest.raises(ValueError, match=r"must be \(batch, views, length\) or \(rows, length\), got \(4,\)"):
        model(torch.ones(4, dtype=torch.long))
    masked = SentenceEmbeddingModel(SentenceEmbeddingConfig(tiny_config("bert"), mlm_weight=0.1)).train()
    with pytest.raises(ValueError, match=r"use data\.Masking"):
        masked(**{name: tensor for name, tensor in make_batch().items() if not name.startswith("mlm")})
