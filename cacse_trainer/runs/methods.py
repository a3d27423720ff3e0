"""Which settings belong to which method: a flag that nothing would read is refused, a recipe's field is dropped."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any

from cacse_trainer.errors import UserError
from cacse_trainer.models.objectives import OBJECTIVES
from cacse_trainer.settings.arguments import ModelArguments
from cacse_trainer.settings.contrastive import ContrastiveArguments
from cacse_trainer.settings.decoder import DecoderArguments
from cacse_trainer.settings.distillation import RankingArguments
from cacse_trainer.settings.recipes import Parsed

CACSE, TNCSE, SIMCSE, DIFFCSE, TSDAE = "CACSE", "TNCSE", "SimCSE", "DiffCSE", "TSDAE"
BELONGS_TO: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *("constraint", "cascade_start_layer", "constraint_layers", "cascade_heads", "cascade_loss_weight"),
            *("cascade_dropout", "constraint_dropout", "constraint_attention", "freeze_embeddings"),
        ),
        (CACSE,),
    ),
    **dict.fromkeys(("cross_loss_weight", "norm_constraint_weight"), (TNCSE,)),
    "tower_dropout": (CACSE, TNCSE),
    **dict.fromkeys(("projection", "mlp_only_train", "objective", "hard_negative_weight"), (SIMCSE, DIFFCSE)),
    "dropout": (SIMCSE, DIFFCSE, TSDAE),
    **dict.fromkeys(
        ("mlm_weight", *(field.name for kind in (ContrastiveArguments, DecoderArguments) for field in fields(kind))),
        (SIMCSE,),
    ),
    **dict.fromkeys(("tsdae_layers", "tsdae_deletion"), (TSDAE,)),
    **dict.fromkeys(("generator", "rtd_loss_weight", "rtd_positions"), (DIFFCSE,)),
}
"""Settings of some methods only; all others count in every one."""
OF_TEACHERS = ("ranking_loss", *(field.name for field in fields(RankingArguments) if field.name != "teachers"))
"""Settings of the ranking that teachers teach."""
OF_THE_TRAINER = ("guide", "guide_margin", "guide_margin_type", "teachers", *OF_TEACHERS)
"""Among them those that the model is not built with."""
SHARED = ("pooling", "contrastive_temperature", "attn_implementation")
"""Settings that every method's model is built with."""
DECIDING = (
    "model",
    "tower_a",
    "norm_constraint_weight",
    "generator",
    "pooling",
    "objective",
    "mlm_weight",
    "lora_r",
    "adapter",
    "guide",
    "teachers",
    "ranking_loss",
    "tsdae_layers",
)
"""Flags that choose what the other settings are for."""
HEAD = ("projection", "mlp_only_train")
"""Settings of the head that pooling cls has."""
ZERO_COUNTS = ("dropout", "cascade_start_layer", "bidirectional_start_layer")
"""Settings that 0 does not switch off."""


def method_of(settings: ModelArguments) -> str:
    """The method that the settings ask for, by the parts that they name."""
    if settings.model is None:
        return CACSE if settings.norm_constraint_weight is None else TNCSE
    if settings.generator is not None:
        return DIFFCSE
    return SIMCSE if settings.tsdae_layers is None else TSDAE


def settings_of(method: str, settings: ModelArguments) -> dict[str, Any]:
    """The settings that a method's model is built with, by name."""
    own = (name for name, owners in BELONGS_TO.items() if method in owners)
    return {name: getattr(settings, name) for name in (*SHARED, *own) if name not in OF_THE_TRAINER}


def settle(
    parsed: Parsed, unused: Mapping[str, str], deciding: Collection[str] = (), dropped: Collection[str] = ()
) -> None:
    """Put settings that nothing reads back to their defaults, or refuse them.

    A value that switches a thing off is never refused, and a recipe's field only where no flag made it meaningless.

    Args:
        parsed: the settings.
        unused: what is wrong with each such setting, and how to mend it.
        deciding: the flags that may make a recipe's field meaningless.
        dropped: fields of a recipe that are never refused.

    Raises:
        UserError: with the first that is refused.
    """
    for name in [name for name in parsed.given() if name in unused]:
        group = next(group for group in parsed.groups if name in type(group).__dataclass_fields__)
        value = getattr(group, name)
        is_off = value is None or value is False or value == "none" or (value == 0 and name not in ZERO_COUNTS)
        decided = name in dropped or set(deciding) & set(parsed.flags)
        if not is_off and (name in parsed.flags or not decided):
            raise UserError(unused[name])
        setattr(group, name, type(group).__dataclass_fields__[name].default)
        if name in parsed.from_recipe:
            parsed.from_recipe.remove(name)


