"""BeLLM's layers: golden values, padding on either side without effect, every start layer, what is refused."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cacse_trainer.models import SentenceEmbeddingModel
from cacse_trainer.models.bidirectional import KINDS, without_direction
from tests.conftest import GOLDEN
from tests.tolerances import assert_near

FOLDER = str(GOLDEN / "bellm")


def load(start: int | None, **more) -> SentenceEmbeddingModel:
    more = {"pooling": "last_token", **more}
    return SentenceEmbeddingModel.from_encoder(FOLDER, bidirectional_start_layer=start, **more).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("case", "start"), [("start_3", 3), ("causal", None)])
def test_golden(case, start, side, attention):
    """Rows without padding as in the release; rows with padding as without it, where the release differs."""
    golden = load_file(GOLDEN / "bellm" / f"{case}.safetensors")
    model = load(start, attn_implementation=attention)
    ids, mask = (golden[f"input.{side}.{name}"] for name in ("input_ids", "attention_mask"))
    output = model(ids, mask)
    whole = mask.all(dim=1)
    assert whole.tolist() == [True, False, False, False]
    expected = golden[f"{side}.last_hidden_state"][whole]
    assert_near(output.last_hidden_state[whole], expected)
    single = golden["single.pool.last"]
    assert_near(output.sentence_embedding, single)
    for row, real in zip(ids, mask, strict=True):
        alone = model(row[real.bool()][None]).last_hidden_state
        batched = output.last_hidden_state[(ids == row).all(dim=1)][0][real.bool()]
        assert_near(alone[0], batched)


@pytest.mark.parametrize("start", range(5))
def test_what_each_layer_sees(start):
    """A later word changes an earlier one's state from the start layer on; in the last token all is seen anyway."""
    model = load(start)
    ids = torch.arange(10, 18)[None]
    changed = ids.clone()
    changed[0, -1] = 99
    states = [model.encoder(row, output_hidden_states=True).hidden_states for row in (ids, changed)]
    moved = [not torch.equal(a[0, 0], b[0, 0]) for a, b in zip(*states, strict=True)]
    assert moved == [layer > start for layer in range(5)]  # hidden_states[k] comes out of layer k - 1


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind):
    """Of every kind: padding on either side, sdpa and eager alike, and the layers' direction."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.2,
        pad_token_id=0,
        sliding_window=4,  # the row is longer: bidirectional layers see past the window
    )
    plain = AutoModel.from_config(config, attn_implementation="eager").eval()
    ids = torch.randint(3, 100, (1, 9))
    found = []
    for attention in ("eager", "sdpa") if kind != "gemma2" else ("eager",):  # its soft cap is eager's
        settings = {"pooling": "mean", "bidirectional_start_layer": 1, "attn_implementation": attention}
        model = SentenceEmbeddingModel(SentenceEmbeddingModel.config_class(config, **settings)).eval()
        model.encoder.load_state_dict(plain.state_dict())
        for padding in ((0, 0), (4, 0), (0, 4)):
            padded = torch.nn.functional.pad(ids, padding)
            mask = torch.nn.functional.pad(torch.ones_like(ids), padding)
            found.append(model.embed(padded, mask))
    for vector in found[1:]:
        assert_near(vector, found[0])
    assert not torch.allclose(plain(ids).last_hidden_state.mean(dim=1), found[0], atol=1e-2)


def test_flash_attention_is_told(monkeypatch):
    """Its kernels get the (B, L) mask as it is, and no causal flag in the layers from the start on."""
    seen = []

    def kernel(module, query, key, value, attention_mask, **more):
        seen.append((module.layer_idx, module.is_causal, attention_mask))
        return value.transpose(1, 2).contiguous(), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "eager", kernel)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", kernel)
    model = load(2)
    model.encoder.config._attn_implementation = "flash_attention_2"
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    model.embed(torch.full((2, 4), 5), mask)
    assert [(layer, causal) for layer, causal, _ in seen] == [(0, True), (1, True), (2, False), (3, False)]
    assert all(torch.equal(given.bool(), mask.bool()) for *_, given in seen)


def test_saved_and_loaded(tmp_path):
    model = load(2)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    ids = torch.arange(3, 12)[None]
    assert again.config.bidirectional_start_layer == 2
    assert torch.equal(again.embed(ids), model.embed(ids))
    assert not torch.allclose(load(None).embed(ids), model.embed(ids), atol=1e-3)


def test_masks():
    causal = torch.ones(3, 3).tril().bool()[None, None] & torch.tensor([False, True, True])
    assert without_direction(causal)[0, 0].tolist() == [[False, True, True]] * 3
    added = torch.where(causal, 0.0, torch.finfo(torch.float32).min)
    assert torch.equal(without_direction(added) == 0, without_direction(causal))
    assert without_direction(None) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bidirectional_start_layer": 5}, "within 0 and 4, the number of layers, got 5"),
        ({"bidirectional_start_layer": -1}, "within 0 and 4"),
        ({"bidirectional_start_layer": 1, "attn_implementation": "flex_attention"}, "flex_attention keeps masks"),
    ],
)
def test_refusals(settings, words):
    with pytest.raises(ValueError, match=words):
        SentenceEmbeddingModel.from_encoder(FOLDER, pooling="mean", **settings)


def test_other_kinds_are_refused(tiny_towers):
    with pytest.raises(ValueError, match="bert is no decoder known to it; choose llama, mistral"):
        SentenceEmbeddingModel.from_encoder(tiny_towers("bert")[0], pooling="mean", bidirectional_start_layer=1)
