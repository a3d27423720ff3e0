"""The CACSE models: what METHODS says of the cascade, freezing, saving and loading, refusals, fast paths."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModel

from cacse_trainer import CacseBertModel, CacseConfig, CacseRobertaModel, SentenceEmbeddingModel
from cacse_trainer.models.cascade import SingleTokenAttention
from cacse_trainer.models.computing import ComputeSettings
from tests.conftest import tiny_config

CLASSES = {"bert": CacseBertModel, "roberta": CacseRobertaModel}


def build(tiny_towers, kind="bert", layers=4, start=2, constraint_layers=1, **settings):
    a, b, constraint = tiny_towers(kind, layers)
    torch.manual_seed(0)
    return CLASSES[kind].from_towers(
        a, b, constraint, cascade_start_layer=start, constraint_layers=constraint_layers, **settings
    )


def batch(rows=6, length=9, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(5, 24, (rows, 2, length), generator=generator)
    input_ids[:, :, 0] = 2
    attention_mask = torch.ones_like(input_ids)
    for i in range(rows):
        attention_mask[i, :, length - i % 5 :] = 0
        input_ids[i, :, length - i % 5 :] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@pytest.mark.parametrize("kind", CLASSES)
def test_reloads_as_itself(tiny_towers, tmp_path, kind):
    model = build(tiny_towers, kind).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [CLASSES[kind].__name__]
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CacseConfig)
    for reloaded in (AutoModel.from_pretrained(tmp_path), CLASSES[kind].from_pretrained(tmp_path)):
        assert type(reloaded) is CLASSES[kind]
        assert reloaded.state_dict().keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, reloaded.state_dict()[name]), name
        trainable = {name for name, p in reloaded.named_parameters() if p.requires_grad}
        assert trainable == {name for name, p in model.named_parameters() if p.requires_grad}
        assert torch.equal(reloaded.eval()(**batch()).loss, model(**batch()).loss)


def test_towers_are_loaded_not_drawn(tiny_towers):
    model = build(tiny_towers, constraint_layers=2)
    a, b, constraint = (AutoModel.from_pretrained(folder) for folder in tiny_towers("bert"))
    for tower, source in ((model.tower_a, a), (model.tower_b, b)):
        assert all(torch.equal(x, y) for x, y in zip(tower.parameters(), source.parameters(), strict=True))
    for ours, theirs in zip(model.cascade.constraint_layers, constraint.encoder.layer[-2:], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_cascade_keeps_its_initialisation(tiny_towers):
    """Linear U(±1/√H): std 1/√(3H); values Xavier on the fused in-projection: std √(1/2H); not post_init's 0.02."""
    model = build(tiny_towers)
    for block in model.cascade.blocks:
        for view in (block.view_x, block.view_y):
            assert view.linear.weight.std().item() == pytest.approx((3 * 32) ** -0.5, rel=0.1)
            assert view.self_attention.value.weight.std().item() == pytest.approx(64**-0.5, rel=0.1)
            assert view.cross_attention.output.weight.std().item() == pytest.approx((3 * 32) ** -0.5, rel=0.1)
            assert not view.self_attention.value.bias.any() and not view.cross_attention.output.bias.any()
            assert view.linear.bias.any()
            assert torch.equal(view.norm.weight, torch.ones(32))


def test_attention_over_one_token_ignores_query_and_key():
    """`nn.MultiheadAttention` over one key equals our module, whatever its query and key weights and heads are."""
    torch.manual_seed(0)
    ours = SingleTokenAttention(24).double()
    query, value = torch.randn(2, 5, 1, 24, dtype=torch.float64)
    for heads in (1, 6):
        theirs = torch.nn.MultiheadAttention(24, heads, batch_first=True).double()
        with torch.no_grad():
            theirs.in_proj_weight[48:] = ours.value.weight
            theirs.in_proj_bias[48:] = ours.value.bias
            theirs.out_proj.weight.copy_(ours.output.weight)
            theirs.out_proj.bias.copy_(ours.output.bias)
        assert torch.allclose(theirs(query, query, value)[0], ours(value), atol=1e-12)


def test_constraint_layers_attend_across_the_batch(tiny_towers):
    """Adding a row changes the other rows' cascade output with ``batch``, not with ``sample``."""
    full = batch(6)
    part = {name: tensor[:5] for name, tensor in full.items()}
    across = build(tiny_towers).double().eval()
    alone = build(tiny_towers, constraint_attention="sample").double().eval()
    assert not torch.allclose(across(**full).cascade_embeddings[:5], across(**part).cascade_embeddings, atol=1e-4)
    assert torch.allclose(alone(**full).cascade_embeddings[:5], alone(**part).cascade_embeddings, atol=1e-10)


