"""Encoders over a batch's tokens as a GPU runs them: equal to the padded ones, with a kernel for rows and without."""

import pickle
import sys
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cacse_trainer import CacseBertModel, CacseRobertaModel
from cacse_trainer.compute import bucketing, packing, varlen
from cacse_trainer.compute.fast_paths import AHEAD, run_ahead
from cacse_trainer.compute.packing import FlatRows, can_pack, packed_rows, packed_states
from cacse_trainer.compute.pooling import LAYER_POOLINGS, pool
from cacse_trainer.compute.reading import layer_vectors, packed_tokens, pool_packed
from cacse_trainer.compute.varlen import Bounds, kernel_for, known_tokens, remember_lengths
from cacse_trainer.data import collator
from cacse_trainer.models.conditioning import condition_on
from tests.compute.test_packing import LENGTHS, build, gradients, inputs, without_dropout
from tests.varlen_reference import attention_by_row


@pytest.fixture(params=["by row", "padded attention"])
def road(request, monkeypatch):
    """A device with a kernel, and one without."""
    kernel = attention_by_row if request.param == "by row" else None
    monkeypatch.setattr(varlen, "kernel_for", lambda query, dropout: kernel)
    for module in (packing, bucketing):  # nothing may look at values
        monkeypatch.setattr(module, "on_host", lambda tensor: False)
    return kernel


