"""Weighted ensembles: forward, saved and loaded, exported with one tokenizer and with several, as CACSE+UC is."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, PreTrainedTokenizerFast, RobertaModel

from cacse_trainer import EnsembleModel, SentenceEncoder
from cacse_trainer.cli import export
from cacse_trainer.cli.common import run
from cacse_trainer.encoding.embedder import Embedder, length_limit
from cacse_trainer.encoding.members import load_ensemble, load_members
from cacse_trainer.errors import UserError
from cacse_trainer.models import TokenizerBundle
from cacse_trainer.models.tokenizer_bundle import same_tokens
from tests.conftest import WORDS, tiny_config
from tests.tolerances import assert_near

SENTENCES = ["a man is playing guitar", "the dog", "", "a woman with a blue flute in the park"]


@pytest.fixture
def other(tmp_path) -> str:
    """A RoBERTa whose tokenizer splits into characters, so that its rows are longer and its ids others."""
    vocabulary = {
        "<pad>": 0,
        "<unk>": 1,
        "<s>": 2,
        "</s>": 3,
        **{c: 4 + i for i, c in enumerate(sorted(set("".join(WORDS))))},
    }
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=50,
    )
    torch.manual_seed(9)
    RobertaModel(tiny_config("roberta", vocab_size=len(vocabulary))).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    return str(tmp_path / "other")


def alone(path: str, pooling: str) -> np.ndarray:
    """The vectors of one encoder, each sentence by itself."""
    (member,) = load_members(path, pooling)
    ensemble, tokenizer = load_ensemble([member])
    return np.concatenate([ensemble.embed(**tokenizer([s], return_tensors="pt")).detach().numpy() for s in SENTENCES])


def through(model, tokenizer) -> np.ndarray:
    limit = length_limit(tokenizer, model.config)
    return Embedder(model.embed, tokenizer, limit, "cpu").vectors(SENTENCES)


def test_different_tokenizers(tiny_towers, other, tmp_path):
    """0.25·(A + B) + 0.75·UC: the sum of what each encoder gives alone, also saved, loaded, and listed as a member."""
    a, b, _ = tiny_towers("bert")
    expected = 0.25 * (alone(a, "cls") + alone(b, "cls")) + 0.75 * alone(other, "mean")
    members = [*load_members(a, "cls", 0.25), *load_members(b, "cls", 0.25), *load_members(other, "mean", 0.75)]
    model, tokenizer = load_ensemble(members)
    assert isinstance(tokenizer, TokenizerBundle) and [own.model_max_length for own in tokenizer.tokenizers] == [
        64,
        64,
        50,
    ]
    assert_near(through(model, tokenizer), expected)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_members(str(tmp_path / "saved"))
    assert [part.weight for part, _ in again] == [0.25, 0.25, 0.75]
    assert_near(through(*load_ensemble(again)), expected)
    assert not same_tokens([own for _, own in again])
    with pytest.raises(ValueError, match="encoder_ids are needed"):
        model.embed(torch.ones(1, 3, dtype=torch.long))


def test_export_with_different_tokenizers(tiny_towers, other, tmp_path, dev_file, capsys):
    """The same vectors through SentenceEncoder, AutoModel and sentence-transformers; the card says how."""
    library = pytest.importorskip("sentence_transformers")
    a, b, _ = tiny_towers("bert")
    choices = [
        f"path={a},pooling=cls,weight=0.25",
        f"path={b},pooling=cls,weight=0.25",
        f"path={other},pooling=mean,weight=0.75",
    ]
    flags = ["--encoders", *choices, "--output_dir", str(tmp_path), "--dev_file", f"stsb={dev_file}"]
    assert run(export.main, flags) == 0
    folder = tmp_path / "ensemble"
    expected = 0.25 * (alone(a, "cls") + alone(b, "cls")) + 0.75 * alone(other, "mean")
    card = (folder / "README.md").read_text()
    assert "needs `trust_remote_code=True`" in card.split("## Use")[0] and "A distilled student" in card
    assert "trust_remote_code=True" in card and "SentenceEncoder" in card and "| stsb |" in card
    loaded = library.SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    assert_near(loaded.encode(SENTENCES), expected)
    assert_near(SentenceEncoder(str(folder), device="cpu").encode(SENTENCES, normalize=False), expected)
    assert type(AutoModel.from_pretrained(folder)) is EnsembleModel
    if int(library.__version__.split(".")[0]) >= 6:  # version 5 runs a local folder's own module unasked
        with pytest.raises(Exception, match="trust_remote_code"):
            library.SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("poolings", "own_module"), [(["mean", "mean"], False), (["cls", "mean"], True), (["max", "max"], True)]
)
def test_export_with_one_tokenizer(tiny_towers, tmp_path, poolings, own_module):
    """A sum at each token needs standard modules only; different poolings, or max, the folder's own."""
    library = pytest.importorskip("sentence_transformers")
    a, b, _ = tiny_towers("bert")
    choices = [f"path={path},pooling={pooling}" for path, pooling in zip((a, b), poolings, strict=True)]
    assert run(export.main, ["--encoders", *choices, "--output_dir", str(tmp_path)]) == 0
    expected = sum(alone(path, pooling) for path, pooling in zip((a, b), poolings, strict=True))
    modules = json.loads((tmp_path / "ensemble" / "modules.json").read_text())
    assert (modules[0]["type"] == "ensemble_module.WeightedEncoders") == own_module
    loaded = library.SentenceTransformer(str(tmp_path / "ensemble"), device="cpu", trust_remote_code=own_module)
    assert_near(loaded.encode(SENTENCES), expected)


def test_wrong_members(tiny_towers, capsys, tmp_path):
    a = tiny_towers("bert")[0]
    narrow = tiny_towers("bert", hidden_size=16)[0]
    with pytest.raises(UserError, match=r"one width, got \[32, 16\]"):
        load_ensemble([*load_members(a), *load_members(narrow)])
    assert run(export.main, ["--encoders", "path=x,weigth=2", "--output_dir", str(tmp_path)]) == 2
