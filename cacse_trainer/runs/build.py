"""Settings to a model and its tokenizer; and a trained model to exported folders."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from cacse_trainer.compute.distributed import alone
from cacse_trainer.data import ContrastiveCollator, MaskingCollator
from cacse_trainer.encoding.embedder import position_limit
from cacse_trainer.encoding.members import load_ensemble, load_members
from cacse_trainer.encoding.model_card import CardFacts
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.export.encoders import Score, export_cacse
from cacse_trainer.export.ensemble import export_ensemble
from cacse_trainer.export.single_tower import check_exportable, export_single_tower
from cacse_trainer.models.adapters import LoraSettings
from cacse_trainer.models.modeling_cacse import CacseModel, cacse_class
from cacse_trainer.models.modeling_diffcse import DiffcseModel
from cacse_trainer.models.modeling_ensemble import EnsembleModel
from cacse_trainer.models.modeling_sentence_embedding import SentenceEmbeddingModel
from cacse_trainer.models.modeling_student import StudentModel
from cacse_trainer.models.objectives import check_format, needs_binary_labels
from cacse_trainer.models.prompting import prepare_tokenizer
from cacse_trainer.models.tokenizer_bundle import load_tokenizer_of
from cacse_trainer.settings.arguments import DataArguments, ModelArguments
from cacse_trainer.settings.decoder import DecoderArguments
from cacse_trainer.settings.distillation import EncoderChoice
from cacse_trainer.settings.resources import public_name, resolve_resource


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    more = {"trust_remote_code": True} if trust_remote_code else {}
    with user_errors(f"tokenizer of {path}"):
        tokenizer = load_tokenizer_of(path, AutoConfig.from_pretrained(path, **more), **more)
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_ids):  # transformers makes one up
        raise UserError(f"model {path} has no tokenizer; save one beside it (tokenizer.save_pretrained)")
    return tokenizer


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
    refuse_decoder_settings(settings, "CACSE")
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
    if settings.generator is not None:
        return build_diffcse(settings, encoder, settings.generator, common)
    with user_errors(f"model {encoder}", KeyError, RuntimeError):
        config = AutoConfig.from_pretrained(path, trust_remote_code=settings.trust_remote_code)
        check_pooling_of(config, settings)
        tokenizer = load_tokenizer(path, settings.trust_remote_code)
        tokenizer = prepare_tokenizer(tokenizer, settings.prompt_template, settings.append_eos, config)
        model = SentenceEmbeddingModel.from_encoder(
            path,
            mlm_weight=settings.mlm_weight,
            lora=lora_settings(settings),
            adapter=resolve_resource(settings.adapter) if settings.adapter is not None else None,
            load_in_4bit=settings.load_in_4bit,
            load_in_8bit=settings.load_in_8bit,
            dtype=base_dtype(settings),
            trust_remote_code=settings.trust_remote_code,
            **common,
            **{name: getattr(settings, name) for name in CONFIGURED},
        )
    return model, tokenizer


CONFIGURED = (
    *("prompt_template", "append_eos", "bidirectional_start_layer", "ranking_scale", "positive_threshold"),
    *("cosine_weight", "ibn_weight", "cln_weight", "angle_weight"),
)
"""Settings that go to the model's config by their own names."""


def build_diffcse(
    settings: ModelArguments, encoder: str, generator: str, common: dict[str, Any]
) -> tuple[SentenceEmbeddingModel, PreTrainedTokenizerBase]:
    """DiffCSE: the encoder, its discriminator and the generator."""
    refuse_decoder_settings(settings, "DiffCSE")
    path = resolve_resource(encoder)
    with user_errors(f"model {encoder}"):
        model = DiffcseModel.from_pretrained_parts(
            path,
            resolve_resource(generator),
            rtd_loss_weight=settings.rtd_loss_weight,
            rtd_positions=settings.rtd_positions,
            **common,
        )
    tokenizer = load_tokenizer(path)
    if tokenizer.get_vocab() != load_tokenizer(resolve_resource(generator)).get_vocab():
        raise UserError(
            f"the tokenizers of {encoder} and of its generator {generator} differ; both read the same tokens"
        )
    return model, tokenizer


