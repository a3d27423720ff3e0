"""Equal sentences are no negatives of each other: counted by hand on small batches."""

import math

import pytest
import torch

from cacse_trainer.data.collator import ContrastiveCollator, text_id
from cacse_trainer.losses import info_nce, nt_xent
from cacse_trainer.losses.contrastive import equal_rows
from cacse_trainer.training.guards import repeated_rows
from tests.tolerances import noise


def test_which_rows_are_equal():
    pairs = torch.tensor([[1, 2], [3, 1], [4, 5]])  # the anchor of row 0 is the positive of row 1
    assert equal_rows(pairs).tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    triplets = torch.tensor([[1, 2, 9], [3, 4, 1], [5, 6, 6]])  # 1 and 6 are hard negatives that are own sentences
    none = [[False] * 3] * 3
    assert equal_rows(triplets)[:, :3].tolist() == none
    assert equal_rows(triplets)[:, 3:].tolist() == [[False, True, False], [False] * 3, [False, False, True]]


def test_which_of_several_hard_negatives_are_own_sentences():
    texts = torch.tensor([[1, 2, 9, 4], [3, 4, 1, 8], [5, 6, 7, 5]])
    expected = [[False, False, True, False, False, False], [False, True] + [False] * 4, [False] * 5 + [True]]
    assert equal_rows(texts)[:, 3:].tolist() == expected


@pytest.mark.parametrize(
    ("texts", "count"),
    [([[1, 1], [1, 1], [2, 2]], 2), ([[1, 2], [3, 1], [4, 5]], 2), ([[1, 2, 5], [3, 4, 1]], 0), ([1, 1, 1, 2], 3)],
)
def test_repeated_rows(texts, count):
    assert int(repeated_rows(torch.tensor(texts))) == count


def test_info_nce_without_false_negatives():
    """Rows 0 and 1 are the same sentence: of each other's logits nothing is left, row 2 keeps both."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[7, 7], [7, 7], [8, 8]])
    expected = (2 * math.log(1 + math.exp(-1)) + math.log(1 + 2 * math.exp(-1))) / 3
    assert info_nce(x, x, temperature=1.0, texts=texts).item() == pytest.approx(expected, abs=noise(expected, terms=8))
    distinct = torch.arange(3)[:, None].repeat(1, 2)
    assert info_nce(x, x, temperature=1.0, texts=distinct) == info_nce(x, x, temperature=1.0)


def test_nt_xent_without_false_negatives():
    """Each of the four views of the sentence keeps its partner and the two views of the other one."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[7], [7], [8]])
    expected = (4 * math.log(1 + 2 * math.exp(-1)) + 2 * math.log(1 + 4 * math.exp(-1))) / 6
    assert nt_xent(x, x, 1.0, texts).item() == pytest.approx(expected, abs=noise(expected, terms=8))


def test_own_hard_negative_that_is_the_positive():
    x = torch.eye(2)
    texts = torch.tensor([[1, 2, 2], [3, 4, 5]])
    found = info_nce(x, x, x, temperature=1.0, texts=texts).item()
    # row 0: own, one other positive, one other hard negative; row 1: also its own hard negative
    expected = (math.log(1 + 2 * math.exp(-1)) + math.log(2 + 2 * math.exp(-1))) / 2
    assert found == pytest.approx(expected, abs=noise(expected, terms=8))


def test_collator_numbers_texts(tiny_tokenizer):
    collator = ContrastiveCollator(tiny_tokenizer, with_text_ids=True)
    ids = collator([{"text": "a man"}, {"text": "a dog"}, {"text": "a man"}])["text_ids"]
    assert ids.shape == (3, 2) and ids[0, 0] == ids[0, 1] == ids[2, 0] != ids[1, 0]
    assert ids[0, 0] == text_id("a man") == 4201870724910980586
    rows = [{"anchor": "a man", "positive": "the man", "negative_2": "a dog", "negative_1": "a cat"}]
    expected = [text_id(text) for text in ("a man", "the man", "a cat", "a dog")]
    assert collator(rows)["text_ids"].tolist() == [expected]
