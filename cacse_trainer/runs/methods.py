"""Which settings belong to which method: one that would be ignored is refused when it was given."""

from collections.abc import Collection

from cacse_trainer.errors import UserError
from cacse_trainer.models.objectives import OBJECTIVES
from cacse_trainer.settings.arguments import DataArguments, ModelArguments

CACSE, SIMCSE, DIFFCSE = "CACSE", "SimCSE", "DiffCSE"
BELONGS_TO: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *("constraint", "cascade_start_layer", "constraint_layers", "cascade_heads", "cascade_loss_weight"),
            *("cascade_dropout", "constraint_dropout", "constraint_attention", "tower_dropout", "freeze_embeddings"),
        ),
        (CACSE,),
    ),
    **dict.fromkeys(
        ("pooling", "projection", "mlp_only_train", "objective", "dropout", "hard_negative_weight"), (SIMCSE, DIFFCSE)
    ),
    "mlm_weight": (SIMCSE,),
    **dict.fromkeys(("rtd_loss_weight", "rtd_positions"), (DIFFCSE,)),
}
"""Settings of some methods only; all others count in every one."""


def method_of(settings: ModelArguments) -> str:
    """The method that the settings ask for, by the parts that they name."""
    if settings.model is None:
        return CACSE
    return SIMCSE if settings.generator is None else DIFFCSE


def check_used(given: Collection[str], model_args: ModelArguments, data_args: DataArguments, masks: bool) -> None:
    """Refuse a setting that was given, by recipe or flag, and that nothing would read.

    Args:
        given: names of the settings that were given.
        model_args, data_args: the settings.
        masks: whether equal sentences are left out of the negatives.

    Raises:
        UserError: with the first of them, and what it belongs to.
    """
    method = method_of(model_args)
    is_cacse = method == CACSE
    if is_cacse and model_args.generator is not None:
        raise UserError("generator has no effect with CACSE; it belongs to DiffCSE (give model instead of towers)")
    for name in given:
        owners = BELONGS_TO.get(name, (method,))
        if method not in owners and not (name == "mlm_weight" and model_args.mlm_weight == 0):
            raise UserError(f"{name} has no effect with {method}; it belongs to {' and '.join(owners)}: leave it out")
    if "mask_probability" in given and method != DIFFCSE and model_args.mlm_weight == 0:
        raise UserError(
            "mask_probability has no effect: no loss here reads masked sentences; it belongs to DiffCSE, and to SimCSE "
            "with mlm_weight above 0"
        )
    for name in ("projection", "mlp_only_train"):
        if name in given and getattr(model_args, name) is not None and model_args.pooling != "cls":
            raise UserError(f"{name} has no effect with pooling {model_args.pooling}: only cls has a projection on top")
    has_negatives = is_cacse or model_args.objective not in OBJECTIVES or OBJECTIVES[model_args.objective].negatives(2)
    if masks and not has_negatives:
        raise UserError(
            f"mask_duplicates has no effect with objective {model_args.objective}: it has no negatives in the batch"
        )


def check_hard_negatives(given: Collection[str], model_args: ModelArguments, columns: int | None) -> None:
    """Refuse a weight of hard negatives for text that has none; ``columns`` None: not known (a stream).

    Raises:
        UserError: with the number of columns.
    """
    if "hard_negative_weight" in given and model_args.hard_negative_weight != 0 and columns in (1, 2):
        raise UserError(
            f"hard_negative_weight has no effect: the training text has {columns} column(s), and no hard negatives; "
            "name three with text_columns"
        )