@pytest.mark.parametrize("freeze_embeddings", [False, True])
def test_one_step_moves_what_is_trainable(tiny_towers, freeze_embeddings):
    model = build(tiny_towers, freeze_embeddings=freeze_embeddings).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(**batch()).loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        frozen = any(f"tower_{t}.encoder.layer.{i}." in name for t in "ab" for i in (0, 1)) or "pooler" in name
        frozen = frozen or (freeze_embeddings and ".embeddings." in name)
        assert parameter.requires_grad != frozen, name
        if frozen:
            assert torch.equal(parameter, before[name]), name
        elif not name.endswith("attention.self.key.bias"):  # zero gradient in exact arithmetic
            assert not torch.equal(parameter, before[name]), name


def test_frozen_prefix_builds_no_graph(tiny_towers):
    model = build(tiny_towers, freeze_embeddings=True).train()
    seen = []
    model.tower_a.encoder.layer[1].register_forward_hook(lambda _m, _i, output: seen.append(output.requires_grad))
    model.tower_a.encoder.layer[2].register_forward_hook(lambda _m, _i, output: seen.append(output.requires_grad))
    model(**batch())
    assert seen == [False, True]


def test_frozen_layers_keep_dropout(tiny_towers):
    model = build(tiny_towers, tower_dropout=[0.3, 0.0], start=4).train()  # every encoder layer is frozen
    output = model(**batch(rows=2))
    assert not torch.equal(output.tower_a_embeddings, model(**batch(rows=2)).tower_a_embeddings)
    assert torch.equal(output.tower_b_embeddings, model(**batch(rows=2)).tower_b_embeddings)


def test_dropout_lands_in_the_sub_configs(tiny_towers):
    model = build(tiny_towers, tower_dropout=[0.15, 0.1], cascade_dropout=0.2, constraint_dropout=0.05)
    assert model.config.tower_a_config.hidden_dropout_prob == 0.15
    assert model.config.tower_b_config.attention_probs_dropout_prob == 0.1
    assert model.tower_a.encoder.layer[0].output.dropout.p == 0.15
    assert model.cascade.constraint_layers[0].output.dropout.p == 0.05
    assert {block.dropout.p for block in model.cascade.blocks} == {0.2}
    assert model.config.original_dropout == {"tower_a": [0.0, 0.0], "tower_b": [0.0, 0.0]}


