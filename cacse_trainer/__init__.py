"""cacse-trainer: sentence encoders from raw text, on the Hugging Face Trainer.

Importing the package loads no library. Its names are imported when they are asked for, and its model types are known to
`AutoConfig` and `AutoModel` all the same, whichever of the two packages is imported first: as soon as both are there, a
stand-in for each type is registered, which brings the models when a checkpoint of theirs is loaded.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cacse_trainer.version import __version__

if TYPE_CHECKING:
    from cacse_trainer.adaptation.mining import mine_hard_negatives
    from cacse_trainer.adaptation.run import adapt
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

_ELSEWHERE = {
    "CacseTrainer": "training.trainer",
    "DistillationTrainer": "training.distillation",
    "DiffCSE": "encoding.tools",
    "SentenceEncoder": "encoding.encoder",
    "SimCSE": "encoding.tools",
    "adapt": "adaptation.run",
    "load_pairs": "data",
    "load_reference_checkpoint": "importers.reference",
    "load_sentences": "data",
    "mine_hard_negatives": "adaptation.mining",
}
"""The modules of the names that are no models."""
_TYPES = ("cacse", "cacse_ensemble", "diffcse", "sentence_embedding", "student", "tncse", "tsdae")
"""The model types of `cacse_trainer.models`."""
_AUTO = "transformers.models.auto.configuration_auto"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        if find_spec(f"{__name__}.{name}") is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module(f"{__name__}.{name}")  # a part, as `cacse_trainer.losses`
    found = getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'models')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _stand_in(model_type: str, mapping: Any) -> type:
    """What `AutoConfig` finds under a model type until our models are imported, which put their own class there."""

    def own() -> Any:
        import_module(f"{__name__}.models")
        return mapping[model_type]

    class StandIn:
        def __new__(cls, *args: Any, **settings: Any) -> Any:
            return own()(*args, **settings)

        @classmethod
        def from_dict(cls, *args: Any, **settings: Any) -> Any:
            return own().from_dict(*args, **settings)

    return StandIn


def _register(auto: ModuleType) -> None:
    for model_type in _TYPES:
        if model_type not in auto.CONFIG_MAPPING:  # it is, where a notebook reloads this package
            auto.CONFIG_MAPPING.register(model_type, _stand_in(model_type, auto.CONFIG_MAPPING))


class _Watch(MetaPathFinder):
    """Registers the stand-ins right after transformers' table of model types is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _AUTO:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader, execute = spec.loader, spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                sys.meta_path.remove(self)  # here: an import that was broken off is tried again
                _register(module)

            loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if _AUTO in sys.modules:
    _register(sys.modules[_AUTO])
else:
    sys.meta_path.insert(0, _Watch())
