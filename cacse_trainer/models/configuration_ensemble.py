"""Configuration of a weighted sum of encoders."""

from typing import Any

from transformers import PretrainedConfig

from cacse_trainer.models.configuration_cacse import as_config


class EnsembleConfig(PretrainedConfig):
    """Configuration of `EnsembleModel`.

    Args:
        encoder_configs: the encoders' configs, or their dicts; all of one width.
        weights: one number an encoder; default: 1 each, the plain sum.

    Raises:
        ValueError: the numbers of weights and encoders differ, or the widths do.
    """

    model_type = "cacse_ensemble"

    def __init__(
        self,
        encoder_configs: list[PretrainedConfig | dict[str, Any]] | None = None,
        weights: list[float] | None = None,
        **kwargs: Any,
    ):
        configs = [as_config(config) for config in (encoder_configs if encoder_configs is not None else [{"model_type": "bert"}])]
        self.encoder_configs = [config.to_dict() for config in configs]
        self.weights = list(weights) if weights is not None else [1.0] * len(configs)
        if not configs or len(self.weights) != len(configs):
            raise ValueError(f"an ensemble takes one weight an encoder, got {len(configs)} and {len(self.weights)} weights")
        widths = [config.hidden_size for config in configs]
        if len(set(widths)) > 1:
            raise ValueError(f"the encoders of an ensemble must be of one width, got {widths}")
        self.hidden_size = widths[0]
        self.vocab_size = min(config.vocab_size for config in configs)
        self.max_position_embeddings = min(config.max_position_embeddings for config in configs)
        for derived in ("hidden_size", "vocab_size", "max_position_embeddings"):
            kwargs.pop(derived, None)
        super().__init__(**kwargs)

    def build_encoder_configs(self) -> list[PretrainedConfig]:
        """The encoders' configs as objects."""
        return [as_config(config) for config in self.encoder_configs]