def test_forward_rule(tiny_towers):
    model = build(tiny_towers).double().eval()
    inputs = {name: tensor[:, 0] for name, tensor in batch().items()}
    output = model(**inputs)
    a, b = model.tower_a(**inputs).last_hidden_state, model.tower_b(**inputs).last_hidden_state
    assert output.loss is None
    assert torch.equal(output.last_hidden_state, a + b)
    assert torch.equal(output.sentence_embedding, (a + b)[:, 0])
    torch.testing.assert_close(model.embed(**inputs), output.sentence_embedding, rtol=0, atol=1e-10)
    assert isinstance(model(**inputs, return_dict=False), tuple)
    both = model(**batch())
    assert both.loss.item() == pytest.approx(sum(value.item() for value in both.losses.values()), rel=1e-10)
    with pytest.raises(ValueError, match="two views"):
        model(input_ids=torch.zeros(2, 3, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(4,\)"):
        model(input_ids=torch.zeros(4, dtype=torch.long))


def test_six_layer_towers(tiny_towers):
    model = build(tiny_towers, layers=6, start=3, constraint_layers=3)
    assert len(model.cascade.blocks) == 4 and len(model.cascade.constraint_layers) == 3
    assert torch.isfinite(model(**batch()).loss)


def test_loss_weight_zero_leaves_the_cascade_out(tiny_towers):
    model = build(tiny_towers, cascade_loss_weight=0.0).train()
    output = model(**batch())
    assert set(output.losses) == {"tower_a", "tower_b"}
    assert not any(parameter.requires_grad for parameter in model.cascade.parameters())
    weighted = build(tiny_towers, cascade_loss_weight=0.3).double().train()(**batch())
    parts = weighted.losses
    expected = parts["tower_a"] + parts["tower_b"] + 0.3 * parts["cascade"]
    assert weighted.loss.item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("buckets", [2, 4, None])
def test_length_buckets_change_nothing(tiny_towers, buckets):
    plain, fast = build(tiny_towers).double().train(), build(tiny_towers).double().train()
    for model, count in ((plain, 1), (fast, buckets)):
        model.cascade.requires_grad_(True)
        for block in model.cascade.blocks:
            block.dropout.p = 0.0
        model.cascade.constraint_layers.eval()
        model.use(ComputeSettings(count))
    loss_plain, loss_fast = plain(**batch(12)).loss, fast(**batch(12)).loss
    loss_plain.backward()
    loss_fast.backward()
    assert loss_fast.item() == pytest.approx(loss_plain.item(), rel=1e-10)
    for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
        if a.grad is not None:
            assert (a.grad - b.grad).abs().max() <= 1e-10 * max(1.0, a.grad.abs().max().item()), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tower_b_config": tiny_config("bert", layers=3)}, "depth.*tower_a has 4, tower_b has 3"),
        ({"tower_b_config": tiny_config("bert", hidden_size=16)}, "width.*tower_a has 32, tower_b has 16"),
        ({"tower_b_config": tiny_config("bert", vocab_size=99)}, "vocabulary.*tower_b has 99"),
        ({"tower_b_config": tiny_config("roberta")}, "kind.*tower_a has bert, tower_b has roberta"),
        (
            {"constraint_config": tiny_config("bert", hidden_size=16)},
            "width.*the towers have 32, the constraint model has 16",
        ),
        ({"cascade_start_layer": 5}, r"cascade_start_layer=5.*4 layers.*1\.\.4"),
        ({"cascade_start_layer": 0}, "cascade_start_layer=0"),
        ({"constraint_layers": 5}, "constraint_layers=5.*4 layers"),
        ({"constraint_attention": "rows"}, "'rows'"),
        ({"contrastive_temperature": 0.0}, "contrastive_temperature"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    settings = {
        "tower_a_config": tiny_config("bert"),
        "tower_b_config": tiny_config("bert"),
        "constraint_config": tiny_config("bert"),
        "cascade_start_layer": 2,
        "constraint_layers": 1,
        **change,
    }
    with pytest.raises(ValueError, match=words):
        CacseConfig(**settings)


def test_class_and_towers_must_be_of_one_kind(tiny_towers):
    a, b, constraint = tiny_towers("roberta")
    with pytest.raises(ValueError, match="bert towers, got roberta"):
        CacseBertModel.from_towers(a, b, constraint, cascade_start_layer=2, constraint_layers=1)


def test_a_misspelt_setting_is_refused(tiny_towers):
    with pytest.raises(ValueError, match="'cascade_start' is no setting of CacseConfig"):
        CacseBertModel.from_towers(*tiny_towers("bert"), cascade_start=2)


def test_a_tower_with_missing_weights_is_refused(tiny_towers, tmp_path):
    """A config of 4 layers over weights of 3: the fourth would be drawn at random without a word."""
    from transformers import BertModel

    _, b, constraint = tiny_towers("bert")
    BertModel(tiny_config("bert", layers=3)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(ValueError, match=r"lacks \d+ weights.*encoder.layer.3"):
        CacseBertModel.from_towers(str(tmp_path), b, constraint, cascade_start_layer=2, constraint_layers=1)


def test_other_kinds_are_refused_by_name(tiny_towers, tmp_path):
    from transformers import DistilBertConfig, DistilBertModel

    a, _, constraint = tiny_towers("bert")
    DistilBertModel(DistilBertConfig(vocab_size=29, dim=32, n_layers=4, n_heads=4, hidden_dim=64)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="bert towers, got distilbert"):
        CacseBertModel.from_towers(a, str(tmp_path), constraint, cascade_start_layer=2, constraint_layers=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_of_a_reload(tiny_towers, tmp_path, dtype):
    build(tiny_towers).save_pretrained(tmp_path)
    assert {p.dtype for p in AutoModel.from_pretrained(tmp_path, dtype=dtype).parameters()} == {dtype}


def test_attention_implementation_reaches_every_part(tiny_towers, tmp_path):
    eager, sdpa = (build(tiny_towers, attn_implementation=name).double().eval() for name in ("eager", "sdpa"))
    for model, name in ((eager, "eager"), (sdpa, "sdpa")):
        layer = model.cascade.constraint_layers[0]
        found = {model.tower_a.config._attn_implementation, model.tower_b.config._attn_implementation}
        assert found | {layer.attention.self.config._attn_implementation} == {name}
    assert eager(**batch()).loss.item() == pytest.approx(sdpa(**batch()).loss.item(), rel=1e-10)


def test_gradient_checkpointing_changes_nothing(tiny_towers):
    plain, saving = (build(tiny_towers, cascade_dropout=0.0).double().train() for _ in range(2))
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for model in (plain, saving):
        model.cascade.constraint_layers.eval()
        model(**batch()).loss.backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-10), name


def test_saved_configs_hold_no_folder(tiny_towers, tmp_path):
    build(tiny_towers).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert not any(folder in text for folder in tiny_towers("bert"))


def test_the_layers_that_fsdp_wraps(tiny_towers):
    """accelerate refuses a name that the model has not, and wraps the embeddings by themselves."""
    pair = CacseBertModel.from_towers(*tiny_towers("bert"), cascade_start_layer=2, constraint_layers=2)
    one = SentenceEmbeddingModel.from_encoder(tiny_towers("bert")[0])
    assert (pair._no_split_modules, one._no_split_modules) == ({"BertLayer", "CascadeBlock"}, {"BertLayer"})
