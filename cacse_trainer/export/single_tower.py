"""A single tower, trained with SimCSE or DiffCSE, to a plain encoder folder.

A head that stays at inference (supervised SimCSE) goes to two places: the encoder's own pooler, as in the released
models, and sentence-transformers' Dense module.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cacse_trainer.errors import UserError
from cacse_trainer.export.encoders import Encoder, Score, export_encoder
from cacse_trainer.export.model_card import CardFacts
from cacse_trainer.export.sentence_transformers import POOLING_FLAGS
from cacse_trainer.models.modeling_sentence_embedding import SentenceEmbeddingModel
from cacse_trainer.models.pooling import POOLINGS

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
    """The encoder as it is exported: dropout as before training, a head kept at inference as its pooler."""
    exported = copy.copy(model.encoder)
    exported.config = copy.deepcopy(model.encoder.config)
    for name, value in model.config.original_dropout.items():
        setattr(exported.config, name, value)
    if model.config.projects_at_inference:
        head = model.projection_head.state_dict()
        for name, pooler in model.encoder.named_children():
            if name == "pooler" and pooler.state_dict().keys() == head.keys():
                pooler.load_state_dict(head)
    return exported


def export_single_tower(
    model: SentenceEmbeddingModel,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    facts: CardFacts,
    score: Score | None = None,
    name: str = "encoder",
) -> dict[str, dict[str, float]]:
    """Export a single tower to ``output_dir/name``; see `export_encoder`. Returns its scores by name."""
    check_exportable(model)
    model.eval()
    head = "; a dense layer and tanh follow the pooling" if model.config.projects_at_inference else ""
    encoder = Encoder(
        name,
        plain_encoder(model),
        model.embed,
        replace(facts, what=f"The encoder of {facts.title}, a plain encoder{head}."),
        pooling=PLAIN_POOLINGS[model.config.pooling],
        dense=cast(nn.Linear, model.projection_head.dense) if model.config.projects_at_inference else None,
    )
    return {encoder.name: export_encoder(encoder, tokenizer, Path(output_dir), score)}
