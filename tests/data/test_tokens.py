"""Rows of tokens: padded on the right, the whole text's tokens of a part of it, limits with room, what is refused."""

import logging

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from cacse_trainer.data import ContrastiveCollator
from cacse_trainer.data.tokens import READ_AT_MOST, pad_rows, shortened, shortest_limit, tokenise
from cacse_trainer.errors import UserError
from cacse_trainer.models.prompting import give_padding, prepare_tokenizer
from cacse_trainer.models.tokenizer_bundle import TokenizerBundle

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("Ċ", "ĉ")]


def byte_level(**more) -> PreTrainedTokenizerFast:
    """As GPT-2's: no special tokens around a text, so that an empty one has none at all."""
    vocabulary = {token: i for i, token in enumerate(["<eos>", *LETTERS, *("".join(pair) for pair in MERGES)])}
    backend = Tokenizer(models.BPE(vocabulary, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return give_padding(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", **more))


def unigram() -> PreTrainedTokenizerFast:
    """As T5's and XLM-R's; without spaces a text is one word, of which the best way through all of it is taken."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("▁the", -2.0), ("the", -2.5), ("th", -3.0)]
    backend = Tokenizer(models.Unigram([*pieces, ("x", -4.0), ("xx", -5.0), ("xxx", -7.5), ("e", -4.0)], unk_id=2))
    backend.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def tokenizers(vocabulary) -> dict[str, PreTrainedTokenizerFast]:
    return {
        "bert": vocabulary,
        "gpt2": byte_level(),
        "t5": unigram(),
        "the end is kept": byte_level(truncation_side="left"),
        "a bundle": TokenizerBundle([vocabulary, byte_level()]),
    }


LONG = {
    "words": "the dog is red " * 2000,
    "one word": "x" * 30_000,
    "a long word, then words": "x" * 4_000 + " the dog is red" * 1000,
    "spaces, then words": " " * 4_000 + "the dog " * 2000,
    "words apart by more spaces": ("the" + " " * 300) * 100,
    "Chinese": "红色的狗，在公园里。" * 1000,
    "spaces at the cut": "the dog " * 8 + " " * 1_000 + "the dog " * 1000,
    "few tokens": "the" + " " * 30_000 + "dog",
}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "the end is kept", "a bundle"])
def test_a_part_of_a_long_text_has_the_whole_text_s_tokens(tiny_tokenizer, kind):
    tokenizer, limit = tokenizers(tiny_tokenizer)[kind], 8
    whole = tokenizer(list(LONG.values()), truncation=True, max_length=limit)["input_ids"]
    assert [row["input_ids"] for row in tokenise(tokenizer, list(LONG.values()), limit)] == whole
    parts = {name: len(shortened(tokenizer, text, limit)) for name, text in LONG.items()}
    assert 56 * limit < parts["words"] <= 64 * limit and parts["one word"] == len(LONG["one word"])
    assert len(shortened(tokenizer, "the dog " * 200, limit)) == 1600  # short enough to be taken as it is


def test_a_string_without_end_is_read_in_part(tiny_tokenizer):
    text = "the dog " + "x" * (READ_AT_MOST + 1000) + " red"
    for tokenizer in (tiny_tokenizer, byte_level(), byte_level(truncation_side="left")):
        part = shortened(tokenizer, text, 8)
        assert len(part) == READ_AT_MOST and (text.endswith(part) or text.startswith(part))
    assert (
        tokenise(tiny_tokenizer, [text], 8)[0]["input_ids"]
        == tokenise(tiny_tokenizer, ["the dog " + "x" * 200], 8)[0]["input_ids"]
    )


def test_padded_on_the_right_whatever_the_files_name(tiny_tokenizer):
    rows = [{"text": "the dog is red"}, {"text": "a cat"}]
    left = BertTokenizerFast(vocab=tiny_tokenizer.vocab, model_max_length=64, padding_side="left")
    expected, found = (ContrastiveCollator(tokenizer)(rows) for tokenizer in (tiny_tokenizer, left))
    assert all((found[name] == expected[name]).all() for name in expected)
    assert found["attention_mask"][1].tolist() == [[1, 1, 1, 1, 0, 0]] * 2


def test_rows_without_tokens():
    tokenizer = byte_level()
    padded = pad_rows(tokenizer, tokenise(tokenizer, ["", ""], 8))
    assert padded["input_ids"].tolist() == [[0], [0]] and padded["attention_mask"].tolist() == [[0], [0]]
    assert pad_rows(tokenizer, tokenise(tokenizer, [""], 8), 8)["input_ids"].shape == (1, 8)


def test_a_limit_leaves_room_for_text(tiny_tokenizer):
    prompted = prepare_tokenizer(byte_level(), "a word: {text}")
    both = TokenizerBundle([byte_level(), tiny_tokenizer])
    for tokenizer, shortest in ((byte_level(), 1), (tiny_tokenizer, 3), (both, 3), (prompted, 8)):
        assert shortest_limit(tokenizer) == shortest
        assert tokenise(tokenizer, ["the dog"], shortest)
        with pytest.raises(UserError, match=rf"beside {shortest - 1} special tokens; give at least {shortest}"):
            tokenise(tokenizer, ["the dog"], shortest - 1)
    assert shortest_limit(tiny_tokenizer, lambda sentence: "the dog " + sentence) == 5


def test_text_that_the_tokenizer_does_not_know_is_told_once(tiny_tokenizer, caplog):
    known, unknown = [{"text": "the dog is red"}] * 8, [{"text": "der Hund rennt"}] * 8
    collate = ContrastiveCollator(BertTokenizerFast(vocab=tiny_tokenizer.vocab))
    with caplog.at_level(logging.WARNING):
        collate(known)
        collate(unknown[:1])  # too little to judge by
        assert caplog.text == ""
        collate([*known, *unknown])
        collate(unknown)
        ContrastiveCollator(byte_level())(unknown)
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        "43% of the text's tokens are [UNK]"
    ]


def test_half_a_character_is_no_sentence(tiny_tokenizer):
    with pytest.raises(UserError, match=r"row 1 of a batch: text holds '\\ud800' \(a surrogate\)"):
        ContrastiveCollator(tiny_tokenizer)([{"text": "a"}, {"text": "a \ud800"}])
