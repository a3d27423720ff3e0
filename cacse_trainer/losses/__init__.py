"""Pure loss functions of tensors; the models call them, and so may any other program."""

from cacse_trainer.losses.contrastive import false_negatives, info_nce, labelled_nt_xent, nt_xent
from cacse_trainer.losses.distillation import cosine_drift, distillation_loss, distillation_parts, interleave
from cacse_trainer.losses.margin import margin_mse_loss
from cacse_trainer.losses.ranking import angle_loss, cosent_loss
from cacse_trainer.losses.ranking_distillation import cosines, js_consistency, listmle_loss, listnet_loss
from cacse_trainer.losses.two_towers import cross_nt_xent, norm_constraint

__all__ = [
    "angle_loss",
    "cosent_loss",
    "cosine_drift",
    "cosines",
    "cross_nt_xent",
    "distillation_loss",
    "distillation_parts",
    "false_negatives",
    "info_nce",
    "interleave",
    "js_consistency",
    "labelled_nt_xent",
    "listmle_loss",
    "listnet_loss",
    "margin_mse_loss",
    "norm_constraint",
    "nt_xent",
]
