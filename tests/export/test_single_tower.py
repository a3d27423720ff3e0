"""The exported single tower gives the trained model's vectors, in transformers and in sentence-transformers."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, PreTrainedModel

from cacse_trainer.data import load_pairs
from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.encoding.model_card import CardFacts
from cacse_trainer.errors import UserError
from cacse_trainer.export import encoders
from cacse_trainer.models import SentenceEmbeddingModel
from tests.tolerances import assert_near

SENTENCES = ["a man is playing guitar", "the dog", "a woman with a blue flute in the park"]


def export(model, tokenizer, folder):
    encoders.export(model, tokenizer, folder, CardFacts(title="tiny", what=""))
    return folder / "encoder"


def vectors(model, tokenizer) -> np.ndarray:
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval().embed(**inputs).numpy()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize(
    "settings",
    [
        {"mlp_only_train": False},
        {"mlp_only_train": True},
        {"pooling": "cls_before_pooler"},
        {"pooling": "avg"},
        {"pooling": "max"},
        {"pooling": "last_token"},
        {"projection": "batch_norm", "mlp_only_train": True},
    ],
)
def test_sentence_transformers_gives_the_same(tiny_towers, tiny_tokenizer, tmp_path, kind, settings):
    library = pytest.importorskip("sentence_transformers")
    model = SentenceEmbeddingModel.from_encoder(tiny_towers(kind)[0], dropout=0.3, **settings)
    folder = export(model, tiny_tokenizer, tmp_path)
    loaded = library.SentenceTransformer(str(folder), device="cpu")
    assert_near(loaded.encode(SENTENCES), vectors(model, tiny_tokenizer))


def test_head_is_the_pooler(tiny_towers, tiny_tokenizer, tmp_path):
    """As in the released supervised models: ``pooler_output`` is the embedding, and dropout is what it was."""
    model = SentenceEmbeddingModel.from_encoder(tiny_towers("bert")[0], dropout=0.3)
    folder = export(model, tiny_tokenizer, tmp_path)
    plain = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found = plain(**tiny_tokenizer(SENTENCES, padding=True, return_tensors="pt")).pooler_output.numpy()
    assert_near(found, vectors(model, tiny_tokenizer))
    assert plain.config.hidden_dropout_prob == 0.0 and model.encoder.config.hidden_dropout_prob == 0.3
    card = (folder / "README.md").read_text()
    assert "dense layer and tanh" in card and "Pooling: **cls_with_mlp**." in card


def test_what_has_no_plain_form(tiny_towers, tiny_tokenizer, tmp_path):
    model = SentenceEmbeddingModel.from_encoder(tiny_towers("bert")[0], projection="batch_norm")
    with pytest.raises(UserError, match="set mlp_only_train"):
        export(model, tiny_tokenizer, tmp_path)
    assert not any(tmp_path.iterdir())


def test_compared_and_scored_on_the_models_device(tiny_towers, tiny_tokenizer, tmp_path, dev_file, monkeypatch):
    """The written folder is loaded to where the model is; proof and scores are told that device."""
    there = torch.device("meta")
    seen = []

    def vectors(self, sentences, **settings):
        if seen:  # the first is the trained model itself, which is not really there
            ids = torch.ones(1, 3, dtype=torch.long, device=self.device)
            assert self.embed(input_ids=ids).device == there
        seen.append(self.device)
        return np.random.default_rng(0).normal(size=(len(sentences), 4)).astype(np.float32)

    model = SentenceEmbeddingModel.from_encoder(tiny_towers("bert")[0], pooling="cls", mlp_only_train=False)
    monkeypatch.setattr(PreTrainedModel, "device", property(lambda self: there))
    monkeypatch.setattr(Embedder, "vectors", vectors)
    facts = CardFacts(title="tiny", what="")
    scores = encoders.export(model, tiny_tokenizer, tmp_path, facts, {"stsb": load_pairs(dev_file)})
    assert seen == [there] * 3 and scores["encoder"].keys() == {"stsb"}
