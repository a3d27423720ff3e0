"""Trained models to plain encoder folders that transformers and sentence-transformers load.

Each folder is written under a temporary name, loaded again, its vectors compared with the trained model's, scored, and
only then renamed into place.
"""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cacse_trainer.compute.packing import sentence_vectors
from cacse_trainer.encoding.embedder import Embed, Embedder, length_limit
from cacse_trainer.encoding.model_card import CardFacts, render_card
from cacse_trainer.encoding.sentence_transformers import read_dense, write_modules
from cacse_trainer.errors import RunError
from cacse_trainer.evaluation.sts import spearman_by_set
from cacse_trainer.files import writing_folder
from cacse_trainer.models.modeling_cacse import CacseModel
from cacse_trainer.models.modeling_ensemble import EnsembleModel

logger = logging.getLogger(__name__)

TOLERANCE = 1e-5
MERGED_TOLERANCE = 1e-4  # of the largest value, if that is above 1: adapter and weights are rounded together
PROBES = [
    "A man is playing a guitar.",
    "The committee postponed its decision until the end of the quarter.",
    "Rain!",
    "",
    "Although the trains were late again, nobody on the platform complained, because the evening was warm and the "
    "musicians under the clock had started another song.",
]


class ExportError(RunError):
    """The exported folder does not give the trained model's vectors."""


@dataclass
class Encoder:
    """One encoder to export.

    Args:
        name: of the folder.
        model: what AutoModel shall load from it.
        embed: how the trained model computes the vectors that it must give.
        facts: for its card; the scores are filled in.
        pooling: for sentence-transformers.
        dense: a layer above the pooling, followed by tanh.
        merged: whether an adapter was merged into the weights.
    """

    name: str
    model: PreTrainedModel
    embed: Embed
    facts: CardFacts
    pooling: str = "cls"
    dense: nn.Linear | None = None
    merged: bool = False


def clean_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy without the truncation and padding that training calls leave in a fast tokenizer's saved file."""
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def restore_dropout(config, values: list[float] | None) -> None:
    """Put a BERT-like config's dropout back to what its checkpoint had before training."""
    if values is not None:
        config.hidden_dropout_prob, config.attention_probs_dropout_prob = values


def cacse_encoders(model: CacseModel, facts: CardFacts) -> list[Encoder]:
    """``tower_a``, ``tower_b`` and ``ensemble`` (their sum, without the cascade) of a trained CACSE model."""
    towers = []
    for name, tower in (("tower_a", model.tower_a), ("tower_b", model.tower_b)):
        exported = copy.copy(tower)
        exported.config = copy.deepcopy(tower.config)
        restore_dropout(exported.config, model.config.original_dropout.get(name))
        towers.append(exported)
    ensemble = EnsembleModel.from_encoders(towers)
    model_name = facts.title

    def cls_of(tower: PreTrainedModel) -> Embed:
        return lambda **inputs: sentence_vectors(tower, "cls", inputs)

    texts = (
        ("tower_a", towers[0], cls_of(model.tower_a), f"Tower A of {model_name}: a plain encoder.", False),
        ("tower_b", towers[1], cls_of(model.tower_b), f"Tower B of {model_name}: a plain encoder.", False),
        ("ensemble", ensemble, model.embed, f"Both towers of {model_name}: the sum of their vectors.", True),
    )
    return [
        Encoder(name, part, embed, replace(facts, title=f"{model_name} {name}", what=what, ensemble=ensembled))
        for name, part, embed, what, ensembled in texts
    ]


def export_encoder(
    encoder: Encoder,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: Path,
    dev_sets: Mapping[str, Dataset] | None = None,
) -> dict[str, float]:
    """Write one encoder to ``output_dir/name``, check it and score it.

    Args:
        encoder: what to write.
        tokenizer: saved beside it, with its own length limit.
        output_dir: parent folder; an older export of that name is replaced when the new one is whole.
        dev_sets: graded pairs by name, on which the folder is scored for its card.

    Returns:
        Spearman ×100 by dev set.

    Raises:
        ExportError: the reloaded folder's vectors differ by more than 1e-5.
    """
    with writing_folder(output_dir / encoder.name) as staged:
        limit = length_limit(tokenizer, encoder.model.config)
        encoder.model.save_pretrained(staged)
        clean_tokenizer(tokenizer).save_pretrained(staged)
        write_modules(
            staged,
            pooling=encoder.pooling,
            hidden_size=encoder.model.config.hidden_size,
            max_seq_length=limit,
            dense=encoder.dense,
        )

        device = encoder.model.device
        trusted = {"trust_remote_code": True} if is_remote(encoder.model) else {}  # its code already runs here
        reloaded = AutoModel.from_pretrained(staged, dtype=torch.float32, **trusted).eval().to(device)
        reloaded_tokenizer = AutoTokenizer.from_pretrained(staged, **trusted)

        dense = read_dense(staged)
        dense = dense.to(device) if dense is not None else None

        def embed(**inputs: torch.Tensor) -> torch.Tensor:
            if isinstance(reloaded, EnsembleModel):
                return reloaded.embed(**inputs)
            vectors = sentence_vectors(reloaded, encoder.pooling, inputs)
            return vectors if dense is None else torch.tanh(dense(vectors))

        embedder = Embedder(embed, reloaded_tokenizer, limit, device)
        return prove(encoder, staged, tokenizer, embedder, dev_sets)


def is_remote(model: PreTrainedModel) -> bool:
    """Whether the model's class came with its checkpoint."""
    return type(model).__module__.startswith("transformers_modules.")


def prove(
    encoder: Encoder,
    staged: Path,
    tokenizer: Any,
    reloaded: Embedder,
    dev_sets: Mapping[str, Dataset] | None,
) -> dict[str, float]:
    """Compare a written folder with the trained model, score it, write its card; returns the scores.

    Args:
        encoder: what was written, with the trained model's ``embed``.
        staged: where.
        tokenizer: the trained model's.
        reloaded: of the written folder, on the trained model's device.
        dev_sets: graded pairs by name, on which the folder is scored for its card.

    Raises:
        ExportError: the reloaded folder's vectors differ by more than 1e-5.
    """
    final = staged.with_name(encoder.name)
    trained = replace(reloaded, embed=encoder.embed, tokenizer=tokenizer).vectors(PROBES)
    exported = reloaded.vectors(PROBES)
    difference = float(np.abs(trained - exported).max())
    allowed = MERGED_TOLERANCE * max(1.0, float(np.abs(trained).max())) if encoder.merged else TOLERANCE
    if not difference <= allowed:
        raise ExportError(
            f"{final}: the reloaded vectors differ from the trained ones by {difference:.2e} > {allowed:.0e}"
        )
    scores = spearman_by_set(reloaded, dev_sets or {})
    (staged / "README.md").write_text(
        render_card(replace(encoder.facts, pooling=encoder.pooling, scores=scores)), encoding="utf-8"
    )
    logger.info("exported %s (largest difference from the trained vectors %.1e)", final, difference)
    return scores


def export_cacse(
    model: CacseModel,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    facts: CardFacts,
    dev_sets: Mapping[str, Dataset] | None = None,
) -> dict[str, dict[str, float]]:
    """Export the two towers and their sum; see `export_encoder`. Returns the scores by folder."""
    model.eval()
    return {
        encoder.name: export_encoder(encoder, tokenizer, Path(output_dir), dev_sets)
        for encoder in cacse_encoders(model, facts)
    }
