"""Masked copies of a batch, for masked language model losses and for replaced token detection."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cacse_trainer.errors import UserError

IGNORED_LABEL = -100


def mask_tokens(
    input_ids: Tensor,
    special_tokens_mask: Tensor,
    mask_token_id: int,
    vocab_size: int,
    probability: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """BERT's masking: of the chosen tokens 80 % become the mask token, 10 % a random token, 10 % stay.

    Args:
        input_ids: of any shape, on any device; the numbers are drawn on the CPU.
        special_tokens_mask: of the same shape, true where a token must not be chosen (special tokens, padding).
        mask_token_id: id of the mask token.
        vocab_size: random tokens are drawn from 0..vocab_size-1.
        probability: chance of each other token to be chosen.
        generator: source of random numbers; default: torch's own.

    Returns:
        The masked ids, and the labels: the original id where chosen, -100 elsewhere. ``input_ids`` is left as it is.

    Source: Devlin et al. 2019 (arXiv 1810.04805), section 3.1; the draws come in the order of transformers' collator,
    so that a seed gives the batches it gives there.
    """

    def drawn(chance: float) -> Tensor:
        return torch.bernoulli(torch.full(input_ids.shape, chance), generator=generator).bool().to(input_ids.device)

    chosen, hidden = drawn(probability) & ~special_tokens_mask.bool(), drawn(0.8)
    altered = drawn(0.5)  # of the remaining 20 %
    words = torch.randint(vocab_size, input_ids.shape, generator=generator).to(input_ids.device)
    masked = torch.where(chosen & hidden, mask_token_id, input_ids)
    masked = torch.where(chosen & ~hidden & altered, words, masked)
    return masked, torch.where(chosen, input_ids, IGNORED_LABEL)


class Masking:
    """A masked copy of each view of a batch, drawn anew at each step and from nothing but the step's numbers.

    The random state of torch is neither read nor moved, so that the masks of a step are the same however its batch was
    loaded: ahead of time, by other processes, after a resume.

    Args:
        tokenizer: a tokenizer with a mask token.
        probability: chance of each token to be chosen (SimCSE's auxiliary loss: 0.15; DiffCSE: 0.30).

    Returns:
        On a call with a batch of `ContrastiveCollator` and numbers (a seed, the step, …): the batch with
        ``mlm_input_ids`` and ``mlm_labels``, (B, V, L). Equal views are masked independently.

    Raises:
        UserError: the tokenizer has no mask token, or the probability is out of range.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float = 0.15) -> None:
        if tokenizer.mask_token_id is None:
            raise UserError(
                f"{type(tokenizer).__name__} has no mask token; losses on masked tokens need the tokenizer of a masked "
                "language model, such as BERT's or RoBERTa's"
            )
        if not 0 < probability < 1:
            raise UserError(f"mask_probability {probability} is out of range; give a number between 0 and 1")
        self.probability = probability
        self.mask_token_id, self.vocab_size = tokenizer.mask_token_id, len(tokenizer)
        self.special_ids = torch.tensor(sorted(set(tokenizer.all_special_ids)))

    def __call__(self, batch: Mapping[str, Tensor], *numbers: int) -> dict[str, Tensor]:
        ids = batch["input_ids"]
        special = torch.isin(ids, self.special_ids.to(ids.device))
        digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        masked, labels = mask_tokens(ids, special, self.mask_token_id, self.vocab_size, self.probability, generator)
        return {**batch, "mlm_input_ids": masked, "mlm_labels": labels}
