"""CACSE and TNCSE with towers of the kinds that people have, through the whole road."""

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel

from cacse_trainer import CacseConfig, TncseModel
from cacse_trainer.models import CacseModel
from cacse_trainer.models.layers import KINDS, fresh_layers, last_layers, layers_in, run_alone
from cacse_trainer.models.modeling_cacse import cacse_class
from tests.conftest import WORDS, StopAt
from tests.models.test_cacse import batch

SIZES = {"vocab_size": len(WORDS) + 5, "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.2}
SIZES |= {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
DISTIL = {"dim": 24, "n_layers": 3, "n_heads": 2, "hidden_dim": 32}
MORE = {
    "distilbert": {**{name: SIZES[name] for name in list(SIZES)[:4]}, **DISTIL},
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True},
    "electra": {**SIZES, "embedding_size": 16},
    "modernbert": {**SIZES, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
    "eurobert": {**SIZES, "bos_token_id": 2, "eos_token_id": 3, "num_key_value_heads": 1},
}
OTHERS = [kind for kind in KINDS if kind not in ("bert", "roberta")]


def folders(kind, tmp_path, tokenizer):
    """Two random towers of a kind, with their tokenizer."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(str(tmp_path / f"{kind}-{seed}"))
        AutoModel.from_config(AutoConfig.for_model(kind, **MORE.get(kind, SIZES))).save_pretrained(found[-1])
        tokenizer.save_pretrained(found[-1])
    return found


@pytest.fixture
def towers(request, tmp_path, tiny_tokenizer):
    return folders(request.param, tmp_path, tiny_tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_alone_are_the_encoders_own(kind):
    """Of texts of one token: there is one position, and attention has weight 1 whatever it knows of distances."""
    torch.manual_seed(0)
    encoder = AutoModel.from_config(AutoConfig.for_model(kind, **MORE.get(kind, SIZES))).double().eval()
    ids = torch.arange(5, 11).reshape(6, 1)
    states = encoder(input_ids=ids, output_hidden_states=True).hidden_states
    norm = {"modernbert": "final_norm", "eurobert": "norm"}.get(kind)
    expected = encoder(input_ids=ids).last_hidden_state
    found = run_alone(last_layers(encoder, 1), encoder.config, states[-2])
    if norm is not None:
        found = encoder.get_submodule(norm)(found)
    assert torch.allclose(found, expected, atol=1e-12)
    fresh = fresh_layers(encoder.config, 2)
    fresh.load_state_dict(last_layers(encoder, 2).state_dict())
    assert torch.equal(
        run_alone(fresh.double().eval(), encoder.config, states[-3]),
        run_alone(last_layers(encoder, 2), encoder.config, states[-3]),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_side_by_side_have_no_order(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **MORE.get(kind, SIZES))
    layers = fresh_layers(AutoModel.from_config(config).config, 2).double().eval()
    vectors, order = torch.randn(1, 7, 24, dtype=torch.float64), torch.randperm(7)
    whole = run_alone(layers, config, vectors)
    assert torch.allclose(run_alone(layers, config, vectors[:, order]), whole[:, order], atol=1e-12)
    assert not torch.allclose(run_alone(layers, config, vectors[:, :3]), whole[:, :3])  # but they see each other


@pytest.mark.parametrize("towers", OTHERS, indirect=True)
def test_the_cascade_starts_above_frozen_layers(towers):
    kind = AutoConfig.from_pretrained(towers[0]).model_type
    model = cacse_class(AutoConfig.from_pretrained(towers[0])).from_towers(
        *towers, cascade_start_layer=2, constraint_layers=1, freeze_embeddings=True
    )
    assert type(model) is CacseModel and kind in OTHERS
    output = model.train()(**batch())
    output.loss.backward()
    frozen = [any(p.requires_grad for p in layer.parameters()) for layer in layers_in(model.tower_a)]
    assert frozen == [False, False, True]
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    inputs = {name: tensor[:, 0] for name, tensor in batch().items()}
    model.eval()
    first = model(**batch()).tower_a_embeddings[:, 0]
    alone = model.tower_a(**inputs).last_hidden_state[:, 0]
    assert torch.allclose(first, alone, atol=1e-5)


@pytest.mark.parametrize("towers", OTHERS, indirect=True)
@pytest.mark.parametrize("method", ["cacse", "tncse"])
@pytest.mark.slow
def test_the_whole_road(towers, method, make_trainer, tmp_path):
    """Trained, resumed bitwise, exported, read by sentence-transformers; saved and loaded as itself."""

    def build():
        torch.manual_seed(3)
        if method == "tncse":
            return TncseModel.from_towers(*towers, tower_dropout=[0.1, 0.1])
        config = AutoConfig.from_pretrained(towers[0])
        settings = {"cascade_start_layer": 2, "constraint_layers": 1, "tower_dropout": [0.1, 0.1]}
        return cacse_class(config).from_towers(*towers, **settings)

    whole = make_trainer("whole", model=build(), max_steps=4)
    whole.train()
    make_trainer("cut", model=build(), max_steps=4, callbacks=[StopAt(2)]).train()
    resumed = make_trainer("cut", model=build(), max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    text = ["the cat sat", "a dog"]
    whole.export(tmp_path / "exported")
    for name in ("tower_a", "tower_b"):
        found = SentenceTransformer(str(tmp_path / "exported" / name), device="cpu").encode(
            text, convert_to_tensor=True
        )
        tower = whole.model.get_submodule(name).eval()
        rows = whole.processing_class(text, padding=True, return_tensors="pt")
        known = {key: rows[key] for key in ("input_ids", "attention_mask")}
        assert torch.allclose(found, tower(**known).last_hidden_state[:, 0], atol=1e-5)
    whole.model.save_pretrained(tmp_path / "saved")
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    assert type(loaded) is type(whole.model)
    assert torch.allclose(loaded.eval()(**batch()).loss, whole.model.eval()(**batch()).loss)


def test_a_kind_that_is_not_known_is_refused_by_name():
    with pytest.raises(ValueError, match=r"layers of a albert are not known.*bert.*modernbert"):
        cacse_class(AutoConfig.for_model("albert"))
    config = AutoConfig.for_model("albert", **{**SIZES, "num_hidden_layers": 3})
    with pytest.raises(ValueError, match="albert"):
        CacseModel(CacseConfig(config, config, config, cascade_start_layer=1, constraint_layers=1))
