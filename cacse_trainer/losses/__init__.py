"""Pure loss functions of tensors; the models call them, and so may any other program."""

from cacse_trainer.losses.contrastive import false_negatives, info_nce, labelled_nt_xent, nt_xent
from cacse_trainer.losses.distillation import cosine_drift, distillation_loss, distillation_parts, interleave
from cacse_trainer.losses.ranking import angle_loss, cosent_loss

__all__ = [
    "angle_loss",
    "cosent_loss",
    "cosine_drift",
    "distillation_loss",
    "distillation_parts",
    "false_negatives",
    "info_nce",
    "interleave",
    "labelled_nt_xent",
    "nt_xent",
]
