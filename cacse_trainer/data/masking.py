"""Masked copies of a batch, for masked language model losses and for replaced token detection."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cacse_trainer.data.collator import ContrastiveCollator
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
        input_ids: of any shape.
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
    chances = torch.full(input_ids.shape, probability).masked_fill(special_tokens_mask.bool(), 0.0)
    chosen = torch.bernoulli(chances, generator=generator).bool()
    hidden = torch.bernoulli(torch.full(input_ids.shape, 0.8), generator=generator).bool()
    # half of the remaining 20 %
    altered = torch.bernoulli(torch.full(input_ids.shape, 0.5), generator=generator).bool()
    words = torch.randint(vocab_size, input_ids.shape, generator=generator)
    masked = torch.where(chosen & hidden, mask_token_id, input_ids)
    masked = torch.where(chosen & ~hidden & altered, words, masked)
    return masked, torch.where(chosen, input_ids, IGNORED_LABEL)


class MaskingCollator(ContrastiveCollator):
    """`ContrastiveCollator`, and a masked copy of each view.

    Args:
        tokenizer: a tokenizer with a mask token.
        max_seq_length, pad_to_multiple_of, with_text_ids: as in `ContrastiveCollator`.
        mask_probability: chance of each token to be chosen (SimCSE's auxiliary loss: 0.15; DiffCSE: 0.30).

    Returns:
        On a call, beside `ContrastiveCollator`'s tensors: ``mlm_input_ids`` and ``mlm_labels``, (B, V, L). Equal views
        are masked independently.

    Raises:
        UserError: the tokenizer has no mask token, or the probability is out of range.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *args: Any, mask_probability: float = 0.15, **kwargs: Any
    ) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        if tokenizer.mask_token_id is None:
            raise UserError(
                f"{type(tokenizer).__name__} has no mask token; losses on masked tokens need the tokenizer of a masked "
                "language model, such as BERT's or RoBERTa's"
            )
        if not 0 < mask_probability < 1:
            raise UserError(f"mask_probability {mask_probability} is out of range; give a number between 0 and 1")
        self.mask_probability = mask_probability
        self.special_ids = torch.tensor(sorted(set(tokenizer.all_special_ids)))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = super().__call__(rows)
        special = torch.isin(batch["input_ids"], self.special_ids)
        batch["mlm_input_ids"], batch["mlm_labels"] = mask_tokens(
            batch["input_ids"], special, self.tokenizer.mask_token_id, len(self.tokenizer), self.mask_probability
        )
        return batch
