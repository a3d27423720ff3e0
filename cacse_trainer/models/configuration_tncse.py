"""Configuration of TNCSE: two towers, and the weights of the losses between them."""

from typing import Any

from transformers import PretrainedConfig

from cacse_trainer.models.configuration_two_towers import TwoTowersConfig


class TncseConfig(TwoTowersConfig):
    """Configuration of `TncseModel`.

    Args:
        tower_a_config, tower_b_config: the towers' configs (or their dicts); dropout is kept there.
        cross_loss_weight: of the NT-Xent from tower A's views to tower B's (published: 1).
        norm_constraint_weight: of the constraint on the norms of the towers' pooled vectors (published: 1).

    The other arguments, and what is raised, are those of `TwoTowersConfig`.
    """

    model_type = "tncse"
    method = "TNCSE"
    sources = ("tncse",)

    def __init__(
        self,
        tower_a_config: PretrainedConfig | dict[str, Any] | None = None,
        tower_b_config: PretrainedConfig | dict[str, Any] | None = None,
        cross_loss_weight: float = 1.0,
        norm_constraint_weight: float = 1.0,
        **kwargs: Any,
    ):
        self.cross_loss_weight = cross_loss_weight
        self.norm_constraint_weight = norm_constraint_weight
        super().__init__(tower_a_config, tower_b_config, **kwargs)

    def _check(self) -> None:
        super()._check()
        for name in ("cross_loss_weight", "norm_constraint_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
