"""The models; importing this package registers them with transformers' Auto classes."""

from cacse_trainer.models.adapters import LoraSettings
from cacse_trainer.models.base import SentenceConfig, SentenceModel
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.models.configuration_cacse import CacseConfig
from cacse_trainer.models.configuration_diffcse import DiffcseConfig
from cacse_trainer.models.configuration_ensemble import EnsembleConfig
from cacse_trainer.models.configuration_sentence_embedding import SentenceEmbeddingConfig
from cacse_trainer.models.configuration_tncse import TncseConfig
from cacse_trainer.models.configuration_tsdae import TsdaeConfig
from cacse_trainer.models.modeling_cacse import CacseBertModel, CacseModel, CacseRobertaModel
from cacse_trainer.models.modeling_diffcse import DiffcseModel
from cacse_trainer.models.modeling_ensemble import EnsembleModel
from cacse_trainer.models.modeling_sentence_embedding import SentenceEmbeddingModel
from cacse_trainer.models.modeling_student import StudentConfig, StudentModel
from cacse_trainer.models.modeling_tncse import TncseModel
from cacse_trainer.models.modeling_tsdae import TsdaeModel
from cacse_trainer.models.prompting import prepare_tokenizer
from cacse_trainer.models.tokenizer_bundle import TokenizerBundle

__all__ = [
    "CacseBertModel",
    "CacseConfig",
    "CacseModel",
    "CacseRobertaModel",
    "ComputeSettings",
    "DiffcseConfig",
    "DiffcseModel",
    "EnsembleConfig",
    "EnsembleModel",
    "LoraSettings",
    "SentenceConfig",
    "SentenceEmbeddingConfig",
    "SentenceEmbeddingModel",
    "SentenceModel",
    "StudentConfig",
    "StudentModel",
    "TncseConfig",
    "TncseModel",
    "TokenizerBundle",
    "TsdaeConfig",
    "TsdaeModel",
    "prepare_tokenizer",
]
