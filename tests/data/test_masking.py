"""Masking: the shares of BERT's recipe, what is never masked, and that nothing but the numbers of a step counts."""

import pytest
import torch
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from cacse_trainer.data import ContrastiveCollator, Masking, mask_tokens
from cacse_trainer.errors import UserError

SENTENCES = [{"text": "the man is playing a guitar in the park"}, {"text": "a dog"}] * 40


def test_shares():
    ids = torch.full((1000, 100), 7)
    masked, labels = mask_tokens(ids, torch.zeros_like(ids), 4, 1000, 0.3, torch.Generator().manual_seed(0))
    chosen = labels != -100
    assert chosen.float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert (labels[chosen] == 7).all() and (masked[~chosen] == 7).all()
    assert (masked[chosen] == 4).float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert (masked[chosen] == 7).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert masked[chosen].max() > 900  # random tokens come from the whole vocabulary


def test_special_tokens_stay_and_the_input_is_left_alone():
    ids = torch.arange(20).repeat(200, 1)
    before, special = ids.clone(), ids < 10
    masked, labels = mask_tokens(ids, special, 4, 20, 0.9)
    assert torch.equal(ids, before)
    assert torch.equal(masked[special], ids[special]) and (labels[special] == -100).all()
    assert (labels[~special] != -100).float().mean() > 0.8


def test_a_seed_gives_the_same_masks():
    ids, special = torch.full((5, 9), 7), torch.zeros(5, 9)
    first, second = (mask_tokens(ids, special, 4, 50, 0.5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_equal_views_are_masked_independently(tiny_tokenizer: BertTokenizerFast):
    batch = Masking(tiny_tokenizer, 0.3)(ContrastiveCollator(tiny_tokenizer)(SENTENCES), 0, 0)
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "mlm_input_ids", "mlm_labels"}
    assert len({tensor.shape for tensor in batch.values()}) == 1
    assert torch.equal(batch["input_ids"][:, 0], batch["input_ids"][:, 1])
    assert not torch.equal(batch["mlm_input_ids"][:, 0], batch["mlm_input_ids"][:, 1])
    special = torch.isin(batch["input_ids"], torch.tensor(tiny_tokenizer.all_special_ids))
    assert (batch["mlm_labels"][special] == -100).all()
    assert (batch["mlm_labels"] != -100)[~special].float().mean().item() == pytest.approx(0.3, abs=0.05)


def test_masks_come_from_the_numbers_alone(tiny_tokenizer: BertTokenizerFast):
    """Of torch's random state nothing is read, and nothing is drawn; other numbers are other masks."""
    batch, masking = ContrastiveCollator(tiny_tokenizer)(SENTENCES), Masking(tiny_tokenizer)
    first = masking(batch, 7, 3)["mlm_input_ids"]
    state = torch.manual_seed(1).get_state()
    assert torch.equal(masking(batch, 7, 3)["mlm_input_ids"], first)
    assert torch.equal(torch.get_rng_state(), state)
    for numbers in ((7, 4), (8, 3), (7, 3, 0)):
        assert not torch.equal(masking(batch, *numbers)["mlm_input_ids"], first)


def test_what_is_refused(tiny_tokenizer: BertTokenizerFast):
    with pytest.raises(UserError, match=r"mask_probability 1\.5 is out of range"):
        Masking(tiny_tokenizer, 1.5)
    without = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer, pad_token="[PAD]")
    with pytest.raises(UserError, match="has no mask token"):
        Masking(without)
