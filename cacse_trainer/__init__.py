"""cacse-trainer: sentence encoders from raw text, on the Hugging Face Trainer."""

import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cacse_trainer.cli.boundary import leaving_on_ctrl_c
from cacse_trainer.version import __version__

if TYPE_CHECKING:
    from cacse_trainer.adaptation.mining import mine_hard_negatives

_is_command = Path(*sys.argv[:1]).name in ("cacse-trainer", "-m")  # the libraries take seconds to load

with leaving_on_ctrl_c() if _is_command else nullcontext():
    from cacse_trainer.data import load_pairs, load_sentences
    from cacse_trainer.encoding.encoder import SentenceEncoder
    from cacse_trainer.encoding.tools import DiffCSE, SimCSE
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
    "DiffCSE",
    "DiffcseModel",
    "DistillationTrainer",
    "EnsembleModel",
    "SentenceEmbeddingModel",
    "SentenceEncoder",
    "SimCSE",
    "TncseConfig",
    "TncseModel",
    "__version__",
    "adapt",
    "load_pairs",
    "load_reference_checkpoint",
    "load_sentences",
    "mine_hard_negatives",
]

_LATER = {"adapt": "cacse_trainer.adaptation.run", "mine_hard_negatives": "cacse_trainer.adaptation.mining"}
"""Names that are imported when they are asked for, by their modules."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