def check_used(parsed: Parsed) -> None:
    """Settle what the method, the objective and the pooling do not read (see `settle`)."""
    unused: dict[str, str] = {}
    for name, wrong in _unused(parsed.groups[0]):
        unused.setdefault(name, wrong)
    settle(parsed, unused, DECIDING, () if "pooling" in parsed.given() else HEAD)  # else the start states the pooling


def _unused(model_args: ModelArguments) -> Iterator[tuple[str, str]]:
    """Every setting that nothing would read, and what to say of it."""
    method = method_of(model_args)
    for name, owners in BELONGS_TO.items():
        if method not in owners:
            yield name, f"{name} has no effect with {method}; it belongs to {' and '.join(owners)}: leave it out"
    if method != DIFFCSE and model_args.mlm_weight == 0:
        yield (
            "mask_probability",
            "mask_probability has no effect: no loss here reads masked sentences; it belongs to DiffCSE, and to SimCSE "
            "with mlm_weight above 0",
        )
    if method == TSDAE:
        yield "mask_duplicates", "mask_duplicates has no effect with TSDAE, which has no negatives: leave it out"
    if method in (CACSE, TNCSE, TSDAE):
        return
    if model_args.pooling != "cls":
        for name in HEAD:
            yield name, f"{name} has no effect with pooling {model_args.pooling}: only cls has a projection on top"
    of_a_new_adapter = ("lora_alpha", "lora_dropout", "lora_target_modules", "lora_init")
    if model_args.adapter is not None:
        for name in ("lora_r", *of_a_new_adapter):
            yield (
                name,
                f"{name} has no effect with adapter, which goes on as it was made: leave one of them out; for a new "
                "adapter over the merged one give as model the earlier run's export/encoder, or the folder that peft's "
                "merge_and_unload was saved to, and no adapter",
            )
    elif model_args.lora_r is None:
        for name in of_a_new_adapter:
            yield name, f"{name} has no effect without a new adapter; give lora_r, too"
    if model_args.keep_weight == 0:
        yield "keep_file", "keep_file has no effect with keep_weight 0; give a weight above it, such as 10"
    if model_args.guide is None:
        for name in ("guide_margin", "guide_margin_type"):
            yield name, f"{name} has no effect without a guide: give guide, too, such as start"
    if not model_args.teachers:
        for name in OF_TEACHERS:
            yield name, f"{name} has no effect without teachers: give teachers, too, such as path=FOLDER"
    elif model_args.ranking_loss != "listnet":
        yield "teacher_temperature", "teacher_temperature has no effect with ranking_loss listmle: leave it out"
    objective = OBJECTIVES.get(model_args.objective)
    if objective is None:  # the model says so
        return
    for name in {name for other in OBJECTIVES.values() for name in other.reads} - set(objective.reads):
        readers = [other for other in OBJECTIVES if name in OBJECTIVES[other].reads]
        yield name, f"{name} has no effect with objective {model_args.objective}; it belongs to {' and '.join(readers)}"
    if objective.negatives(2) == 0:
        yield (
            "mask_duplicates",
            f"mask_duplicates has no effect with objective {model_args.objective}: it has no negatives in the batch",
        )


def check_hard_negatives(parsed: Parsed, columns: int) -> None:
    """Settle a weight of hard negatives for text that has none; ``columns`` 0: not known (a stream)."""
    if columns in (1, 2):
        wrong = (
            f"hard_negative_weight has no effect: the training text has {columns} column(s), and no hard negatives; "
            "name three or more with text_columns"
        )
        settle(parsed, {"hard_negative_weight": wrong}, ("train_file", "text_columns"))
