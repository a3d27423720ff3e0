"""A sentence's vector is its own: the same alone and in any batch, and zeros where there is nothing."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    MPNetConfig,
    MptConfig,
    OpenAIGPTConfig,
    RobertaModel,
    RoFormerConfig,
    T5Config,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from cacse_trainer import SentenceEncoder
from cacse_trainer.data import ContrastiveCollator
from cacse_trainer.encoding.embedder import Embedder, position_limit
from cacse_trainer.encoding.members import load_ensemble, load_members
from cacse_trainer.encoding.model_card import CardFacts
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.sts import score_pairs
from cacse_trainer.export.encoders import export
from cacse_trainer.models import SentenceEmbeddingModel
from tests.conftest import WORDS, tiny_config
from tests.data.test_tokens import byte_level
from tests.tolerances import noise

SENTENCES = ["the dog", "the man is playing the guitar in the park with a red cat"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}


def make(kind: str, tokenizer, folder) -> str:
    """Folder of a model whose vectors depend much on positions, its tokenizer with padding on the left."""
    torch.manual_seed(0)
    vocabulary = len(tokenizer) if kind == "gpt2" else len(WORDS) + 5
    model = {
        "bert": lambda: BertModel(BertConfig(vocab_size=vocabulary, intermediate_size=32, **SIZES)),
        "distilbert": lambda: DistilBertModel(DistilBertConfig(vocab_size=vocabulary, **DISTIL)),
        "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=vocabulary, n_positions=80, **IDS, **SIZES)),
        "roberta": lambda: RobertaModel(tiny_config("roberta", layers=2)),
        "xlm-roberta": lambda: XLMRobertaModel(
            XLMRobertaConfig(**{**tiny_config("roberta", layers=2).to_dict(), "model_type": "xlm-roberta"})
        ),
    }[kind]()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "initializer_range": 0.3}


@pytest.fixture
def left(tiny_tokenizer):
    tiny_tokenizer.padding_side = tiny_tokenizer.init_kwargs["padding_side"] = "left"
    yield tiny_tokenizer
    tiny_tokenizer.padding_side = tiny_tokenizer.init_kwargs["padding_side"] = "right"


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2"])
def test_alone_and_in_a_batch(left, tmp_path, kind):
    """Files that name the left side, of models that number positions from the first column; its export names none."""
    folder = make(kind, byte_level(padding_side="left") if kind == "gpt2" else left, tmp_path / kind)
    encoder = SentenceEncoder(folder, "mean", "cpu")
    assert encoder.tokenizer.padding_side == "left"
    alone = np.stack([encoder.encode(sentence) for sentence in SENTENCES])
    assert np.abs(encoder.encode(SENTENCES) - alone).max() < noise(1.0)
    model = SentenceEmbeddingModel.from_encoder(folder, pooling="mean")
    export(model, encoder.tokenizer, tmp_path, CardFacts(title="tiny", what=""))
    library = pytest.importorskip("sentence_transformers").SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    assert np.abs(library.encode(SENTENCES, normalize_embeddings=True) - alone).max() < noise(1.0)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_text_that_holds_the_padding_token(tiny_tokenizer, tmp_path, kind, pooling):
    """Transformers gives it the padding's position and does not count it; so does the export that others load."""
    encoder = SentenceEncoder(make(kind, tiny_tokenizer, tmp_path), pooling, "cpu")
    model = AutoModel.from_pretrained(tmp_path).eval()
    sentences = ["the [PAD] dog", "the dog is [PAD] red and [PAD] big", "red"]
    for sentence, vector in zip(sentences, encoder.encode(sentences, normalize=False), strict=True):
        inputs = tiny_tokenizer(sentence, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            states = model(**inputs).last_hidden_state[0]
        expected = states[0] if pooling == "cls" else states.mean(dim=0)
        assert np.abs(vector - expected.numpy()).max() < noise(32**0.5)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> str:
    return make("gpt2", byte_level(), tmp_path_factory.mktemp("gpt2"))


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "last_token", "weighted_mean", "avg_first_last"])
def test_nothing_is_zeros(gpt2, pooling):
    encoder = SentenceEncoder(gpt2, pooling, "cpu")
    assert not encoder.encode("").any()
    assert encoder.encode(["", *SENTENCES]).any(axis=1).tolist() == [False, True, True]
    assert encoder.similarity("", SENTENCES).tolist() == [0, 0] and encoder.similarity("", "") == 0
    encoder.build_index(["", *SENTENCES])
    assert [score for _, score in encoder.search("", top_k=3, threshold=-1.0)] == [0, 0, 0]
    assert abs(encoder.search(SENTENCES[0], top_k=1)[0][1] - 1) < noise(1.0)  # by cls the other begins alike: a tie
    pairs = {"sentence1": ["", *SENTENCES], "sentence2": [SENTENCES[1], *SENTENCES], "score": [0.0, 5.0, 4.0]}
    assert np.isfinite(list(score_pairs(encoder.embedder, Dataset.from_dict(pairs)).values())).all()


