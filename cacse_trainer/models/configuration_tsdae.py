"""Configuration of TSDAE: that of the single tower, and its decoder's."""

from typing import Any

from transformers import PretrainedConfig

from cacse_trainer.models.configuration_sentence_embedding import SentenceEmbeddingConfig


class TsdaeConfig(SentenceEmbeddingConfig):
    """Configuration of `TsdaeModel`.

    Args:
        encoder_config: of the encoder, and, with cross-attention, of the decoder.
        pooling: any without a projection; ``cls_before_pooler`` or ``mean``.
        tsdae_layers: of the decoder.
        tsdae_deletion: share of the words that are deleted before the encoder reads a sentence.
        kwargs: the other settings of `SentenceEmbeddingConfig`.

    Raises:
        ValueError: a setting is unknown or out of range.
    """

    model_type = "tsdae"
    sources = ("tsdae",)

    def __init__(
        self,
        encoder_config: PretrainedConfig | dict[str, Any] | None = None,
        pooling: str = "cls_before_pooler",
        tsdae_layers: int = 1,
        tsdae_deletion: float = 0.6,
        **kwargs: Any,
    ):
        self.keep(locals())
        if not tsdae_layers >= 1:
            raise ValueError(f"tsdae_layers must be a number from 1, got {tsdae_layers}")
        if not 0 <= tsdae_deletion < 1:
            raise ValueError(f"tsdae_deletion must be from 0 to below 1, got {tsdae_deletion}")
        if pooling == "cls":
            raise ValueError("TSDAE has no projection: choose pooling cls_before_pooler, mean or max")
        super().__init__(self.encoder_config, pooling=pooling, **kwargs)
