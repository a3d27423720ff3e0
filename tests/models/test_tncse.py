"""TNCSE's model: its loss from the parts, what is trained, saving and loading, exports, refusals, other kinds."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertModel, DistilBertConfig, DistilBertModel

from cacse_trainer import TncseConfig, TncseModel
from cacse_trainer.losses import cross_nt_xent, norm_constraint, nt_xent
from cacse_trainer.models.computing import ComputeSettings
from tests.conftest import tiny_config
from tests.models.test_cacse import batch


def build(tiny_towers, kind="bert", **settings) -> TncseModel:
    a, b, _ = tiny_towers(kind)
    torch.manual_seed(0)
    return TncseModel.from_towers(a, b, **settings)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_loss_is_the_sum_of_its_parts_on_the_towers_outputs(tiny_towers, kind):
    """By plain calls of the towers, whose ``pooler_output`` the constraint reads, and by the weights."""
    model = build(tiny_towers, kind, cross_loss_weight=0.5, norm_constraint_weight=3.0).double().train()
    output = model(**batch())
    rows = {name: tensor.flatten(0, 1) for name, tensor in batch().items()}
    found = [tower(**rows) for tower in (model.tower_a, model.tower_b)]
    a, b = (tower.last_hidden_state[:, 0] for tower in found)
    pa, pb = (tower.pooler_output for tower in found)
    expected = {
        "tower_a": nt_xent(a[::2], a[1::2]),
        "tower_b": nt_xent(b[::2], b[1::2]),
        "cross": cross_nt_xent(a, b),
        "norm": norm_constraint(a, b, pa, pb) + norm_constraint(b, a, pb, pa),
    }
    assert output.losses.keys() == expected.keys()
    for name, part in expected.items():
        assert output.losses[name].item() == pytest.approx(part.item(), rel=1e-10), name
    total = expected["tower_a"] + expected["tower_b"] + 0.5 * expected["cross"] + 3 * expected["norm"]
    assert output.loss.item() == pytest.approx(total.item(), rel=1e-10)
    assert torch.allclose(output.tower_b_embeddings.flatten(0, 1), b, atol=1e-10)


def test_inference_is_the_sum_of_the_towers(tiny_towers):
    model = build(tiny_towers).double().eval()
    inputs = {name: tensor[:, 0] for name, tensor in batch().items()}
    a, b = (tower(**inputs).last_hidden_state[:, 0] for tower in (model.tower_a, model.tower_b))
    assert torch.allclose(model(**inputs).sentence_embedding, a + b, atol=1e-12)
    assert torch.allclose(model.embed(**inputs), a + b, atol=1e-10)


def test_everything_is_trained_the_poolers_too(tiny_towers):
    model = build(tiny_towers).train()
    model(**batch()).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name
        if "key.bias" not in name:  # zero gradient in exact arithmetic
            assert parameter.grad.any(), name


def test_without_the_constraint_the_poolers_are_frozen(tiny_towers, tmp_path):
    model = build(tiny_towers, norm_constraint_weight=0.0).train()
    output = model(**batch())
    output.loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without and all(".pooler." in name for name in without)
    assert without == [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    model.save_pretrained(tmp_path)
    assert not AutoModel.from_pretrained(tmp_path).tower_b.pooler.dense.weight.requires_grad


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_reloads_as_itself(tiny_towers, tmp_path, kind):
    model = build(tiny_towers, kind, tower_dropout=[0.1, 0.2]).eval()
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), TncseConfig)
    reloaded = AutoModel.from_pretrained(tmp_path)
    assert type(reloaded) is TncseModel
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, reloaded.state_dict()[name]), name
    assert torch.equal(reloaded.eval()(**batch()).loss, model(**batch()).loss)
    assert not any(folder in (tmp_path / "config.json").read_text() for folder in tiny_towers(kind))


def test_exports_have_the_trained_pooler_and_the_first_dropout(tiny_towers):
    model = build(tiny_towers, tower_dropout=[0.1, 0.2]).eval()
    found = {export.name: export for export in model.exports("x")}
    assert list(found) == ["tower_a", "tower_b", "ensemble"]
    tower = found["tower_b"].model
    assert tower.config.hidden_dropout_prob == 0.0 and model.tower_b.config.hidden_dropout_prob == 0.2
    assert torch.equal(tower.pooler.dense.weight, model.tower_b.pooler.dense.weight)


@pytest.mark.parametrize("buckets", [2, None])
def test_length_buckets_change_nothing(tiny_towers, buckets):
    plain, fast = build(tiny_towers).double().train(), build(tiny_towers).double().train()
    fast.use(ComputeSettings(buckets))
    losses = [model(**batch(12)).loss for model in (plain, fast)]
    for loss in losses:
        loss.backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-10)
    for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() <= 1e-10 * max(1.0, a.grad.abs().max().item()), name


def test_equal_sentences_may_be_no_negatives(tiny_towers):
    model = build(tiny_towers).double().train()
    ids = torch.tensor([[0], [1], [2], [0], [3], [4]])
    plain, masked = model(**batch()), model(**batch(), text_ids=ids)
    assert all(masked.losses[name] < plain.losses[name] for name in ("tower_a", "tower_b", "cross"))
    assert masked.losses["norm"] == plain.losses["norm"]


def test_a_checkpoint_without_pooler_trains_a_fresh_one_and_says_so(tiny_towers, tmp_path, caplog):
    a, _, _ = tiny_towers("bert")
    BertModel(tiny_config("bert"), add_pooling_layer=False).save_pretrained(tmp_path)
    model = TncseModel.from_towers(a, str(tmp_path))
    assert "has no pooler of its own" in caplog.text and str(tmp_path) in caplog.text
    assert model.tower_b.pooler.dense.weight.any()


def test_towers_of_a_kind_without_poolers(tmp_path):
    config = DistilBertConfig(vocab_size=29, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64)
    DistilBertModel(config).save_pretrained(tmp_path / "tower")
    model = TncseModel.from_towers(*[str(tmp_path / "tower")] * 2, tower_dropout=[0.01, 0.02]).train()
    model(**batch()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path / "pair")
    reloaded = AutoModel.from_pretrained(tmp_path / "pair")
    assert torch.equal(reloaded.pooler_b.dense.weight, model.pooler_b.dense.weight)
    exported = model.eval().exports("x")[0].model.config
    assert (exported.dropout, exported.attention_dropout) == (0.1, 0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tower_b_config": tiny_config("bert", layers=3)}, "depth.*tower_a has 4, tower_b has 3"),
        ({"pooling": "avg_top2"}, "not one that TNCSE's towers have"),
        ({"contrastive_temperature": 0.0}, "contrastive_temperature"),
        ({"cross_loss_weight": -1.0}, "cross_loss_weight must not be negative"),
        ({"norm_constraint_weight": float("nan")}, "norm_constraint_weight must not be negative, got nan"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    settings = {"tower_a_config": tiny_config("bert"), "tower_b_config": tiny_config("bert"), **change}
    with pytest.raises(ValueError, match=words):
        TncseConfig(**settings)


def test_misspelt_settings_and_damaged_files_are_refused(tiny_towers, tmp_path):
    with pytest.raises(ValueError, match="'cascade_start_layer' is no setting of TncseConfig"):
        build(tiny_towers, cascade_start_layer=2)
    with pytest.raises(ValueError, match="tower_dropout takes two numbers"):
        build(tiny_towers, tower_dropout=[0.1])
    with pytest.raises(ValueError, match="TNCSE compares two views"):
        build(tiny_towers)(input_ids=torch.zeros(2, 3, 4, dtype=torch.long))
    build(tiny_towers).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "norm_constraint_weight": "x"}))
    with pytest.raises(ValueError, match="'norm_constraint_weight' is 'x'"):
        AutoModel.from_pretrained(tmp_path)