@pytest.mark.parametrize("pooling", ["mean", "max", "last_token"])
def test_nothing_in_training(gpt2, pooling):
    """Beside sentences, and in a batch that has nothing else."""
    model = SentenceEmbeddingModel.from_encoder(gpt2, pooling=pooling).train()
    for texts in (["", *SENTENCES], ["", ""]):
        output = model(**ContrastiveCollator(byte_level(), 16)([{"text": text} for text in texts]))
        assert not output.embeddings[0].any()
        model.zero_grad()
        output.loss.backward()
        assert torch.isfinite(output.loss) and all(
            torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None
        )


def test_nothing_for_tokenizers_of_their_own(gpt2, tiny_tokenizer, tmp_path):
    """For one encoder alone, and for all; the exported ensemble's own module says the same."""
    bert = make("bert", tiny_tokenizer, tmp_path / "bert")
    other = make("gpt2", byte_level(additional_special_tokens=["<x>"]), tmp_path / "other")
    parts = [*load_members(gpt2, "max"), *load_members(other, "last_token")]
    for members, any_token in (([*parts, *load_members(bert, "mean")], True), (parts, False)):
        model, tokenizer = load_ensemble(members)
        embedder = Embedder(model.embed, tokenizer, 64 if any_token else 80, "cpu")
        alone = embedder.vectors([""])
        assert alone.any() == any_token
        assert np.abs(embedder.vectors(["", *SENTENCES])[0] - alone[0]).max() < noise(1.0)
    export(model, tokenizer, tmp_path, CardFacts(title="tiny", what=""))
    library = pytest.importorskip("sentence_transformers")
    module = library.SentenceTransformer(str(tmp_path / "ensemble"), device="cpu", trust_remote_code=True)
    assert not module.encode([""]).any()
    assert np.abs(module.encode(["", *SENTENCES]) - embedder.vectors(["", *SENTENCES])).max() < noise(32**0.5)


def test_positions_by_whatever_name():
    assert (
        position_limit(GPT2Config(n_positions=1024)) == position_limit(GPT2Config(n_positions=2048, n_ctx=1024)) == 1024
    )
    assert position_limit(OpenAIGPTConfig()) == 512 and position_limit(MptConfig(max_seq_len=100)) == 100
    assert position_limit(T5Config(n_positions=512)) == position_limit(T5Config()) == 1_000_000
    assert position_limit(MPNetConfig(max_position_embeddings=514, pad_token_id=1)) == 512
    assert position_limit(XLMRobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512
    assert position_limit(RoFormerConfig(max_position_embeddings=64)) == 64  # numbers them from 0


def test_a_text_beyond_the_positions(gpt2):
    encoder = SentenceEncoder(gpt2, "mean", "cpu")
    assert encoder.max_seq_length == 80
    assert np.array_equal(encoder.encode("the dog " * 100), encoder.encode("the dog " * 200))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": -1}, "batch_size is -1; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_length": 0}, "max_seq_length 0 leaves no room for text beside 11 special tokens; give at least 12"),
        ({"max_length": 11}, "give at least 12"),
        ({"max_length": 81}, "beyond the 80 tokens"),
    ],
)
def test_numbers_that_are_too_small(gpt2, settings, words):
    encoder = SentenceEncoder(gpt2, "mean", "cpu", prompt_template="one word of {text}")
    with pytest.raises(UserError, match=words):
        encoder.encode(SENTENCES, **settings)
    with pytest.raises(UserError, match=words):
        list(encoder.encode_stream(SENTENCES, **settings))


def test_a_limit_without_room_is_refused_when_a_model_is_loaded(gpt2):
    with pytest.raises(UserError, match=r"max_seq_length 7 leaves no room .* give at least 12"):
        SentenceEncoder(gpt2, "mean", "cpu", prompt_template="one word of {text}", max_seq_length=7)
    for number in (0, -1):
        with pytest.raises(UserError, match="tokens_per_batch is"):
            SentenceEncoder(gpt2, "mean", "cpu", tokens_per_batch=number).encode("a")
        with pytest.raises(UserError, match="block_size is"):
            list(SentenceEncoder(gpt2, "mean", "cpu").encode_stream(["a"], number))


@pytest.mark.parametrize("wrong", [None, float("nan"), "\ud800", 5, b"a", ["a"]])
def test_what_is_no_sentence_is_named(gpt2, wrong):
    encoder = SentenceEncoder(gpt2, "mean", "cpu")
    for sentences in (["a", "the", "a", wrong], iter(["a", "the", "a", wrong])):
        with pytest.raises(UserError, match=r"sentences\[3\] (is .*, not a string|holds .* half of a character)"):
            encoder.encode(sentences)
    with pytest.raises(UserError, match=r"sentences\[3\]"):
        encoder.vectors(["a", "the", "a", wrong])
    if not isinstance(wrong, list):
        with pytest.raises(UserError, match=r"sentences\[0\]"):
            encoder.encode(wrong)
        with pytest.raises(UserError, match=r"sentences\[0\]"):
            encoder.similarity("a", wrong)
