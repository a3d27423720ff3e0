"""Settings to a model and its tokenizer; and a trained model to exported folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from cacse_trainer.arguments import DataArguments, EncoderChoice, ModelArguments
from cacse_trainer.cli.common import user_errors
from cacse_trainer.data import ContrastiveCollator, MaskingCollator
from cacse_trainer.distributed import alone
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.embed import position_limit
from cacse_trainer.export.encoders import Score, export_cacse
from cacse_trainer.export.ensemble import export_ensemble
from cacse_trainer.export.model_card import CardFacts
from cacse_trainer.export.single_tower import check_exportable, export_single_tower
from cacse_trainer.models.modeling_cacse import CacseModel, cacse_class
from cacse_trainer.models.modeling_diffcse import DiffcseModel
from cacse_trainer.models.modeling_ensemble import EnsembleModel
from cacse_trainer.models.modeling_sentence_embedding import SentenceEmbeddingModel
from cacse_trainer.models.modeling_student import StudentModel
from cacse_trainer.models.tokenizer_bundle import load_tokenizer_of
from cacse_trainer.recipes import PACKAGE, resolve_resource
from cacse_trainer.teachers import load_ensemble, load_members


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id."""
    with user_errors(f"tokenizer of {path}"):
        return load_tokenizer_of(path, AutoConfig.from_pretrained(path))


def load_encoders(choices: Sequence[EncoderChoice]) -> tuple[EnsembleModel, Any]:
    """The weighted sum of the chosen encoders, and its tokenizer or `TokenizerBundle`.

    Raises:
        UserError: one cannot be read, or the widths differ.
    """
    members = []
    for choice in choices:
        with user_errors(f"encoder {choice.path}"):
            members += load_members(resolve_resource(choice.path), choice.pooling, choice.weight)
    return load_ensemble(members)


