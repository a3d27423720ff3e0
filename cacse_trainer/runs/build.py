"""Settings to a model and its tokenizer; and a trained model to exported folders."""

from collections.abc import Callable, Mapping, Sequence
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
from cacse_trainer.export.encoders import export
from cacse_trainer.models.adapters import LoraSettings
from cacse_trainer.models.base import SentenceModel
from cacse_trainer.models.modeling_cacse import cacse_class
from cacse_trainer.models.modeling_diffcse import DiffcseModel
from cacse_trainer.models.modeling_ensemble import EnsembleModel
from cacse_trainer.models.modeling_sentence_embedding import SentenceEmbeddingModel
from cacse_trainer.models.prompting import prepare_tokenizer
from cacse_trainer.models.tokenizer_bundle import load_tokenizer_of
from cacse_trainer.runs.methods import CACSE, DIFFCSE, SIMCSE, method_of
from cacse_trainer.settings.arguments import DataArguments, ModelArguments
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


def build_model(settings: ModelArguments) -> tuple[SentenceModel, PreTrainedTokenizerBase]:
    """The model that the settings describe, with its tokenizer.

    Raises:
        UserError: parts are missing or do not fit each other, or cannot be read.
    """
    if settings.model is not None and (settings.tower_a is not None or settings.tower_b is not None):
        raise UserError("give either model (SimCSE, DiffCSE) or tower_a and tower_b (CACSE), not both")
    return BUILDERS[method_of(settings)](settings)


def single_tower_settings(settings: ModelArguments) -> dict[str, Any]:
    """What SimCSE and DiffCSE share."""
    common = {
        "pooling": settings.pooling,
        "objective": settings.objective,
        "contrastive_temperature": settings.contrastive_temperature,
        "hard_negative_weight": settings.hard_negative_weight,
        "dropout": settings.dropout,
        "attn_implementation": settings.attn_implementation,
    }
    defaults = {"projection": settings.projection, "mlp_only_train": settings.mlp_only_train}
    return {**common, **{name: value for name, value in defaults.items() if value is not None}}


def build_simcse(settings: ModelArguments) -> tuple[SentenceModel, PreTrainedTokenizerBase]:
    """One encoder and an objective over the views of a batch."""
    encoder = str(settings.model)
    path = resolve_resource(encoder)
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
            **single_tower_settings(settings),
            **{name: getattr(settings, name) for name in CONFIGURED},
        )
    return model, tokenizer


CONFIGURED = (
    *("prompt_template", "append_eos", "bidirectional_start_layer", "ranking_scale", "positive_threshold"),
    *("cosine_weight", "ibn_weight", "cln_weight", "angle_weight"),
)
"""Settings that go to the model's config by their own names."""


def build_diffcse(settings: ModelArguments) -> tuple[SentenceModel, PreTrainedTokenizerBase]:
    """The encoder, its discriminator and the generator."""
    encoder, generator = str(settings.model), str(settings.generator)
    path = resolve_resource(encoder)
    with user_errors(f"model {encoder}"):
        model = DiffcseModel.from_pretrained_parts(
            path,
            resolve_resource(generator),
            rtd_loss_weight=settings.rtd_loss_weight,
            rtd_positions=settings.rtd_positions,
            **single_tower_settings(settings),
        )
    tokenizer = load_tokenizer(path)
    if tokenizer.get_vocab() != load_tokenizer(resolve_resource(generator)).get_vocab():
        raise UserError(
            f"the tokenizers of {encoder} and of its generator {generator} differ; both read the same tokens"
        )
    return model, tokenizer


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
    model: SentenceModel, tokenizer: PreTrainedTokenizerBase, settings: DataArguments
) -> ContrastiveCollator:
    """The collator that this model's loss needs: with masked copies, or without."""
    if model.needs_masked_copies:
        return MaskingCollator(
            tokenizer, settings.max_seq_length, mask_probability=settings.mask_probability, with_text_ids=True
        )
    return ContrastiveCollator(tokenizer, settings.max_seq_length, with_text_ids=True)


def build_cacse(settings: ModelArguments) -> tuple[SentenceModel, PreTrainedTokenizerBase]:
    """Two towers and a fresh cascade."""
    tower_a, tower_b = settings.tower_a, settings.tower_b
    if tower_a is None or tower_b is None:
        raise UserError(
            "nothing to train: give model (SimCSE, DiffCSE), or tower_a and tower_b (CACSE), in a recipe or as flags"
        )
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


BUILDERS: dict[str, Callable[[ModelArguments], tuple[SentenceModel, PreTrainedTokenizerBase]]] = {
    CACSE: build_cacse,
    SIMCSE: build_simcse,
    DIFFCSE: build_diffcse,
}
"""Every method that has a model of its own, by the name that `method_of` the settings gives."""


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


def check_columns(model: SentenceModel, facts: dict[str, Any], rows: Dataset | IterableDataset) -> None:
    """Refuse text that the model's loss has no place for.

    Args:
        model: what is trained.
        facts: of the text: ``columns``, and ``labelled`` for pairs with a number.
        rows: the text.

    Raises:
        UserError: with the columns, or the label.
    """
    if facts.get("columns"):
        model.check_rows(facts["columns"], rows["score"] if facts.get("labelled") else None)


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: Path,
    facts: CardFacts,
    dev_sets: Mapping[str, Dataset],
) -> dict[str, dict[str, float]]:
    """Export whatever was trained as plain encoders; the scores by folder and dev set. One process's work."""
    with alone():
        return export(model, tokenizer, output_dir, facts, dev_sets)


def base_models(settings: ModelArguments) -> list[str]:
    """Names of what training starts from, without a machine's folders."""
    return list(
        dict.fromkeys(public_name(name) for name in (settings.model, settings.tower_a, settings.tower_b) if name)
    )