def counted(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same batch, its lengths known."""
    batch = {name: tensor.clone() for name, tensor in batch.items()}
    remember_lengths(batch["attention_mask"], batch["attention_mask"].sum(-1).numpy())
    return batch


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert {name for name, value in expected.items() if value.any()} == {n for n, v in found.items() if v.any()}
    for name, value in found.items():
        assert torch.allclose(value, expected[name], atol=1e-10), name


@pytest.mark.parametrize("pooling", ["cls", "mean", "avg_embeddings_last"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_first_tokens_all_tokens_and_layers_are_those_of_the_padded_encoder(kind, pooling, road):
    model = without_dropout(build(kind))
    plain = inputs(pad=model.config.pad_token_id)
    plain["input_ids"][1, 2] = model.config.pad_token_id  # RoBERTa counts positions as if it were not there
    if kind == "bert":
        plain["token_type_ids"] = plain["attention_mask"] * (plain["input_ids"] % 2)
    assert not can_pack(model, plain)
    output = model(**plain, output_hidden_states=pooling in LAYER_POOLINGS)
    expected = pool(pooling, output.last_hidden_state, output.hidden_states, plain["attention_mask"])
    batch = counted(plain)
    assert can_pack(model, batch)
    found = pool_packed(model, pooling, **batch)
    assert torch.allclose(found, expected, atol=1e-12)
    same(gradients(model, found), gradients(model, expected))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vectors_of_the_upper_layers(pooling, road):
    model, plain = without_dropout(build("bert")), inputs()
    hidden = model(**plain, output_hidden_states=True).hidden_states[1:]
    expected = torch.stack([pool(pooling, states, attention_mask=plain["attention_mask"]) for states in hidden], dim=1)
    assert torch.allclose(layer_vectors(model, 1, pooling, **counted(plain)), expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_every_token_with_a_vector_in_the_first_one_s_place(kind, road):
    """As DiffCSE's discriminator reads: a head's values at the tokens, nothing at padding."""
    model, plain = without_dropout(build(kind)), inputs()
    vectors = torch.randn(len(LENGTHS), model.config.hidden_size, dtype=torch.float64, requires_grad=True)
    with condition_on(model, vectors, plain["attention_mask"]):
        expected = model(**plain).last_hidden_state[..., :3] * plain["attention_mask"][..., None]
    found = packed_tokens(model, lambda states: states[..., :3], vectors, **counted(plain))
    assert torch.allclose(found, expected, atol=1e-12)
    told, asked = (torch.autograd.grad(one.pow(3).sum(), vectors)[0] for one in (found, expected))
    assert asked.any() and torch.allclose(told, asked, atol=1e-10)


@pytest.mark.parametrize("mini_batch_size", [None, 3])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_both_towers_and_the_cascade_with_frozen_parts(kind, mini_batch_size, road, tmp_path):
    """Five sentences, each seen twice; by gradient caching in four parts."""
    for name in "abc":
        build(kind).save_pretrained(tmp_path / name)
    made = CacseBertModel if kind == "bert" else CacseRobertaModel
    still = {"tower_dropout": [0.0, 0.0], "cascade_dropout": 0.0, "constraint_dropout": 0.0}
    cascade = {"cascade_start_layer": 1, "constraint_layers": 1, "cascade_heads": 2, "freeze_embeddings": True}
    model = made.from_towers(*(str(tmp_path / name) for name in "abc"), **still, **cascade).double().train()
    plain = {name: ids.unflatten(0, (5, 2)) for name, ids in inputs((9, 9, 3, 3, 1, 1, 7, 7, 4, 4)).items()}
    found = {}
    with patch.object(packing, "FlatRows", wraps=FlatRows) as flat:
        for name, buckets, batch in (("padded", 1, plain), ("flat", None, counted(plain))):
            model.compute = replace(model.compute, length_buckets=buckets, mini_batch_size=mini_batch_size)
            model.zero_grad()
            output = model(**batch)
            output.loss.backward()
            grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            found[name] = output.losses, grads, flat.call_count
    losses = found["padded"][0]
    assert {"tower_a", "tower_b", "cascade"} == losses.keys()
    for name, value in found["flat"][0].items():
        assert torch.allclose(value, losses[name], atol=1e-12), name
    same(found["flat"][1], found["padded"][1])
    passes = 2 if mini_batch_size is None else 2 * 4 * 2  # of each tower, each part twice
    assert (found["padded"][2], found["flat"][2]) == (0, passes)


def test_runs_over_tokens_alone_and_the_last_layer_over_first_tokens(road):
    model, batch = build("bert"), counted(inputs())
    seen = []
    for layer in model.encoder.layer:
        layer.output.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    rows = packed_rows(batch, 4)
    assert isinstance(rows, FlatRows)
    packed_states(model, rows, first_only=True)
    assert seen == [sum(LENGTHS)] * (len(seen) - 1) + [len(LENGTHS)]


def test_dropout_is_the_attention_s_own_and_rests_in_evaluation(monkeypatch, road):
    model, batch = build("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5), counted(inputs())
    assert not torch.allclose(*(pool_packed(model, "mean", **batch) for _ in range(2)))
    asked = []
    monkeypatch.setattr(varlen, "kernel_for", lambda query, dropout: asked.append(dropout) or road)
    pool_packed(model, "mean", **batch)
    model.eval()
    assert torch.equal(*(pool_packed(model, "mean", **batch) for _ in range(2)))
    layers = len(model.encoder.layer)
    assert asked == [0.5] * layers + [0.0] * 2 * layers


def test_the_mean_over_dropout_masks_is_the_attention_without_them(road):
    """Inverted dropout of the probabilities: over n draws of p = 1/4 the mean has a variance of w²v²·p/(1 - p)/n."""
    layer = build("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.25).encoder.layer[0].attention.self
    rows, draws = packed_rows(counted(inputs()), 4), 150
    states = torch.randn(sum(LENGTHS), layer.all_head_size, dtype=torch.double)
    with torch.no_grad():
        drawn = torch.stack([rows.attend(layer, states, False) for _ in range(draws)])
        exact = rows.attend(layer.eval(), states, False)
    error = drawn.std(0) / draws**0.5
    assert ((drawn.mean(0) - exact).abs() <= 6 * error + 1e-12).all() and error.max() > 0


def test_lengths_are_known_of_views_alone():
    mask = torch.ones(3, 2, 5, dtype=torch.long)
    assert known_tokens(mask.flatten(0, 1)) is None
    lengths = np.array([[1, 2], [3, 4], [5, 5]])
    remember_lengths(mask, lengths)
    with torch.inference_mode():
        assert known_tokens(mask.flatten(0, 1)) == 20
    flat = mask.flatten(0, 1)
    assert [known_tokens(part) for part in flat.split(2)] == [3, 7, 10] and known_tokens(flat[1:3, :5]) == 5
    for other in (mask, flat[:, :4], flat[::2], flat[[0, 1]], flat.clone(), mask.flatten(1), flat[:, 1:]):
        assert known_tokens(other) is None
    remember_lengths(other_shape := torch.ones(2, 5), lengths)
    assert known_tokens(other_shape) is None
    held = len(varlen._LENGTHS)
    del mask, flat, other
    assert len(varlen._LENGTHS) == held - 1


@pytest.fixture
def cuda(monkeypatch):
    """A GPU that computes nothing: shapes, and what would be called."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    with FakeTensorMode():
        yield lambda dtype=torch.bfloat16, width=64: torch.empty(7, 12, width, dtype=dtype, device="cuda")


def test_which_kernel_is_taken(cuda, monkeypatch):
    assert kernel_for(cuda(), 0.0) is kernel_for(cuda(torch.float16), 0.0) is varlen._by_torch
    assert kernel_for(cuda(), 0.1) is kernel_for(cuda(torch.float32), 0.0) is None  # torch's has no dropout
    assert kernel_for(cuda(width=12), 0.0) is kernel_for(cuda(width=264), 0.0) is None
    assert kernel_for(torch.empty(7, 12, 64, dtype=torch.bfloat16), 0.0) is None
    with monkeypatch.context() as older:
        older.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert kernel_for(cuda(), 0.0) is None
    monkeypatch.setattr(varlen, "flash_attention", lambda: print)
    assert kernel_for(cuda(), 0.1) is kernel_for(cuda(), 0.0) is varlen._by_flash_attention
    assert kernel_for(cuda(torch.float32), 0.1) is None
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        assert kernel_for(cuda(), 0.0) is None
    finally:
        torch.backends.cuda.enable_flash_sdp(True)


def test_torch_s_kernel_takes_what_it_is_given():
    """Shapes alone, forward and backward: three first tokens ask the tokens of their rows."""
    query, key = (torch.empty(n, 12, 64, dtype=torch.bfloat16, device="meta", requires_grad=True) for n in (3, 7))
    at = torch.empty(4, dtype=torch.int32, device="meta")
    found = varlen._by_torch(query, key, key, Bounds(at, 1), Bounds(at, 5), 0.0, 0.125)
    assert found.shape == query.shape
    found.sum().backward()
    assert key.grad.shape == key.shape


def test_flash_attention_gets_its_arguments_by_their_names(monkeypatch):
    taken = {}

    def flash_attn_varlen_func(  # as in flash-attn 2
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        taken.update(locals())
        return q

    module = type("flash_attn", (), {"flash_attn_varlen_func": staticmethod(flash_attn_varlen_func)})
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(varlen, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(varlen, "flash_attention", varlen.flash_attention.__wrapped__)
    q, k, v, at, more = (torch.full((1,), number) for number in range(5))
    varlen._by_flash_attention(q, k, v, Bounds(at, 1), Bounds(more, 9), 0.1, 0.5)
    order = ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k")
    assert [int(taken[name]) for name in order] == [0, 1, 2, 3, 4]
    assert (taken["max_seqlen_q"], taken["max_seqlen_k"]) == (1, 9) and not taken["causal"]
    assert (taken["dropout_p"], taken["softmax_scale"], taken["deterministic"]) == (0.1, 0.5, False)


def test_a_flash_attention_that_does_not_do_is_left_out(monkeypatch, caplog):
    """One built for another PyTorch does not load; one before 2.4.1 knows no ``deterministic``."""
    look = varlen.flash_attention.__wrapped__
    monkeypatch.setattr(varlen, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert look() is None and "flash-attn is installed and cannot be loaded" in caplog.text
    older = type("flash_attn", (), {"flash_attn_varlen_func": staticmethod(lambda q, k, v: q)})
    monkeypatch.setitem(sys.modules, "flash_attn", older)
    assert look() is None


def test_bf16_is_as_near_to_float32_as_the_padded_way(monkeypatch):
    """By the kernel in half precision, whose products and softmax round at other places than the padded attention's."""
    monkeypatch.setattr(varlen, "kernel_for", lambda query, dropout: attention_by_row)
    model, plain = without_dropout(build("bert")).float(), inputs()

    def gradient(batch, packed, bf16):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            states = model(**batch).last_hidden_state[:, 0] if not packed else pool_packed(model, "cls", **batch)
        states.float().sin().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact = gradient(plain, False, False)
    bound = 1.3 * (gradient(plain, False, True) - exact).norm()
    assert 0 < (gradient(counted(plain), True, True) - exact).norm() < bound


def test_an_encoder_that_was_told_to_run_ahead_is_packed():
    model, batch = build("bert"), counted(inputs())
    run_ahead(model)
    assert model.config._attn_implementation == AHEAD and can_pack(model, batch)


def test_the_collator_counts_rows_that_are_padded_on_the_right(tiny_tokenizer):
    rows = [{"anchor": "a red dog", "positive": "a dog"}, {"anchor": "", "positive": "dog dog dog dog"}]
    plain = collator.ContrastiveCollator(tiny_tokenizer)
    batch = pickle.loads(pickle.dumps(varlen.CountedRows(plain)))(rows)
    lengths = batch.pop(varlen.LENGTHS)
    assert batch.keys() == plain(rows).keys()
    assert np.array_equal(lengths["attention_mask"], batch["attention_mask"].sum(-1)) and len(lengths) == 1
    left, empty = batch["attention_mask"].flip(-1), batch["attention_mask"].clone()
    empty[0, 1] = 0
    made = {"attention_mask": left, "guide_attention_mask": batch["attention_mask"], "teacher_attention_mask": empty}
    assert varlen.CountedRows(lambda rows: made)(rows)[varlen.LENGTHS].keys() == {"guide_attention_mask"}
