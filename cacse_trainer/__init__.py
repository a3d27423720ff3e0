"""cacse-trainer: sentence encoders from raw text, on the Hugging Face Trainer."""

from cacse_trainer.data import load_pairs, load_sentences
from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.importers.reference import load_reference_checkpoint
from cacse_trainer.models import (
    CacseBertModel,
    CacseConfig,
    CacseRobertaModel,
    DiffcseModel,
    EnsembleModel,
    SentenceEmbeddingModel,
)
from cacse_trainer.training.distillation import DistillationTrainer
from cacse_trainer.training.trainer import CacseTrainer
from cacse_trainer.version import __version__

__all__ = [
    "CacseBertModel",
    "CacseConfig",
    "CacseRobertaModel",
    "CacseTrainer",
    "DiffcseModel",
    "DistillationTrainer",
    "EnsembleModel",
    "SentenceEmbeddingModel",
    "SentenceEncoder",
    "__version__",
    "load_pairs",
    "load_reference_checkpoint",
    "load_sentences",
]
