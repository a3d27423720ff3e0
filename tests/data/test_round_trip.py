"""Round-trip pairs: order, resume after a kill, dropped rows, a real (tiny, random) Marian model, the command."""

import csv
import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast

from cacse_trainer import load_sentences
from cacse_trainer.cli import pairs
from cacse_trainer.cli.common import run
from cacse_trainer.data import round_trip
from cacse_trainer.data.round_trip import write_pairs
from cacse_trainer.errors import UserError
from cacse_trainer.models.translation import Translator
from tests.conftest import WORDS


def tiny_marian(vocabulary: int, pad: int) -> MarianMTModel:
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=vocabulary,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        pad_token_id=pad,
        eos_token_id=0,
        decoder_start_token_id=pad,
        init_std=1.0,
    )
    model = MarianMTModel(config)
    model.generation_config.bad_words_ids = None
    return model


@pytest.fixture(scope="module")
def marian(tmp_path_factory) -> str:
    """A tiny random Marian model with a word tokenizer."""
    folder = tmp_path_factory.mktemp("marian")
    vocabulary = {"</s>": 0, "<unk>": 1, **{word: i + 2 for i, word in enumerate(WORDS)}, "<pad>": len(WORDS) + 2}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", model_max_length=64
    )
    tokenizer.save_pretrained(folder)
    tiny_marian(len(vocabulary), vocabulary["<pad>"]).save_pretrained(folder)
    return str(folder)


def rows_of(path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_translator_keeps_the_order_and_ignores_the_batch(marian):
    sentences = ["the dog", "a man is playing guitar in the park", "red", "a woman with a blue flute"]
    batched = Translator(marian, batch_size=3, max_length=12)(sentences)
    single = [Translator(marian, batch_size=1, max_length=12)([sentence])[0] for sentence in sentences]
    assert batched == single and len(set(single)) > 1
    with pytest.raises(UserError, match="translation model nowhere/there"):
        Translator("nowhere/there")
    for number in ("batch_size", "num_beams", "max_length"):
        with pytest.raises(UserError, match=f"{number} is 0; it must be at least 1"):
            Translator(marian, **{number: 0})


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    """Killed in the third chunk, with half a row on disk: the finished file is that of an uninterrupted run."""
    monkeypatch.setattr(round_trip, "ROWS_AT_ONCE", 4)
    sentences = [f'sentence {i}, with "quotes" and, commas' for i in range(14)]

    def there(chunk):
        return [text.upper() for text in chunk]

    calls = []

    def back(chunk):
        calls.append(len(chunk))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return ["" if "3," in text else text.lower() for text in chunk]

    output = tmp_path / "pairs.csv"
    with pytest.raises(KeyboardInterrupt):
        write_pairs(sentences, there, back, output, settings={"there": "x"})
    assert not output.exists()
    with (tmp_path / "pairs.csv.partial").open("ab") as file:
        file.write(b'"half a ro')
    counts = write_pairs(sentences, there, back, output, settings={"there": "x"})
    assert calls == [4, 4, 4, 4, 2]
    assert counts == {"rows": 12, "empty": 2, "unchanged": 12}
    assert rows_of(output) == [["anchor", "positive"], *[[s, s] for i, s in enumerate(sentences) if i not in (3, 13)]]
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.csv"]
    assert load_sentences(str(output)).column_names == ["anchor", "positive"]


def test_other_settings_start_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(round_trip, "ROWS_AT_ONCE", 1)
    with pytest.raises(ZeroDivisionError):
        write_pairs(
            ["a", "b"], list, lambda chunk: list(chunk) if chunk == ["a"] else 1 / 0, tmp_path / "p", settings={}
        )
    seen = []
    write_pairs(
        ["a", "b"], list, lambda chunk: seen.extend(chunk) or list(chunk), tmp_path / "p", settings={"beams": 2}
    )
    assert seen == ["a", "b"]


def test_command(marian, text_file, tmp_path, capsys):
    flags = ["--input", str(text_file), "--there", marian, "--back", marian, "--output_dir", str(tmp_path / "out")]
    flags += ["--max_length", "8", "--device", "cpu", "--disable_tqdm"]
    assert run(pairs.main, flags) == 0
    assert "pairs (" in capsys.readouterr().out
    assert rows_of(tmp_path / "out" / "pairs.csv")[0] == ["anchor", "positive"]
    assert run(pairs.main, flags) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_with_marian_s_own_tokenizer(tmp_path):
    """A folder laid out as the released translation models are: two sentencepiece models and a common vocabulary."""
    import sentencepiece
    from transformers import MarianTokenizer

    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))))
    folder = tmp_path / "model"
    folder.mkdir()
    for side in ("source", "target"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(folder / side), vocab_size=60, hard_vocab_limit=False, minloglevel=2
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
        (folder / f"{side}.vocab").unlink()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    words = ["</s>", "<unk>", *(pieces.id_to_piece(i) for i in range(3, len(pieces))), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    tokenizer = MarianTokenizer(*(str(folder / name) for name in ("source.spm", "target.spm", "vocab.json")))
    tokenizer.save_pretrained(folder)
    tiny_marian(vocabulary=len(words), pad=len(words) - 1).save_pretrained(folder)
    translate = Translator(str(folder), max_length=12)
    assert isinstance(translate.tokenizer, MarianTokenizer)
    found = translate(["a man is playing guitar", "the dog", "a man is playing guitar"])
    assert found[0] == found[2] and all(isinstance(text, str) for text in found)
    known = translate.tokenizer("the dog").input_ids
    assert (
        known[-1] == 0 and 1 not in known and translate.tokenizer.decode(known, skip_special_tokens=True) == "the dog"
    )
