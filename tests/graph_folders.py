"""Small exported folders of which graphs are made."""

from pathlib import Path

from transformers import LlamaConfig, LlamaModel

from cacse_trainer.encoding.model_card import CardFacts
from cacse_trainer.export.encoders import export
from cacse_trainer.models import SentenceEmbeddingModel
from tests.data.test_tokens import byte_level


def make_folder(tiny_towers, tiny_tokenizer, where: Path, kind: str = "bert", **settings) -> Path:
    """An encoder of 2 layers; ``settings``: its pooling."""
    model = SentenceEmbeddingModel.from_encoder(tiny_towers(kind, layers=2)[0], **settings)
    export(model, tiny_tokenizer, where, CardFacts(title="tiny", what=""))
    return where / "encoder"


def decoder_folder(where: Path) -> Path:
    """A decoder read by its last token, whose tokenizer gives no token for no text."""
    tokenizer = byte_level()
    config = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    plain = LlamaModel(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=400, pad_token_id=0, **config))
    plain.save_pretrained(where / "llama")
    model = SentenceEmbeddingModel.from_encoder(str(where / "llama"), pooling="last_token")
    export(model, tokenizer, where, CardFacts(title="tiny", what=""))
    return where / "encoder"
