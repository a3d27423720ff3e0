"""Configuration of CACSE: the two towers' and the constraint model's own configs, and the cascade's settings."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from cacse_trainer.models.configuration_two_towers import AGREE_IN, TwoTowersConfig

CONSTRAINT_ATTENTIONS = ("batch", "sample")


class CacseConfig(TwoTowersConfig):
    """Configuration of `CacseModel`, of which `CacseBertModel` and `CacseRobertaModel` are the published kinds.

    Args:
        tower_a_config, tower_b_config: the towers' configs (or their dicts); dropout is kept there.
        constraint_config: config of the model whose last layers constrain the cascade.
        cascade_start_layer: k0, 1-based encoder layer at which the cascade starts (paper: BERT 7, RoBERTa 11); the
            layers below it are frozen.
        constraint_layers: m, how many of the constraint model's last layers are used (paper: BERT 4, RoBERTa 1).
        cascade_heads: accepted for the reference's sake, without effect: attention over one token has weight 1.
        cascade_loss_weight: λ in ``L_A + L_B + λ·L_C``; at 0 the cascade does not run in training.
        contrastive_temperature: τ.
        cascade_dropout: dropout of the cascade's blocks.
        constraint_attention: ``batch`` (reference: across the batch) or ``sample``.
        freeze_embeddings: also freeze the towers' embeddings; then the frozen prefix builds no graph.
        pooling: of the towers' states, in the losses, in the cascade and at inference: ``cls`` (published), ``mean`` or
            ``max``, for towers that are read so.
        original_dropout: ``{"tower_a": [hidden, attention], "tower_b": …}``, what the towers had before training;
            exports get it back.

    Raises:
        ValueError: the parts do not fit each other or a setting is out of range; the message gives the values.
    """

    model_type = "cacse"
    sub_configs = {**TwoTowersConfig.sub_configs, "constraint_config": AutoConfig}  # noqa: RUF012 - read by transformers as a class attribute
    method = "CACSE"
    sources = ("cacse",)

    def __init__(
        self,
        tower_a_config: PretrainedConfig | dict[str, Any] | None = None,
        tower_b_config: PretrainedConfig | dict[str, Any] | None = None,
        constraint_config: PretrainedConfig | dict[str, Any] | None = None,
        cascade_start_layer: int = 7,
        constraint_layers: int = 4,
        cascade_heads: int = 6,
        cascade_loss_weight: float = 1.0,
        contrastive_temperature: float = 0.05,
        cascade_dropout: float = 0.2,
        constraint_attention: str = "batch",
        freeze_embeddings: bool = False,
        pooling: str = "cls",
        original_dropout: dict[str, list[float]] | None = None,
        **kwargs: Any,
    ):
        self.keep(locals())
        super().__init__(
            self.tower_a_config, self.tower_b_config, contrastive_temperature, pooling, original_dropout, **kwargs
        )

    def _check(self) -> None:
        super()._check()
        a, constraint = self.tower_a_config, self.constraint_config
        for name in ("model_type", "hidden_size"):
            if getattr(a, name) != getattr(constraint, name):
                raise ValueError(
                    f"the constraint model must agree with the towers in {AGREE_IN[name]} ({name}): the towers have "
                    f"{getattr(a, name)}, the constraint model has {getattr(constraint, name)}"
                )
        if not 1 <= self.cascade_start_layer <= a.num_hidden_layers:
            raise ValueError(
                f"cascade_start_layer={self.cascade_start_layer} is out of range: the towers have "
                f"{a.num_hidden_layers} layers, so it must be within 1..{a.num_hidden_layers}"
            )
        if not 0 <= self.constraint_layers <= constraint.num_hidden_layers:
            raise ValueError(
                f"constraint_layers={self.constraint_layers} is out of range: the constraint model has "
                f"{constraint.num_hidden_layers} layers, so it must be within 0..{constraint.num_hidden_layers}"
            )
        if self.constraint_attention not in CONSTRAINT_ATTENTIONS:
            raise ValueError(
                f"constraint_attention={self.constraint_attention!r} is unknown; choose one of {CONSTRAINT_ATTENTIONS}"
            )
        if not 0 <= self.cascade_dropout < 1:
            raise ValueError(f"cascade_dropout must be within [0, 1), got {self.cascade_dropout}")
