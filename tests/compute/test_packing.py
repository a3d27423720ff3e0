"""The encoders without padding equal the padded ones: values, gradients, and how many tokens they run over."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import BertModel, CamembertConfig, CamembertModel, RobertaModel

from cacse_trainer.compute import packing
from cacse_trainer.compute.fast_paths import use_fast_paths
from cacse_trainer.compute.packing import PackedRows, can_pack, packed_rows, packed_states
from cacse_trainer.compute.pooling import LAYER_POOLINGS, POOLINGS, pool
from cacse_trainer.compute.reading import layer_vectors, pool_packed
from cacse_trainer.models import SentenceEmbeddingModel
from tests.conftest import tiny_config
from tests.tolerances import GRADIENT, noise

LENGTHS = (3, 9, 3, 1, 8, 9)
VOCABULARY = 60


def build(kind: str, **changes):
    torch.manual_seed(0)
    changes = {"vocab_size": VOCABULARY, **changes}
    if kind == "bert":
        return BertModel(tiny_config(kind, **changes)).double().train()
    config = tiny_config("roberta", pad_token_id=1, **changes)  # positions count from 2
    if kind == "camembert":
        return CamembertModel(CamembertConfig(**config.to_dict())).double().train()
    return RobertaModel(config).double().train()


def inputs(lengths=LENGTHS, width=11, pad=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, VOCABULARY, mask.shape, generator=generator)
    return {"input_ids": torch.where(mask == 1, ids, pad), "attention_mask": mask}


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def gradients(model, vectors) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (vectors**3).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("few_shapes", [False, True])
@pytest.mark.parametrize("pooling", sorted(POOLINGS))
@pytest.mark.parametrize("kind", ["bert", "roberta", "camembert"])
def test_every_pooling_equals_the_padded_encoder(kind, pooling, few_shapes, monkeypatch):
    monkeypatch.setattr(packing, "PackedRows", partial(PackedRows, few_shapes=few_shapes))
    model = without_dropout(build(kind))
    batch = inputs(pad=model.config.pad_token_id)
    if kind == "bert":
        batch["token_type_ids"] = batch["attention_mask"] * (batch["input_ids"] % 2)
    assert can_pack(model, batch)
    output = model(**batch, output_hidden_states=pooling in LAYER_POOLINGS)
    expected = pool(pooling, output.last_hidden_state, output.hidden_states, batch["attention_mask"])
    found = pool_packed(model, pooling, **batch)
    assert torch.allclose(found, expected, atol=1e-12)
    plain, packed = gradients(model, expected), gradients(model, found)
    assert {name for name, value in plain.items() if value.any()} == {n for n, value in packed.items() if value.any()}
    for name, value in packed.items():
        assert torch.allclose(value, plain[name], atol=1e-10), name


@pytest.mark.parametrize("kind", ["bert", "roberta", "camembert"])
def test_text_that_holds_the_padding_token(kind):
    """RoBERTa's kind gives it the padding's position and counts on behind it as if it were not there."""
    model, batch = without_dropout(build(kind)), inputs(pad=1)
    batch["input_ids"][1, 2:4] = batch["input_ids"][4, 0] = model.config.pad_token_id
    assert can_pack(model, batch)
    hidden = model(**batch, output_hidden_states=True).hidden_states
    expected = pool("mean", hidden[-1], attention_mask=batch["attention_mask"])
    assert torch.allclose(pool_packed(model, "mean", **batch), expected, atol=1e-12)
    firsts = torch.stack([states[:, 0] for states in hidden], dim=1)
    assert torch.allclose(layer_vectors(model, 0, "cls", **batch), firsts, atol=1e-12)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("start", [0, 1, 2])
def test_vectors_of_the_upper_layers(start, pooling):
    model, batch = without_dropout(build("bert")), inputs()
    hidden = model(**batch, output_hidden_states=True).hidden_states[start:]
    expected = torch.stack([pool(pooling, states, attention_mask=batch["attention_mask"]) for states in hidden], dim=1)
    assert torch.allclose(layer_vectors(model, start, pooling, **batch), expected, atol=1e-12)


def test_runs_over_tokens_alone_and_the_last_layer_over_first_tokens():
    """33 tokens in 6 rows; no group costs less than 50 tokens, so they attend in one, padded to 9."""
    model, batch = build("bert"), inputs()
    seen = []
    for layer in model.encoder.layer:
        layer.output.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    rows = PackedRows(batch, 4)
    states = packed_states(model, rows, first_only=True)
    assert [(group.rows, group.length) for group in rows.groups] == [(6, 9)]
    assert seen == [33] * (len(seen) - 1) + [6] and len(states) == len(seen) + 1
    many = inputs(LENGTHS * 60)
    groups = PackedRows(many, 4).groups
    assert sum(group.rows * group.length for group in groups) == sum(LENGTHS) * 60
    assert all(group.mask is None for group in groups)


def test_shapes_that_recur():
    """Batches of other lengths give products of the same shapes, which oneDNN need not make kernels for again."""

    def shapes(lengths):
        model, seen = build("bert"), set()
        for part in model.modules():
            if isinstance(part, torch.nn.Linear):
                part.register_forward_hook(lambda module, given, output: seen.add(output.shape))
        rows = PackedRows(inputs(lengths), 4, few_shapes=True)
        packed_states(model, rows, first_only=False)
        return seen, {(group.rows, group.length) for group in rows.groups}

    assert shapes(LENGTHS * 6) == shapes((5, 8, 2, 2, 7, 10) * 6)
    assert shapes(LENGTHS * 6)[0] == {(256, 32), (256, 64)}  # 198 tokens
    assert shapes(LENGTHS * 6)[1] == {(4, 16), (32, 16)}


def test_shapes_recur_where_bfloat16_is_computed():
    with torch.autocast("cpu", torch.bfloat16):
        assert len(packed_rows(inputs(), 4).tokens) == 64
    assert len(packed_rows(inputs(), 4).tokens) == sum(LENGTHS)


def test_a_part_of_ones_own_is_called():
    """The layers' output parts are joined without their own forward only where it is transformers' own."""

    class Silent(torch.nn.Module):
        def forward(self, states, residual):
            return residual * 0

    model, batch = build("bert"), inputs()
    model.encoder.layer[-1].output = Silent()
    assert not pool_packed(model, "mean", **batch).any()


def test_dropout_is_in_force():
    model, batch = build("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5), inputs()
    assert not torch.allclose(*(pool_packed(model, "cls", **batch) for _ in range(2)))
    model.eval()
    assert torch.equal(*(pool_packed(model, "cls", **batch) for _ in range(2)))


def test_what_cannot_be_packed_is_left_to_the_padded_way():
    model, batch = build("bert"), inputs()
    assert can_pack(model, batch)
    assert not can_pack(model, {"input_ids": batch["input_ids"]})
    assert not can_pack(model, {**batch, "attention_mask": batch["attention_mask"].flip(1)})  # padded on the left
    holes = batch["attention_mask"].clone()
    holes[1, 4] = 0
    assert not can_pack(model, {**batch, "attention_mask": holes})
    assert not can_pack(build("bert", is_decoder=True), batch)
    eager = build("bert")
    eager.config._attn_implementation = "eager"
    assert not can_pack(eager, batch)
    model.gradient_checkpointing_enable()
    assert not can_pack(model, batch)


@pytest.mark.parametrize("bf16", [False, True])
def test_in_bf16_it_is_as_near_to_float32(tmp_path, bf16):
    build("bert").float().save_pretrained(tmp_path)
    model = SentenceEmbeddingModel.from_encoder(str(tmp_path), pooling="cls_before_pooler", dropout=0.0).train()
    batch = {name: ids.unflatten(0, (3, 2)) for name, ids in inputs().items()}

    def gradient(buckets, bf16):
        model.compute = replace(model.compute, length_buckets=buckets)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**batch).loss
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact = gradient(1, False)
    bound = 1.3 * (gradient(1, True) - exact).norm() if bf16 else GRADIENT * noise(1.0) * exact.norm()
    use_fast_paths(model)
    assert (gradient(None, bf16) - exact).norm() < bound
