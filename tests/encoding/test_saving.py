"""`SentenceEncoder.save_pretrained` and `push_to_hub`, and the spellings of sentence-transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import AutoModel

from cacse_trainer import CacseBertModel, SentenceEmbeddingModel, SentenceEncoder
from cacse_trainer.encoding import encoder as encoders
from cacse_trainer.encoding.sentence_transformers import Normalize, list_modules, write_layers, write_modules
from cacse_trainer.encoding.weighted import WeightedEncoders
from cacse_trainer.errors import UserError
from cacse_trainer.models.modeling_static import OURS, StaticTable
from tests.tiny_decoders import make_tiny_decoder

SENTENCES = ["a man is playing guitar", "the DOG", "", "a woman and a cat are running in the big house"]


def same(encoder: SentenceEncoder, folder: Path, **loading) -> SentenceEncoder:
    """The encoder saved and loaded again; sentence-transformers reads the same vectors of the folder."""
    encoder.save_pretrained(folder)
    again = SentenceEncoder.from_pretrained(folder, device="cpu")
    vectors = encoder.encode(SENTENCES)
    assert np.abs(again.encode(SENTENCES) - vectors).max() < 1e-5
    theirs = SentenceTransformer(str(folder), device="cpu").encode(SENTENCES, normalize_embeddings=True)
    assert np.abs(theirs - vectors).max() < 1e-5
    return again


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token", "weighted_mean", "max", "cls_with_mlp"])
def test_a_stated_pooling_is_kept(tiny_towers, tmp_path, pooling):
    again = same(SentenceEncoder(tiny_towers("bert")[0], pooling, device="cpu"), tmp_path / "saved")
    assert again.pooling == pooling
    AutoModel.from_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert f"Pooling: **{pooling}**" in card and "library_name: sentence-transformers" in card


def test_everything_that_a_folder_states_is_kept(tiny_towers, tiny_tokenizer, tmp_path):
    """Layers above, scaling, length, prompts and their default, lower case; and the first dimensions alone."""
    folder = tmp_path / "start"
    AutoModel.from_pretrained(tiny_towers("bert")[0]).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(32, 24), nn.ReLU()), Normalize(), nn.Sequential(nn.Linear(24, 16), nn.Identity())]
    prompts = {"query": "a big ", "document": "the red "}
    stated = {"prompts": prompts, "prompt": "the red ", "lower_case": True}
    write_modules(folder, pooling="mean", hidden_size=32, max_seq_length=7, layers=[*layers, Normalize()], **stated)
    encoder = SentenceEncoder(folder, device="cpu", truncate_dim=8)
    assert encoder.normalizes and encoder.stated.prompt == "the red " and len(encoder.layers_above) == 3
    encoder.max_seq_length = 6
    again = same(encoder, tmp_path / "saved")
    assert again.max_seq_length == 6 and again.normalizes and again.prompts == encoder.prompts
    assert again.get_sentence_embedding_dimension() == 8 and again.stated.prompt == "the red "
    query = encoder.encode(SENTENCES, prompt_name="query")
    assert np.abs(again.encode(SENTENCES, prompt_name="query") - query).max() < 1e-5
    encoder.save_pretrained(tmp_path / "saved")  # over its own earlier folder


def test_a_static_table(tiny_tokenizer, tmp_path):
    folder = tmp_path / "static"
    folder.mkdir()
    save_file({OURS: torch.randn(len(tiny_tokenizer), 6)}, folder / "model.safetensors")
    tiny_tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    modules = {".": "StaticEmbedding"}
    write_layers(folder, modules, [Normalize()])
    list_modules(folder, modules, 1000)
    again = same(SentenceEncoder(folder, device="cpu", truncate_dim=4), tmp_path / "saved")
    assert isinstance(again.model, StaticTable) and again.get_sentence_embedding_dimension() == 4


def test_training_models(tiny_towers, tiny_tokenizer, tmp_path):
    """Of one with a head the plain encoder and the head; of two towers their sum."""
    a, b, constraint = tiny_towers("bert")
    head = SentenceEmbeddingModel.from_encoder(a, pooling="cls", mlp_only_train=False)
    sum_ = CacseBertModel.from_towers(a, b, constraint=constraint, cascade_start_layer=2, constraint_layers=1)
    for name, model in {"head": head, "sum": sum_}.items():
        model.eval().save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        same(SentenceEncoder(tmp_path / name, device="cpu"), tmp_path / f"{name}_saved")
    assert same(SentenceEncoder(tmp_path / "head", "mean", device="cpu"), tmp_path / "mean").pooling == "mean"


def test_what_has_no_form_is_refused(tiny_towers, tmp_path):
    folder, decoder = tiny_towers("bert")[0], make_tiny_decoder(tmp_path)
    for name, settings, words in (
        (folder, {"pooling": "avg_top2"}, "pooling avg_top2 has no form"),
        (folder, {"pooling": "cls", "dtype": "bf16"}, "load it in float32"),
        (decoder, {"pooling": "mean", "bidirectional_start_layer": 1}, "both directions"),
    ):
        with pytest.raises(UserError, match=words):
            SentenceEncoder(name, device="cpu", **settings).save_pretrained(tmp_path / "saved")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="cannot be replaced"):
        SentenceEncoder(folder, "cls").save_pretrained(tmp_path / "mine")
    assert not (tmp_path / "saved").exists()


def test_pushed_as_saved(tiny_towers, tmp_path, monkeypatch):
    pushed = {}

    def push(folders, target, message, again):
        modules = json.loads((folders[0] / "modules.json").read_text())
        pushed.update(target=target, message=message, kinds=[one["type"].rpartition(".")[2] for one in modules])
        return "there"

    monkeypatch.setattr(encoders, "prepare_repo", lambda target: None)
    monkeypatch.setattr(encoders, "push_folders", push)
    encoder = SentenceEncoder(tiny_towers("bert")[0], "cls")
    assert encoder.push_to_hub("me/tiny", token="hf_x", private=True, commit_message="first") == "there"
    target = pushed["target"]
    assert (target.repo_id, target.token, target.private, target.revision) == ("me/tiny", "hf_x", True, None)
    assert pushed["message"] == "first" and pushed["kinds"] == ["Transformer", "Pooling"]


def test_spellings(tiny_towers):
    encoder = SentenceEncoder(tiny_towers("bert")[0], "mean", device="cpu")
    plain = encoder.encode(SENTENCES, normalize=False)
    assert np.array_equal(encoder.encode(SENTENCES, normalize_embeddings=False), plain)
    assert np.array_equal(encoder.encode(SENTENCES, normalize_embeddings=True), encoder.encode(SENTENCES))
    tensor = encoder.encode(SENTENCES, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor) and tensor.device == encoder.device and tensor.shape == plain.shape
    rows = encoder.encode(SENTENCES, convert_to_numpy=False)
    assert isinstance(rows, list) and torch.equal(torch.stack(rows), tensor)
    assert encoder.encode("a", convert_to_numpy=False).shape == (32,)
    assert np.array_equal(encoder.encode(SENTENCES, output_value="sentence_embedding", pool=None), tensor.numpy())
    for name, value in {"output_value": "token_embeddings", "pool": {}, "normalise": True}.items():
        with pytest.raises(UserError, match=f"encode: {name}=.* is not supported; "):
            encoder.encode(SENTENCES, **{name: value})


def test_length_and_width_and_what_is_shown(tiny_towers):
    folder = tiny_towers("bert")[0]
    encoder = SentenceEncoder(folder, "mean", device="cpu", truncate_dim=8)
    shown = f"SentenceEncoder({folder!r}, pooling='mean', max_seq_length=64, dimension=8, device='cpu')"
    assert repr(encoder) == shown
    long = " ".join(["red"] * 20)
    encoder.max_seq_length = 5
    assert np.array_equal(encoder.encode(long), encoder.encode("red red red"))
    assert encoder.recipe()(device="cpu").max_seq_length == 5
    for wrong in (65, 2):
        with pytest.raises(UserError):
            encoder.max_seq_length = wrong
    both = WeightedEncoders([encoder, SentenceEncoder(folder, "cls", device="cpu", truncate_dim=8)])
    assert both.max_seq_length == 5
    both.max_seq_length = 9
    assert encoder.max_seq_length == 9 and "pooling='mean + cls', max_seq_length=9, dimension=" in repr(both)
