"""The model families as transformers' suites want them: a tiny config, inputs, and what a loss is computed of."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cacse_trainer.models import (
    CacseBertModel,
    CacseConfig,
    CacseRobertaModel,
    DiffcseConfig,
    DiffcseModel,
    EnsembleConfig,
    EnsembleModel,
    LoraSettings,
    SentenceEmbeddingConfig,
    SentenceEmbeddingModel,
    StudentConfig,
    StudentModel,
    TncseConfig,
    TncseModel,
    TsdaeConfig,
    TsdaeModel,
)
from cacse_trainer.models.adapters import add_lora
from tests.conftest import tiny_config

VOCABULARY, BATCH, LENGTH, LAYERS, WIDTH, HEADS = 60, 3, 7, 2, 32, 4


def encoder(kind: str = "bert") -> Any:
    """Config of one encoder."""
    return tiny_config(kind, layers=LAYERS, hidden_size=WIDTH, vocab_size=VOCABULARY)


@dataclass
class Family:
    """A model class, its config, and what its loss reads.

    Args:
        model: the class.
        config: makes a config.
        loss_inputs: makes of (N, L) inputs those that give a loss; None: the model has none of its own.
        settings: of the config, other than its defaults.
    """

    model: type
    config: Callable[[], Any]
    loss_inputs: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None
    settings: dict[str, Any]


def two_views(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """(N, L) → (N, 2, L), each row beside itself."""
    return {name: torch.stack([rows, rows], dim=1) if rows.dim() == 2 else rows for name, rows in inputs.items()}


def masked(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two views with a masked copy of each."""
    views = two_views(inputs)
    ids = views["input_ids"].clone()
    labels = torch.full_like(ids, -100)
    labels[..., 2] = ids[..., 2]
    ids[..., 2] = 4
    return {**views, "mlm_input_ids": ids, "mlm_labels": labels}


def masked_alone(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same without the labels."""
    return {name: rows for name, rows in masked(inputs).items() if name != "mlm_labels"}


def damaged(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows, and their halves as damaged copies."""
    return {**inputs, "damaged_input_ids": inputs["input_ids"][:, : LENGTH // 2]}


def cacse(kind: str) -> CacseConfig:
    return CacseConfig(encoder(kind), encoder(kind), encoder(kind), cascade_start_layer=1, constraint_layers=1)


class AdaptedModel(SentenceEmbeddingModel):
    """One with an adapter, as ``from_encoder(lora=…)`` gives it: made from its config alone, its base has a folder."""

    def __init__(self, config: SentenceEmbeddingConfig, encoder: Any = None, lm_head: Any = None):
        super().__init__(config, encoder, lm_head)
        if encoder is None:
            base = tempfile.mkdtemp(dir=BASES.name)
            if self.device.type != "meta":
                self.encoder.save_pretrained(base)
            add_lora(self.encoder, LoraSettings(r=2, dropout=0.0), base_model=base)


BASES = tempfile.TemporaryDirectory()
CACSE = {"cascade_start_layer": 3, "pooling": "mean", "original_dropout": {"tower_a": [0.1, 0.1]}}
ONE = {"pooling": "last_token", "contrastive_temperature": 0.1}
STUDENT = {"teacher_size": 8, "pooling": "mean"}
FAMILIES = {
    "CacseBert": Family(CacseBertModel, lambda: cacse("bert"), two_views, CACSE),
    "CacseRoberta": Family(CacseRobertaModel, lambda: cacse("roberta"), two_views, CACSE),
    "Tncse": Family(TncseModel, lambda: TncseConfig(encoder(), encoder()), two_views, {"cross_loss_weight": 2.0}),
    "SentenceEmbedding": Family(SentenceEmbeddingModel, lambda: SentenceEmbeddingConfig(encoder()), two_views, ONE),
    "SentenceEmbedding, MLM": Family(
        SentenceEmbeddingModel, lambda: SentenceEmbeddingConfig(encoder(), mlm_weight=0.1), masked, {"mlm_weight": 0.1}
    ),
    "SentenceEmbedding, LoRA": Family(
        AdaptedModel, lambda: SentenceEmbeddingConfig(encoder(), pooling="mean"), two_views, {"pooling": "mean"}
    ),
    "Diffcse": Family(DiffcseModel, lambda: DiffcseConfig(encoder(), encoder()), masked_alone, {"projection": "tanh"}),
    "Tsdae": Family(TsdaeModel, lambda: TsdaeConfig(encoder(), tsdae_layers=1), damaged, {"tsdae_layers": 1}),
    "Ensemble": Family(EnsembleModel, lambda: EnsembleConfig([encoder(), encoder()]), None, {"weights": [0.5]}),
    "Student": Family(StudentModel, lambda: StudentConfig(encoder(), teacher_size=2 * WIDTH), None, STUDENT),
}
SUMS = ("CacseBert", "CacseRoberta", "Tncse", "Ensemble")
"""Those whose layers are the sums of two encoders'."""
