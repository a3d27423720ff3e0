"""Pure loss functions of tensors; the models call them, and so may any other program."""

from cacse_trainer.losses.contrastive import info_nce, labelled_nt_xent, nt_xent
from cacse_trainer.losses.distillation import distillation_loss, distillation_parts, interleave
from cacse_trainer.losses.margin import margin_mse_loss
from cacse_trainer.losses.ranking import angle_loss, cosent_loss

__all__ = [
    "angle_loss",
    "cosent_loss",
    "distillation_loss",
    "distillation_parts",
    "info_nce",
    "interleave",
    "labelled_nt_xent",
    "margin_mse_loss",
    "nt_xent",
]
