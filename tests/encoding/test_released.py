"""The field's released models are read as they were released, by every loader, from the one table."""

import copy
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, LlamaConfig, LlamaModel

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli import models
from cacse_trainer.cli.common import run
from cacse_trainer.encoding.loading import states_pooling
from cacse_trainer.encoding.members import load_members
from cacse_trainer.encoding.released import RELEASED, released
from cacse_trainer.encoding.sentence_transformers import write_modules
from cacse_trainer.errors import UserError
from cacse_trainer.runs.baseline import take_stated_pooling
from cacse_trainer.settings.arguments import ModelArguments
from tests.conftest import ROOT, WORDS
from tests.tolerances import assert_near

SENTENCES = ["the man is running", "a red house"]


@pytest.fixture
def named(tmp_path, tiny_towers):
    """A tiny encoder in a folder of a given name."""

    def make(name):
        shutil.copytree(tiny_towers("bert")[0], tmp_path / name)
        return str(tmp_path / name)

    return make


def outputs(folder, tokenizer):
    with torch.inference_mode():
        return AutoModel.from_pretrained(folder).eval()(**tokenizer(SENTENCES, padding=True, return_tensors="pt"))


@pytest.mark.parametrize(
    "name",
    [
        *("princeton-nlp/unsup-simcse-roberta-large", "unsup-simcse-bert-base-uncased", "InfoCSE-bert-base"),
        *("voidism/diffcse-bert-base-uncased-sts", "esimcse-roberta-base", "TNCSE_BERT_CKPT/BERT_2"),
        "models--ffgcc--esimcse-bert-base-uncased/snapshots/0123",
    ],
)
def test_the_first_token_is_read_raw(named, tiny_tokenizer, name, caplog):
    folder = named(name)
    encoder = SentenceEncoder(folder)
    assert_near(encoder.vectors(SENTENCES), outputs(folder, tiny_tokenizer).last_hidden_state[:, 0])
    assert not encoder.pooling_guessed and "GUESSED" not in caplog.text
    assert load_members(folder)[0][0].pooling == "cls"
    settings = ModelArguments(model=folder)
    take_stated_pooling(settings)
    assert (settings.pooling, settings.mlp_only_train, states_pooling(folder)) == ("cls", True, True)


@pytest.mark.parametrize("pooling", [None, "cls"])
def test_supervised_simcse_is_read_through_its_head(named, tiny_tokenizer, pooling):
    folder = named("princeton-nlp/sup-simcse-bert-base-uncased")
    expected = outputs(folder, tiny_tokenizer)
    assert_near(SentenceEncoder(folder, pooling).vectors(SENTENCES), expected.pooler_output)
    raw = SentenceEncoder(folder, "cls_before_pooler")
    assert_near(raw.vectors(SENTENCES), expected.last_hidden_state[:, 0])
    settings = ModelArguments(model=folder)
    take_stated_pooling(settings)
    assert (settings.pooling, settings.mlp_only_train) == ("cls", None)


def test_a_name_that_says_nothing_is_guessed_aloud(named, tiny_tokenizer, caplog):
    folder = named("mine/simcse")
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    assert SentenceEncoder(folder).pooling == "mean" and "GUESSED mean" in caplog.text
    path.write_text(json.dumps({**config, "architectures": ["BertForCL"]}))
    encoder = SentenceEncoder(folder)
    assert_near(encoder.vectors(SENTENCES), outputs(folder, tiny_tokenizer).last_hidden_state[:, 0])
    assert encoder.pooling_guessed and "GUESSED cls_before_pooler, as it is a BertForCL" in caplog.text


def test_adapters_are_read_as_their_release(tmp_path, tiny_tokenizer, caplog):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS) + 5, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    model = LlamaModel(LlamaConfig(**sizes, num_hidden_layers=32, max_position_embeddings=64))
    model.save_pretrained(tmp_path / "base")
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path / "base")
    tuned = get_peft_model(LlamaModel.from_pretrained(tmp_path / "base"), LoraConfig(r=2, target_modules=["q_proj"]))
    for name in ("SeanLee97/bellm-llama-7b-nli", "trapoom555/Phi-2-Text-Embedding-cft", "other"):
        tuned.save_pretrained(tmp_path / name)
    caplog.set_level(logging.INFO)
    bellm = SentenceEncoder(tmp_path / "SeanLee97/bellm-llama-7b-nli")
    told = {"pooling": "last_token", "prompt_template": 'The representative word for sentence {text} is:"'}
    by_hand = SentenceEncoder(tmp_path / "other", **told, bidirectional_start_layer=31)
    assert_near(bellm.vectors(SENTENCES), by_hand.vectors(SENTENCES))
    assert bellm.pooling == "last_token" and bellm.settings() == {**by_hand.settings()}
    cft = SentenceEncoder(tmp_path / "trapoom555/Phi-2-Text-Embedding-cft")
    assert cft.settings()["append_eos"] and not cft.pooling_guessed
    assert "is STS-CFT's trapoom555/Phi-2-Text-Embedding-cft" in caplog.text


def test_the_table_is_sound_and_shown(capsys):
    for one in RELEASED:
        if one.figures:
            assert sum(one.figures) / 7 == pytest.approx(one.average, abs=0.011), one.name
    assert released("bert-base-uncased") is None and released("runs/BERT_1") is None
    assert run(models.main, ["--json"]) == 0
    told = {one["name"]: one for one in json.loads(capsys.readouterr().out)["models"]}
    assert told["princeton-nlp/sup-simcse-bert-base-uncased"]["figures"]["STS12"] == 75.30
    assert run(models.main, []) == 0
    page, told = (ROOT / "docs/reference/models.md").read_text(), capsys.readouterr().out
    for one in RELEASED:
        figures = " | ".join(f"{figure:.2f}" for figure in one.figures)
        assert one.name in told and f"`{one.name}`" in page and figures in page


def test_a_folder_that_speaks_for_itself_is_believed(named, caplog):
    caplog.set_level(logging.INFO)
    folder = named("princeton-nlp/sup-simcse-bert-base-uncased")
    write_modules(Path(folder), pooling="mean", hidden_size=32, max_seq_length=64)
    assert SentenceEncoder(folder).pooling == "mean" and "is SimCSE's" not in caplog.text


def test_an_unknown_pooling_names_what_there_is(named):
    with pytest.raises(UserError, match="cls, cls_before_pooler, cls_with_mlp"):
        SentenceEncoder(named("x"), "first")
