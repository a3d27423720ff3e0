"""What the models return: a ModelOutput with the losses in training, with the sentence embedding otherwise."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class EmbeddingOutput(ModelOutput):
    """Output of the models of this package.

    Args:
        loss: scalar, for (B, V, L) inputs.
        losses: its named parts before weighting, detached, for logging.
        last_hidden_state: (N, L, H), for (N, L) inputs.
        sentence_embedding: (N, H), for (N, L) inputs.
        embeddings: (B, V, H), the vectors that the loss compares, for (B, V, L) inputs.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    last_hidden_state: Tensor | None = None
    sentence_embedding: Tensor | None = None
    embeddings: Tensor | None = None


@dataclass
class TwoTowersOutput(EmbeddingOutput):
    """Output of the models of two towers, whose token states and sentence embedding are h_A + h_B.

    Args:
        tower_a_embeddings: (B, 2, H), tower A's pooled states of both views.
        tower_b_embeddings: (B, 2, H), tower B's.
    """

    tower_a_embeddings: Tensor | None = None
    tower_b_embeddings: Tensor | None = None


@dataclass
class CacseOutput(TwoTowersOutput):
    """Output of the CACSE models: the loss is ``L_A + L_B + λ·L_C``, of `losses` ``tower_a``, ``tower_b``, ``cascade``.

    Args:
        cascade_embeddings: (B, 2, H), the cascade's of both views.
    """

    cascade_embeddings: Tensor | None = None
