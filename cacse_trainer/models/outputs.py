"""What the models return: a ModelOutput with the losses in training, with the sentence embedding otherwise."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class EmbeddingOutput(ModelOutput):
    """Output of every model of this package.

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
class CacseOutput(ModelOutput):
    """Output of the CACSE models.

    Args:
        loss: ``L_A + L_B + λ·L_C``, for (B, 2, L) inputs.
        losses: ``tower_a``, ``tower_b``, ``cascade``: the parts before weighting, detached.
        last_hidden_state: (N, L, H), h_A + h_B at each token, for (N, L) inputs.
        sentence_embedding: (N, H), h_A + h_B at the first token, for (N, L) inputs.
        tower_a_embeddings: (B, 2, H), tower A's CLS vectors of both views.
        tower_b_embeddings: (B, 2, H), tower B's.
        cascade_embeddings: (B, 2, H), the cascade's.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    last_hidden_state: Tensor | None = None
    sentence_embedding: Tensor | None = None
    tower_a_embeddings: Tensor | None = None
    tower_b_embeddings: Tensor | None = None
    cascade_embeddings: Tensor | None = None
