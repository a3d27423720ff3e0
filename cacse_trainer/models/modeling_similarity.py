"""Several teachers of similarities as one: the weighted mean of their cosines, which is the cosine of one long vector.

With the teachers' vectors scaled to length 1 and to the square roots of their shares α_t, Σ α_t = 1, side by side:
``⟨z_i, z_j⟩ = Σ_t α_t·cos(h_t(i), h_t(j))``, and z has length 1. So whatever keeps, gathers or compares vectors serves
similarities, too, and the teachers' widths may differ.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cacse_trainer.losses.contrastive import full_precision
from cacse_trainer.models.base import SentenceConfig
from cacse_trainer.models.modeling_ensemble import EnsembleModel


class SimilarityConfig(SentenceConfig):
    """What a `SimilarityEnsemble` is made of; it is saved nowhere.

    Args:
        teachers: each teacher's config.
        shares: each teacher's α.
    """

    def __init__(self, teachers: Sequence[Any] = (), shares: Sequence[float] = (), **kwargs: Any):
        self.teachers = [teacher.to_dict() for teacher in teachers]
        self.encoder_configs = [fields for teacher in self.teachers for fields in teacher["encoder_configs"]]
        self.shares = list(shares)
        self.hidden_size = sum(teacher.hidden_size for teacher in teachers)
        super().__init__(**kwargs)


class SimilarityEnsemble(nn.Module):
    """A teacher whose cosines are the weighted mean of several teachers' cosines.

    Args:
        teachers: each a sum of encoders; either all read one tokenizer's tokens, or every encoder has its own, and they
            are numbered through.
        weights: one a teacher, not negative; their shares in the sum are the α.

    Raises:
        ValueError: a weight is negative, or none is above 0.
    """

    def __init__(self, teachers: Sequence[EnsembleModel], weights: Sequence[float]):
        super().__init__()
        if min(weights) < 0 or not sum(weights) > 0:
            raise ValueError(f"similarities are weighed by numbers from 0 on, one of them above 0, got {list(weights)}")
        self.teachers = nn.ModuleList(teachers)
        shares = [weight / sum(weights) for weight in weights]
        self.config = SimilarityConfig([teacher.config for teacher in teachers], shares)

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        encoder_ids: Tensor | None = None,
    ) -> Tensor:
        """(N, L) → (N, the sum of the teachers' widths); the arguments are `EnsembleModel.forward`'s."""
        found, before = [], 0
        teachers: Any = self.teachers
        for teacher, share in zip(teachers, self.config.shares, strict=True):
            own = encoder_ids - before if encoder_ids is not None else None
            vectors = teacher.embed(input_ids, attention_mask, token_type_ids, own)
            found.append(math.sqrt(share) * F.normalize(full_precision(vectors), dim=-1))
            before += len(teacher.encoders)
        return torch.cat(found, dim=-1)
