"""The auxiliary masked language model loss of a sentence encoder (SimCSE's ``do_mlm``)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cacse_trainer.compute.encoder_tools import global_mean, known_inputs
from cacse_trainer.compute.half import full
from cacse_trainer.compute.reading import packed_tokens
from cacse_trainer.losses.contrastive import full_precision
from cacse_trainer.models.computing import ComputeSettings

IGNORED_LABEL = -100


def masked_lm_loss(encoder: Any, head: nn.Module, rows: Mapping[str, Tensor], compute: ComputeSettings) -> Tensor:
    """Mean cross-entropy of the masked tokens of all processes, a scalar.

    Args:
        encoder: reads the masked copies.
        head: (m, H) states → (m, vocabulary) logits.
        rows: ``mlm_input_ids`` and ``mlm_labels`` (-100 where nothing was masked), (N, L), and the other inputs.
        compute: how the encoder runs over them.
    """

    def score(read: Callable[..., Tensor], mlm_labels: Tensor, **bucket: Tensor) -> Tensor:
        """(n, l) → (n, 2): sum of the cross-entropies of each row's masked tokens, and their number."""
        chosen = mlm_labels != IGNORED_LABEL
        places = chosen.nonzero(as_tuple=True)  # found once: a device is waited for each time
        logits = full_precision(head(read(**bucket)[places]))  # (m, vocabulary)
        entropies = F.cross_entropy(logits, mlm_labels[places], reduction="none")
        per_row = entropies.new_zeros(len(chosen)).index_add(0, places[0], entropies)
        return torch.stack([per_row, chosen.sum(dim=1).to(per_row.dtype)], dim=1)

    masked = {**rows, "input_ids": rows["mlm_input_ids"]}
    inputs = {**known_inputs(encoder, masked), "mlm_labels": rows["mlm_labels"]}
    packed = partial(score, partial(packed_tokens, encoder, full))
    padded = partial(score, lambda **bucket: encoder(**bucket).last_hidden_state)
    total, count = compute.packed_or(encoder, inputs, packed, padded).sum(dim=0).unbind()
    return global_mean(total, count.detach())
