"""Configuration of a weighted sum of encoders."""

from typing import Any

from transformers import PretrainedConfig

from cacse_trainer.models.base import SentenceConfig, as_config
from cacse_trainer.models.pretrained import MEND

POOLING_NAMES = {
    "cls": "cls",
    "cls_before_pooler": "cls",
    "mean": "mean",
    "avg": "mean",
    "max": "max",
    "last_token": "last_token",
}
"""The poolings of an ensemble's encoders, each with the name that sentence-transformers and a user would give it."""

LINEAR_POOLINGS = frozenset({"cls", "mean", "last_token"})
"""Those for which the pooled sum of token states is the sum of the pooled states."""


class EnsembleConfig(SentenceConfig):
    """Configuration of `EnsembleModel`.

    Args:
        encoder_configs: the encoders' configs, or their dicts; all of one width.
        weights: one number an encoder; default: 1 each, the plain sum.
        poolings: one name an encoder, of `POOLING_NAMES`; default: cls each.
        own_tokenizers: each encoder reads the tokens of a tokenizer of its own (see `TokenizerBundle`).
        normalized: whether an encoder's vector is scaled to length 1 before it is summed; default: none is.

    Raises:
        ValueError: the numbers of weights, poolings and encoders differ, the widths do, or a pooling is unknown.
    """

    model_type = "cacse_ensemble"

    def __init__(
        self,
        encoder_configs: list[PretrainedConfig | dict[str, Any]] | None = None,
        weights: list[float] | None = None,
        poolings: list[str] | None = None,
        own_tokenizers: bool = False,
        normalized: list[bool] | None = None,
        **kwargs: Any,
    ):
        configs = [as_config(config) for config in ([None] if encoder_configs is None else encoder_configs)]
        self.encoder_configs = [config.to_dict() for config in configs]
        self.weights = list(weights) if weights is not None else [1.0] * len(configs)
        names = list(poolings) if poolings is not None else ["cls"] * len(configs)
        self.own_tokenizers = own_tokenizers
        if normalized is not None and any(normalized):  # stated only where it says something, as folders have it
            self.normalized = list(normalized)
        for what, values in (("weight", self.weights), ("pooling", names), ("normalized", self.scaled)):
            if not configs or len(values) != len(configs):
                raise ValueError(
                    f"an ensemble takes one {what} an encoder, got {len(configs)} encoders and {len(values)}"
                )
        for name in names:
            if name not in POOLING_NAMES:
                raise ValueError(
                    f"pooling {name!r} is none that an ensemble knows; choose one of {', '.join(POOLING_NAMES)}"
                )
        self.poolings = [POOLING_NAMES[name] for name in names]
        widths = [config.hidden_size for config in configs]
        if len(set(widths)) > 1:
            raise ValueError(f"the encoders of an ensemble must be of one width, got {widths}")
        self.hidden_size = widths[0]
        self.vocab_size = min(config.vocab_size for config in configs)
        named = "max_position_embeddings"
        tables = [config for config in configs if named in config.to_dict() or named in config.attribute_map]
        self.max_position_embeddings = min((config.max_position_embeddings for config in tables), default=None)
        for derived in ("hidden_size", "vocab_size", "max_position_embeddings"):
            kwargs.pop(derived, None)
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As the parent's; null, which asks ``__init__`` for a default, is none that a file was written with."""
        for name in ("encoder_configs", "weights", "poolings"):
            if config_dict.get(name, ()) is None:
                raise ValueError(f"config.json is damaged ({name!r} is null); {MEND}")
        return super().from_dict(config_dict, **kwargs)

    @property
    def scaled(self) -> list[bool]:
        """Of each encoder whether its vector is scaled to length 1."""
        return vars(self).get("normalized") or [False] * len(self.weights)

    @property
    def sums_tokens(self) -> bool:
        """Whether the ensemble is a weighted sum at each token, pooled once: what standard modules can express."""
        linear = len(set(self.poolings)) == 1 and self.poolings[0] in LINEAR_POOLINGS and not any(self.scaled)
        return linear and not self.own_tokenizers