def build_model(settings: ModelArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that the settings describe, with its tokenizer.

    Raises:
        UserError: parts are missing or do not fit each other, or cannot be read.
    """
    if settings.model is not None and (settings.tower_a is not None or settings.tower_b is not None):
        raise UserError("give either model (SimCSE, DiffCSE) or tower_a and tower_b (CACSE), not both")
    if settings.model is not None:
        return build_single_tower(settings, settings.model)
    if settings.tower_a is None or settings.tower_b is None:
        raise UserError(
            "nothing to train: give model (SimCSE, DiffCSE), or tower_a and tower_b (CACSE), in a recipe or as flags"
        )
    return build_cacse(settings, settings.tower_a, settings.tower_b)


def build_single_tower(
    settings: ModelArguments, encoder: str
) -> tuple[SentenceEmbeddingModel, PreTrainedTokenizerBase]:
    """One encoder: DiffCSE where a generator is given, else SimCSE."""
    path = resolve_resource(encoder)
    common: dict[str, Any] = {
        "pooling": settings.pooling,
        "objective": settings.objective,
        "contrastive_temperature": settings.contrastive_temperature,
        "hard_negative_weight": settings.hard_negative_weight,
        "dropout": settings.dropout,
        "attn_implementation": settings.attn_implementation,
    }
    defaults = {"projection": settings.projection, "mlp_only_train": settings.mlp_only_train}
    common.update({name: value for name, value in defaults.items() if value is not None})
    model: SentenceEmbeddingModel
    with user_errors(f"model {encoder}"):
        if settings.generator is None:
            model = SentenceEmbeddingModel.from_encoder(path, mlm_weight=settings.mlm_weight, **common)
        else:
            if settings.mlm_weight != 0:
                raise UserError(
                    "mlm_weight is SimCSE's auxiliary loss and has no effect with a generator (DiffCSE); drop one"
                )
            model = DiffcseModel.from_pretrained_parts(
                path,
                resolve_resource(settings.generator),
                rtd_loss_weight=settings.rtd_loss_weight,
                rtd_positions=settings.rtd_positions,
                **common,
            )
    tokenizer = load_tokenizer(path)
    if settings.generator is not None:
        other = load_tokenizer(resolve_resource(settings.generator))
        if tokenizer.get_vocab() != other.get_vocab():
            raise UserError(
                f"the tokenizers of {encoder} and of its generator {settings.generator} differ; "
                "both read the same tokens"
            )
    return model, tokenizer


def build_collator(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: DataArguments
) -> ContrastiveCollator:
    """The collator that this model's loss needs: with masked copies, or without."""
    if isinstance(model, SentenceEmbeddingModel) and model.needs_masked_copies:
        return MaskingCollator(tokenizer, settings.max_seq_length, mask_probability=settings.mask_probability)
    return ContrastiveCollator(tokenizer, settings.max_seq_length)


def build_cacse(settings: ModelArguments, tower_a: str, tower_b: str) -> tuple[CacseModel, PreTrainedTokenizerBase]:
    """Two towers and a fresh cascade."""
    path_a, path_b = resolve_resource(tower_a), resolve_resource(tower_b)
    constraint = resolve_resource(settings.constraint) if settings.constraint is not None else None
    with user_errors(f"towers {tower_a}, {tower_b}"):
        model = cacse_class(AutoConfig.from_pretrained(path_a)).from_towers(
            path_a,
            path_b,
            constraint,
            cascade_start_layer=settings.cascade_start_layer,
            constraint_layers=settings.constraint_layers,
            cascade_heads=settings.cascade_heads,
            cascade_loss_weight=settings.cascade_loss_weight,
            contrastive_temperature=settings.contrastive_temperature,
            tower_dropout=settings.tower_dropout,
            cascade_dropout=settings.cascade_dropout,
            constraint_dropout=settings.constraint_dropout,
            constraint_attention=settings.constraint_attention,
            freeze_embeddings=settings.freeze_embeddings,
            attn_implementation=settings.attn_implementation,
        )
    tokenizer = load_tokenizer(path_a)
    other = load_tokenizer(path_b)
    if tokenizer.get_vocab() != other.get_vocab():
        raise UserError(f"the towers' tokenizers differ ({tower_a} and {tower_b}); both towers read the same tokens")
    return model, tokenizer


def check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> None:
    """Refuse a tokenizer with more tokens than the model has, and a length beyond the model's positions.

    Raises:
        UserError: with both numbers.
    """
    largest, vocabulary = max(tokenizer.get_vocab().values()), model.config.vocab_size
    if largest >= vocabulary:
        raise UserError(
            f"the tokenizer does not fit the model: it gives ids up to {largest}, the model has {vocabulary} embeddings"
        )
    positions, special = position_limit(model.config), tokenizer.num_special_tokens_to_add()
    if max_seq_length > positions:
        raise UserError(f"max_seq_length={max_seq_length} is beyond the model's {positions} positions")
    if max_seq_length <= special:
        raise UserError(f"max_seq_length={max_seq_length} leaves no room for text beside {special} special tokens")


def check_columns(model: PreTrainedModel, columns: Sequence[str]) -> None:
    """Refuse text columns that the model's loss has no place for.

    Raises:
        UserError: with the columns.
    """
    if isinstance(model, CacseModel) and len(columns) > 2:
        raise UserError(
            f"CACSE compares two views of a row, got the columns {', '.join(columns)}; "
            "choose one or two with text_columns"
        )


def check_export(model: PreTrainedModel) -> None:
    """Refuse, before training, a model that `export_model` will refuse.

    Raises:
        UserError: with what to change.
    """
    if isinstance(model, SentenceEmbeddingModel):
        check_exportable(model)


def export_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output_dir: Path, facts: CardFacts, score: Score | None
) -> dict[str, dict[str, float]]:
    """Export whatever was trained as plain encoders; the scores by folder and dev set. One process's work."""
    with alone():
        if isinstance(model, CacseModel):
            return export_cacse(model, tokenizer, output_dir, facts, score)
        if isinstance(model, EnsembleModel):
            return export_ensemble(model, tokenizer, output_dir, facts, score)
        if isinstance(model, SentenceEmbeddingModel):
            name = "student" if isinstance(model, StudentModel) else "encoder"
            return export_single_tower(model, tokenizer, output_dir, facts, score, name)
    raise UserError(f"no export for a {type(model).__name__}")


def base_models(settings: ModelArguments) -> list[str]:
    """Names of what training starts from, without a machine's folders."""
    return list(
        dict.fromkeys(public_name(name) for name in (settings.model, settings.tower_a, settings.tower_b) if name)
    )


def public_name(name: str) -> str:
    """A hub id as it is, a local folder by its last part."""
    if name.startswith(PACKAGE):
        return name.removeprefix(PACKAGE).partition("/")[0]
    return Path(name).name if Path(name).exists() else name


def dev_scores(dev_sets: dict, score_pairs_of) -> Score | None:
    """How an exported folder is scored on the dev sets; None without any."""
    if not dev_sets:
        return None

    def score(embed, tokenizer: PreTrainedTokenizerBase, limit: int) -> dict[str, float]:
        return {
            name: score_pairs_of(embed, tokenizer, pairs, max_seq_length=limit)["spearman"]
            for name, pairs in dev_sets.items()
        }

    return score


def describe_sources(paths: Sequence[str | None]) -> str:
    """Names of the training text, without a machine's folders."""
    return ", ".join(public_name(path) for path in paths if path)
