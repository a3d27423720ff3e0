"""Configuration of a pair of towers that are trained jointly: what CACSE and TNCSE share."""

from operator import attrgetter
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from cacse_trainer.models.base import SentenceConfig

POOLINGS_OF_TOWERS = ("cls", "mean", "max")
AGREE_IN = {"model_type": "kind", "num_hidden_layers": "depth", "hidden_size": "width", "vocab_size": "vocabulary"}
"""Fields of the towers' configs that must be equal, and what they are called."""


class TwoTowersConfig(SentenceConfig):
    """Configuration of a `TwoTowersModel`.

    Args:
        tower_a_config, tower_b_config: the towers' configs (or their dicts); dropout is kept there.
        contrastive_temperature: τ.
        pooling: of the towers' states, in the losses and at inference: ``cls`` (published), ``mean`` or ``max``, for
            towers that are read so.
        original_dropout: ``{"tower_a": [hidden, attention], "tower_b": …}``, what the towers had before training;
            exports get it back.

    Raises:
        ValueError: the towers do not fit each other or a setting is out of range; the message gives the values.
    """

    sub_configs = {"tower_a_config": AutoConfig, "tower_b_config": AutoConfig}  # noqa: RUF012 - read by transformers as a class attribute
    method = ""
    """Name of the method, in messages."""

    def __init__(
        self,
        tower_a_config: PretrainedConfig | dict[str, Any] | None = None,
        tower_b_config: PretrainedConfig | dict[str, Any] | None = None,
        contrastive_temperature: float = 0.05,
        pooling: str = "cls",
        original_dropout: dict[str, list[float]] | None = None,
        **kwargs: Any,
    ):
        self.keep(locals())
        self.original_dropout = dict(original_dropout or {})
        self._check()
        super().__init__(**kwargs)

    hidden_size = property(attrgetter("tower_a_config.hidden_size"))
    """Width of the embedding, asked for by sentence-transformers and others."""

    @property
    def vocab_size(self) -> int:
        """The towers' vocabulary; may be set."""
        return self.tower_a_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        self.tower_a_config.vocab_size = self.tower_b_config.vocab_size = size

    @property
    def max_position_embeddings(self) -> int:
        """The smaller of the towers' position tables, asked for by sentence-transformers for the length limit."""
        return min(self.tower_a_config.max_position_embeddings, self.tower_b_config.max_position_embeddings)

    def _check(self) -> None:
        a, b = self.tower_a_config, self.tower_b_config
        for name, what in AGREE_IN.items():
            if getattr(a, name) != getattr(b, name):
                raise ValueError(
                    f"the towers must agree in {what} ({name}): tower_a has {getattr(a, name)}, "
                    f"tower_b has {getattr(b, name)}"
                )
        if self.pooling not in POOLINGS_OF_TOWERS:
            raise ValueError(
                f"pooling={self.pooling!r} is not one that {self.method}'s towers have; choose one of "
                f"{', '.join(POOLINGS_OF_TOWERS)}"
            )
        if not self.contrastive_temperature > 0:
            raise ValueError(f"contrastive_temperature must be positive, got {self.contrastive_temperature}")
