"""The collator against literal tensors: every id below stands in the vocabulary written by `tokenizer`."""

import pickle
import warnings

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from cacse_trainer.data import ContrastiveCollator
from cacse_trainer.errors import UserError

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sat", "dog", "ran", "far"]
# id:            0        1        2        3         4      5     6      7      8      9     10


@pytest.fixture
def vocabulary_file(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def tokenizer(vocabulary_file):
    return BertTokenizerFast(vocab=vocabulary_file)


@pytest.fixture
def roberta_like():
    """A tokenizer without token types: <s>=0, <pad>=1, </s>=2, words from 3."""
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "cat": 5, "sat": 6}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def test_one_column_is_the_same_sentence_twice(tokenizer):
    batch = ContrastiveCollator(tokenizer)([{"text": "a cat sat"}, {"text": "dog"}])
    ids = torch.tensor([[[2, 5, 6, 7, 3], [2, 5, 6, 7, 3]], [[2, 8, 3, 0, 0], [2, 8, 3, 0, 0]]])
    mask = torch.tensor([[[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]], [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]])
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}
    assert torch.equal(batch["input_ids"], ids)
    assert torch.equal(batch["attention_mask"], mask)
    assert torch.equal(batch["token_type_ids"], torch.zeros(2, 2, 5, dtype=torch.long))
    assert all(tensor.is_contiguous() for tensor in batch.values())


def test_pairs_keep_their_order(tokenizer):
    rows = [{"anchor": "a cat", "positive": "cat"}, {"anchor": "dog", "positive": "dog ran far"}]
    batch = ContrastiveCollator(tokenizer)(rows)
    # (B=2, V=2, L=5): as long as the longest sentence of any view, "[CLS] dog ran far [SEP]"
    ids = torch.tensor([[[2, 5, 6, 3, 0], [2, 6, 3, 0, 0]], [[2, 8, 3, 0, 0], [2, 8, 9, 10, 3]]])
    assert torch.equal(batch["input_ids"], ids)
    assert torch.equal(batch["attention_mask"], (ids != 0).long())


def test_triplets_are_three_views(tokenizer):
    rows = [{"hard_negative": "far", "anchor": "cat", "positive": "dog"}] * 2
    batch = ContrastiveCollator(tokenizer)(rows)
    assert torch.equal(batch["input_ids"], torch.tensor([[[2, 6, 3], [2, 8, 3], [2, 10, 3]]] * 2))


def test_long_sentences_are_cut_and_lengths_rounded(tokenizer):
    rows = [{"text": "a cat sat far"}, {"text": "a"}]
    cut = ContrastiveCollator(tokenizer, max_seq_length=4)(rows)
    assert cut["input_ids"].tolist() == [[[2, 5, 6, 3]] * 2, [[2, 5, 3, 0]] * 2]
    rounded = ContrastiveCollator(tokenizer, pad_to_multiple_of=8)(rows)
    assert rounded["input_ids"].shape == (2, 2, 8)
    assert rounded["attention_mask"].sum().item() == 2 * (6 + 3)


def test_token_types_only_where_the_tokenizer_has_them(roberta_like):
    batch = ContrastiveCollator(roberta_like)([{"text": "a cat sat"}, {"text": "cat"}])
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"].tolist() == [[[0, 4, 5, 6, 2]] * 2, [[0, 5, 2, 1, 1]] * 2]


def test_a_slow_tokenizer_gives_the_same(tokenizer, vocabulary_file):
    rows = [{"anchor": "a cat sat", "positive": "dog"}, {"anchor": "far", "positive": "ran"}]
    slow = ContrastiveCollator(BertTokenizerLegacy(vocabulary_file))(rows)
    fast = ContrastiveCollator(tokenizer)(rows)
    assert torch.equal(slow["input_ids"], fast["input_ids"])
    assert torch.equal(slow["attention_mask"], fast["attention_mask"])


def test_other_columns_are_ignored(tokenizer):
    batch = ContrastiveCollator(tokenizer)([{"id": 7, "text": "cat", "source": None}, {"id": 8, "text": "dog"}])
    assert batch["input_ids"].tolist() == [[[2, 6, 3]] * 2, [[2, 8, 3]] * 2]


def test_survives_pickling(tokenizer):
    collator = pickle.loads(pickle.dumps(ContrastiveCollator(tokenizer, 5)))
    assert collator([{"text": "cat"}, {"text": "dog"}])["input_ids"].tolist() == [[[2, 6, 3]] * 2, [[2, 8, 3]] * 2]


def test_says_nothing(tokenizer, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ContrastiveCollator(tokenizer, 4)([{"text": "a cat " * 700}, {"text": "dog"}])
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"sentence": "a"}], ["sentence", "rename_column"]),
        ([{}], ["(none)"]),
        ([{"anchor": "a"}], ["columns anchor;"]),
        ([{"anchor": "a", "positive": "b", "negative_1": "c", "negative_3": "d"}], ["negative_1, negative_3; needed"]),
        ([{"anchor": "a", "positive": "b", "hard_negative": "c", "negative_1": "d"}], ["hard_negative, negative_1;"]),
        ([{"text": "a", "anchor": "a", "positive": "b"}], ["text, anchor, positive"]),
        ([{"text": "a"}, {"anchor": "a", "positive": "b"}], ["several kinds", "row 1"]),
        ([{"text": "a"}, {"text": None}], ["row 1", "text is None"]),
        ([{"anchor": "a", "positive": "b"}, {"anchor": "a", "positive": 3.5}], ["row 1", "positive is 3.5"]),
    ],
)
def test_wrong_rows(tokenizer, rows, words):
    with pytest.raises(UserError) as error:
        ContrastiveCollator(tokenizer)(rows)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_no_room_for_text(tokenizer):
    with pytest.raises(UserError, match="max_seq_length 2 leaves no room for text beside 2 special tokens"):
        ContrastiveCollator(tokenizer, max_seq_length=2)


def test_no_padding_token(roberta_like):
    roberta_like.pad_token = None
    with pytest.raises(UserError, match="no padding token"):
        ContrastiveCollator(roberta_like)


@pytest.mark.parametrize("columns", [("sentence1", "sentence2", "score"), ("text1", "text2", "label")])
def test_labelled_pairs(tiny_tokenizer, columns):
    """(B, 2, L), and the labels (B,) as float32; a pair without a label is no pair."""
    rows = [dict(zip(columns, values, strict=True)) for values in (("a man", "the dog", 4), ("red", "blue", 0.5))]
    batch = ContrastiveCollator(tiny_tokenizer)(rows)
    assert batch["input_ids"].shape == (2, 2, 4)
    assert batch["labels"].dtype == torch.float32 and batch["labels"].tolist() == [4.0, 0.5]
    for label, words in ((None, "label is None"), ("high", "label is 'high'"), (float("nan"), "label is nan")):
        with pytest.raises(UserError, match=words):
            ContrastiveCollator(tiny_tokenizer)([{**rows[0], columns[2]: label}])
    with pytest.raises(UserError, match="or sentence1, sentence2 and label"):
        ContrastiveCollator(tiny_tokenizer)([{name: row[name] for name in columns[:2]} for row in rows])