def refuse_decoder_settings(settings: ModelArguments, method: str) -> None:
    """Refuse settings that a method has no use for.

    Raises:
        UserError: with the first of them.
    """
    given = [field.name for field in fields(DecoderArguments) if getattr(settings, field.name) != field.default]
    if given:
        raise UserError(f"{given[0]} has no effect with {method}; it belongs to a single tower (model)")


def lora_settings(settings: ModelArguments) -> LoraSettings | None:
    """The new adapter that the settings ask for, if any."""
    if settings.lora_r is None:
        return None
    return LoraSettings(
        settings.lora_r,
        settings.lora_alpha,
        settings.lora_dropout,
        settings.lora_target_modules,
        settings.lora_init,
    )


def base_dtype(settings: ModelArguments) -> torch.dtype:
    """The dtype of the weights: float32, unless they are frozen under an adapter.

    Raises:
        UserError: another dtype, or bfloat16 for weights that are trained.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if settings.base_dtype not in dtypes:
        raise UserError(f"base_dtype {settings.base_dtype!r}: give {' or '.join(dtypes)}")
    if settings.base_dtype != "float32" and settings.lora_r is None and settings.adapter is None:
        raise UserError("base_dtype bfloat16 is for frozen weights: give lora_r or adapter, or train with bf16 true")
    return dtypes[settings.base_dtype]


def check_pooling_of(config: PretrainedConfig, settings: ModelArguments) -> None:
    """Refuse to read a decoder at its first token, which has seen nothing of the sentence.

    Raises:
        UserError: with the poolings that fit.
    """
    kind = config.model_type
    decoder = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    decoder = decoder or any(str(name).endswith("ForCausalLM") for name in config.architectures or [])
    if decoder and settings.pooling.startswith("cls"):
        raise UserError(
            f"model {settings.model} is a decoder, whose first token sees nothing of the sentence; choose pooling "
            "last_token, mean or weighted_mean"
        )


def build_collator(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: DataArguments
) -> ContrastiveCollator:
    """The collator that this model's loss needs: with masked copies, or without."""
    if isinstance(model, SentenceEmbeddingModel) and model.needs_masked_copies:
        return MaskingCollator(
            tokenizer, settings.max_seq_length, mask_probability=settings.mask_probability, with_text_ids=True
        )
    return ContrastiveCollator(tokenizer, settings.max_seq_length, with_text_ids=True)


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


def check_weights(model: PreTrainedModel) -> None:
    """Refuse weights that are NaN or infinite, with which nothing can be learned.

    Raises:
        UserError: with the first such tensor.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"the weights that training starts from are not sound: {name} is not finite; take another model"
            )


def check_columns(model: PreTrainedModel, facts: dict[str, Any], rows: Dataset | IterableDataset) -> None:
    """Refuse text that the model's loss has no place for.

    Args:
        model: what is trained.
        facts: of the text: ``columns``, and ``labelled`` for pairs with a number.
        rows: the text.

    Raises:
        UserError: with the columns, or the label.
    """
    columns, labelled = facts.get("columns", []), bool(facts.get("labelled"))
    if isinstance(model, SentenceEmbeddingModel) and columns:
        with user_errors("training text"):
            check_format(model.config.objective, 2 if labelled else max(2, len(columns)), labelled)
        graded = labelled and next((label for label in rows["score"] if label not in (0, 1)), None)
        if graded and needs_binary_labels(model.config):
            raise UserError(
                f"training text: the label {graded:g} is graded, and objective angle_combined counts pairs in the "
                "batch as positive or not; set positive_threshold, or ibn_weight 0, or choose objective cosent or angle"
            )
    elif isinstance(model, CacseModel) and (len(columns) > 2 or labelled):
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
