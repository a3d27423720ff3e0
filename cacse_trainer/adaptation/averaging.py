"""The start's and the trained weights averaged: how much of the training is kept, chosen without any more of it.

``w = (1 - share)·w_start + share·w_trained``. Source: LM-Cocktail (Xiao et al. 2023, arXiv 2311.13534), and model soups
(Wortsman et al. 2022, arXiv 2203.05482).
"""

from collections.abc import Mapping

from torch import Tensor

from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.errors import UserError

SHARES = (0.5, 0.75, 1.0)


def averaged(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The weighted mean of two sets of weights; what is no float, or the start lacks, is the trained one's.

    Args:
        start, trained: by name.
        share: of the trained weights, from 0 to 1.

    Raises:
        ValueError: the share is out of range, or two tensors of one name differ in shape.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, got {share}")
    found = {}
    for name, tensor in trained.items():
        other = start.get(name)
        if other is not None and other.shape != tensor.shape:
            raise ValueError(f"{name} is {tuple(other.shape)} in the start and {tuple(tensor.shape)} when trained")
        mixable = other is not None and tensor.is_floating_point() and share < 1
        found[name] = other.to(tensor).lerp(tensor, share) if mixable and other is not None else tensor
    return found


def can_be_averaged(start: SentenceEncoder, trained: SentenceEncoder) -> bool:
    """Whether two encoders are the same but for the values of their weights."""
    first, second = start.model.state_dict(), trained.model.state_dict()
    if start.pooling != trained.pooling or start.model.config.model_type != trained.model.config.model_type:
        return False
    return all(name in first and first[name].shape == tensor.shape for name, tensor in second.items())


class Averaging:
    """A trained encoder that can be set to any share of its training.

    Args:
        start, trained: see `can_be_averaged`; both in memory. The trained one is changed.

    Raises:
        UserError: they are not the same but for their weights.
    """

    def __init__(self, start: SentenceEncoder, trained: SentenceEncoder) -> None:
        if not can_be_averaged(start, trained):
            raise UserError(
                f"{start.name} and {trained.name} cannot be averaged: they differ in kind, size or pooling; "
                "give --shares 1"
            )
        self.encoder = trained
        self._start = {name: tensor.clone() for name, tensor in start.model.state_dict().items()}
        self._trained = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}

    def set(self, share: float) -> SentenceEncoder:
        """The encoder with this share of the trained weights."""
        self.encoder.model.load_state_dict(averaged(self._start, self._trained, share))
        return self.encoder
