"""cacse-trainer: sentence encoders from raw text, on the Hugging Face Trainer."""

import sys
from contextlib import nullcontext
from pathlib import Path

from cacse_trainer.cli.boundary import leaving_on_ctrl_c
from cacse_trainer.version import __version__

_is_command = Path(*sys.argv[:1]).name in ("cacse-trainer", "-m")  # the libraries take seconds to load

with leaving_on_ctrl_c() if _is_command else nullcontext():
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
        TncseConfig,
        TncseModel,
    )
    from cacse_trainer.training.distillation import DistillationTrainer
    from cacse_trainer.training.trainer import CacseTrainer

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
    "TncseConfig",
    "TncseModel",
    "__version__",
    "load_pairs",
    "load_reference_checkpoint",
    "load_sentences",
]
