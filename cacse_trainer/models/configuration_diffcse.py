"""Configuration of DiffCSE: that of the single tower, the generator's, and the settings of replaced token detection."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from cacse_trainer.models.configuration_sentence_embedding import SentenceEmbeddingConfig

RTD_POSITIONS = ("all", "tokens")
CONDITIONS = ("projected", "pooled")


class DiffcseConfig(SentenceEmbeddingConfig):
    """Configuration of `DiffcseModel`.

    Args:
        encoder_config: of the encoder, and of the discriminator.
        generator_config: config of the masked language model that fills the masks.
        projection: ``batch_norm`` (the published recipes) or ``tanh``.
        mlp_only_train: drop the projection at inference, as the release does.
        rtd_loss_weight: λ in ``L + λ·L_RTD``; at 0 generator and discriminator do not run.
        rtd_positions: ``all`` averages over every position, padding and first token included, as the release does;
            ``tokens`` leaves padding out, so that the loss does not depend on the length of a batch's longest row.
        condition: what the discriminator is told, the ``projected`` vector or the ``pooled`` one before the projection.
        reference_padding: fill the padding of the discriminator's input with id 0, as the release does: right for BERT,
            ``<s>`` for RoBERTa. Padding counts in the loss where ``rtd_positions`` is ``all``.
        kwargs: the other settings of `SentenceEmbeddingConfig`.

    Raises:
        ValueError: a setting is unknown or out of range, or the vocabularies differ; the message gives the values.
    """

    model_type = "diffcse"
    sources = ("diffcse",)
    sub_configs = {"encoder_config": AutoConfig, "generator_config": AutoConfig}  # noqa: RUF012 - transformers' convention

    def __init__(
        self,
        encoder_config: PretrainedConfig | dict[str, Any] | None = None,
        generator_config: PretrainedConfig | dict[str, Any] | None = None,
        projection: str = "batch_norm",
        mlp_only_train: bool = True,
        rtd_loss_weight: float = 0.005,
        rtd_positions: str = "all",
        condition: str = "projected",
        reference_padding: bool = False,
        **kwargs: Any,
    ):
        self.keep(locals())
        for name, choices in (("rtd_positions", RTD_POSITIONS), ("condition", CONDITIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; choose one of {', '.join(choices)}")
        if not rtd_loss_weight >= 0:
            raise ValueError(f"rtd_loss_weight must not be negative, got {rtd_loss_weight}")
        super().__init__(self.encoder_config, projection=projection, mlp_only_train=mlp_only_train, **kwargs)
        if self.encoder_config.vocab_size != self.generator_config.vocab_size:
            raise ValueError(
                "encoder and generator must share a vocabulary: the encoder has "
                f"{self.encoder_config.vocab_size} words, the generator {self.generator_config.vocab_size}; "
                "choose a masked language model with the same tokenizer"
            )
