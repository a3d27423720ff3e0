"""A single tower to a plain encoder folder.

A head that stays at inference (supervised SimCSE) goes to two places: the encoder's own pooler, as in the released
models, and sentence-transformers' Dense module. An adapter is merged into the weights. A prompt and an EOS are part of
the tokenizer, so nothing that loads the folder needs to know of them. Bidirectional layers are no part of any plain
model: the folder then holds a `SentenceEmbeddingModel`, which loads after ``import cacse_trainer``.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cacse_trainer.compute.pooling import POOLINGS
from cacse_trainer.encoding.model_card import CardFacts
from cacse_trainer.encoding.sentence_transformers import POOLING_FLAGS
from cacse_trainer.errors import UserError
from cacse_trainer.export.encoders import Encoder, export_encoder, is_remote
from cacse_trainer.models.adapters import in_full_precision, merged_copy
from cacse_trainer.models.configuration_sentence_embedding import SentenceEmbeddingConfig
from cacse_trainer.models.modeling_sentence_embedding import SentenceEmbeddingModel
from cacse_trainer.models.prompting import prompt_of

# What sentence-transformers calls the poolings of a single tower.
PLAIN_POOLINGS = {"cls": "cls", "cls_before_pooler": "cls", "mean": "mean", "avg": "mean"}
PLAIN_POOLINGS.update({name: name for name in POOLING_FLAGS if name in POOLINGS and name not in PLAIN_POOLINGS})


def check_exportable(model: SentenceEmbeddingModel) -> None:
    """Refuse a single tower whose vectors no plain encoder folder can give.

    Raises:
        UserError: it pools several layers, or keeps a batch norm at inference.
    """
    config = model.config
    if config.pooling not in PLAIN_POOLINGS:
        raise UserError(
            f"pooling {config.pooling} has no form that sentence-transformers loads; choose one of "
            f"{', '.join(PLAIN_POOLINGS)}, or train with export false"
        )
    if config.projects_at_inference and config.projection != "tanh":
        raise UserError(
            f"projection {config.projection} cannot be part of an exported encoder: set mlp_only_train, or "
            "projection tanh"
        )


def plain_encoder(model: SentenceEmbeddingModel) -> PreTrainedModel:
    """The encoder as it is exported: dropout as before training, a head as its pooler, an adapter merged."""
    exported = merged_copy(model.encoder) if model.has_adapter else copy.copy(model.encoder)
    exported.config = copy.deepcopy(exported.config)
    for name, value in model.config.original_dropout.items():
        setattr(exported.config, name, value)
    if model.config.projects_at_inference:
        head = model.projection_head.state_dict()
        for name, pooler in model.encoder.named_children():
            if name == "pooler" and pooler.state_dict().keys() == head.keys():
                pooler.load_state_dict(head)
    return exported


def bidirectional_encoder(model: SentenceEmbeddingModel) -> SentenceEmbeddingModel:
    """The model around its exported encoder, whose config says which layers see both directions."""
    encoder = plain_encoder(model)
    config = cast(SentenceEmbeddingConfig, copy.deepcopy(model.config))
    config.encoder_config = encoder.config
    return SentenceEmbeddingModel(config, encoder)


def export_single_tower(
    model: SentenceEmbeddingModel,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    facts: CardFacts,
    dev_sets: Mapping[str, Dataset] | None = None,
    name: str = "encoder",
) -> dict[str, dict[str, float]]:
    """Export a single tower to ``output_dir/name``; see `export_encoder`. Returns its scores by name."""
    check_exportable(model)
    model.eval()
    if model.has_adapter:  # compared in float32 with what is written so, whatever the frozen weights were held in
        model.encoder = in_full_precision(model.encoder)
    bidirectional = model.config.bidirectional_start_layer is not None
    if model.config.pooling == "weighted_mean" and tokenizer.padding_side != "right":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.padding_side = "right"  # sentence-transformers counts positions from the row's first column
    what = describe(model, tokenizer, facts.title)
    encoder = Encoder(
        name,
        bidirectional_encoder(model) if bidirectional else plain_encoder(model),
        model.embed,
        replace(facts, what=what, ensemble=bidirectional, remote_code=is_remote(model.encoder)),
        pooling=PLAIN_POOLINGS[model.config.pooling],
        dense=cast(nn.Linear, model.projection_head.dense) if model.config.projects_at_inference else None,
        merged=model.has_adapter,
    )
    return {encoder.name: export_encoder(encoder, tokenizer, Path(output_dir), dev_sets)}


def describe(model: SentenceEmbeddingModel, tokenizer: PreTrainedTokenizerBase, title: str) -> str:
    """What the card says of the encoder."""
    head = "; a dense layer and tanh follow the pooling" if model.config.projects_at_inference else ""
    merged = ", its adapter merged into the weights" if model.has_adapter else ""
    text = f"The encoder of {title}, a plain encoder{merged}{head}."
    start = model.config.bidirectional_start_layer
    if start is not None:
        text = f"The encoder of {title}{merged}: decoder layers from {start} on (from 0) see both directions."
    template, eos = prompt_of(tokenizer)
    if template is not None or eos:
        around = f"the prompt `{template}` around every text" if template is not None else ""
        closing = "an EOS token at its end" if eos else ""
        text += f" Its tokenizer puts {' and '.join(filter(None, (around, closing)))}: give it the texts as they are."
    return text
