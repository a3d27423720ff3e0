"""Prompts and labels: literal texts, literal token ids, the loss on the answer only."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cacse_trainer.errors import UserError
from cacse_trainer.instruct.prompts import render, tokenize_records

RECORD = {"instruction": "Rate.", "input": "a b", "output": "3.8"}


def words_tokenizer(**special) -> PreTrainedTokenizerFast:
    """A token a word or line break; </s> is 1."""
    words = ["<unk>", "</s>", "Rate.", "a", "b", "3.8", "\n", "Input:", "Instruction:", "Response:", "###"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)


def test_alpacas_text():
    prompt, full = render(RECORD, "alpaca", words_tokenizer())
    assert prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nRate.\n\n### Input:\na b\n\n"
        "### Response:"
    )
    assert full == prompt + "\n3.8"
    prompt, _ = render({**RECORD, "input": ""}, "alpaca", words_tokenizer())
    assert prompt.endswith("completes the request.\n\n### Instruction:\nRate.\n\n### Response:")
    assert "Input" not in prompt


def test_labels_are_literal():
    """The text ends in ``a b ⏎ ⏎ ### Response: ⏎ 3.8`` and </s>; learned are the last break, the score and the end."""
    (row,) = tokenize_records([RECORD], words_tokenizer(eos_token="</s>"), "alpaca", 100)
    assert row["input_ids"][-9:] == [3, 4, 6, 6, 10, 9, 6, 5, 1]
    assert row["labels"] == [-100] * (len(row["input_ids"]) - 3) + [6, 5, 1]
    assert row["attention_mask"] == [1] * len(row["input_ids"])


def test_a_token_across_the_border_belongs_to_the_answer():
    """With "Response:\\n3.8" one token, the prompt alone ends in another token, and the long one is learned."""
    backend = Tokenizer(
        models.WordLevel({"<unk>": 0, "</s>": 1, "###": 2, "Response:": 3, "Response:\n3.8": 4}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    (row,) = tokenize_records([RECORD], tokenizer, "alpaca", 100)
    assert row["input_ids"][-2:] == [4, 1]
    assert row["labels"] == [-100] * (len(row["labels"]) - 2) + [4, 1]


def test_chat_template(tiny_llama):
    """LLaMA-2's kind: user's turn masked, the answer and the end token that the template writes learned, once."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    prompt, full = render(RECORD, "chat", tokenizer)
    assert (prompt, full) == ("<s>[INST] Rate.\n\na b [/INST]", "<s>[INST] Rate.\n\na b [/INST] 3.8 </s>")
    (row,) = tokenize_records([RECORD], tokenizer, "chat", 100)
    learned = [i for i in row["labels"] if i != -100]
    assert tokenizer.decode(learned) == " 3.8 </s>"
    assert row["input_ids"].count(tokenizer.bos_token_id) == 1 and row["input_ids"].count(tokenizer.eos_token_id) == 1
    assert row["labels"] == [-100] * (len(row["labels"]) - len(learned)) + learned


def test_alpaca_with_a_tokenizer_that_adds_bos(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    (row,) = tokenize_records([RECORD], tokenizer, "alpaca", 500)
    assert row["input_ids"][0] == tokenizer.bos_token_id and row["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode([i for i in row["labels"] if i != -100]) == "\n3.8</s>"


def test_long_records_are_left_out_not_cut():
    long = {**RECORD, "input": "a " * 200}
    tokenizer = words_tokenizer(eos_token="</s>")
    (row,) = tokenize_records([long, RECORD], tokenizer, "alpaca", 100)
    assert row["labels"][-3:] == [6, 5, 1]
    length = len(row["input_ids"])
    assert len(tokenize_records([RECORD], tokenizer, "alpaca", length)) == 1
    assert tokenize_records([RECORD], tokenizer, "alpaca", length - 1) == []


def test_tokenizers_that_will_not_do():
    with pytest.raises(UserError, match="no end-of-sequence token"):
        tokenize_records([RECORD], words_tokenizer(), "alpaca", 100)
    with pytest.raises(UserError, match="no chat template"):
        render(RECORD, "chat", words_tokenizer())
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}?{% endif %}"
    with pytest.raises(UserError, match="another way than an open one"):
        render(RECORD, "chat", words_tokenizer(chat_template=template))
