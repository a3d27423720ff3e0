"""The exported single tower gives the trained model's vectors, in transformers and in sentence-transformers."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from cacse_trainer.encoding.model_card import CardFacts
from cacse_trainer.errors import UserError
from cacse_trainer.export.single_tower import export_single_tower
from cacse_trainer.models import SentenceEmbeddingModel
from tests.tolerances import assert_near

SENTENCES = ["a man is playing guitar", "the dog", "a woman with a blue flute in the park"]


def export(model, tokenizer, folder):
    export_single_tower(model, tokenizer, folder, CardFacts(title="tiny", what=""))
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
    assert "dense layer and tanh" in (folder / "README.md").read_text()


@pytest.mark.parametrize("settings", [{"pooling": "avg_top2"}, {"projection": "batch_norm"}])
def test_what_has_no_plain_form(tiny_towers, tiny_tokenizer, tmp_path, settings):
    model = SentenceEmbeddingModel.from_encoder(tiny_towers("bert")[0], **settings)
    with pytest.raises(UserError, match=r"choose one of cls, |set mlp_only_train"):
        export(model, tiny_tokenizer, tmp_path)
    assert not any(tmp_path.iterdir())
