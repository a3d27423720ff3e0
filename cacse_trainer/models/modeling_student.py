"""The student of a distillation: one encoder, and for the loss alone a head, or a projection to the teacher's width.

Neither is left in the end. The sentence embedding, which is scored and exported, is the encoder's own.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from cacse_trainer.compute.pooling import LAYER_POOLINGS
from cacse_trainer.errors import UserError
from cacse_trainer.models.configuration_sentence_embedding import SentenceEmbeddingConfig
from cacse_trainer.models.heads import MaskedLmHead
from cacse_trainer.models.modeling_sentence_embedding import SentenceEmbeddingModel
from cacse_trainer.models.outputs import EmbeddingOutput


class StudentConfig(SentenceEmbeddingConfig):
    """Configuration of `StudentModel`.

    Args:
        encoder_config: the encoder's config (or its dict).
        pooling: one of `POOLINGS`; ``cls`` is the raw CLS state.
        mlp_only_train: with ``cls``, the loss compares what SimCSE's head, a dense layer and tanh, makes of it.
        teacher_size: width of the teacher's vectors, where it is not the student's; None: no projection.

    The other arguments, and what is raised, are those of `SentenceEmbeddingConfig`.
    """

    model_type = "student"
    sources = ("cacse",)  # whose release distils vectors so

    def __init__(
        self,
        encoder_config: PretrainedConfig | dict[str, Any] | None = None,
        pooling: str = "cls_before_pooler",
        teacher_size: int | None = None,
        mlp_only_train: bool = False,
        **kwargs: Any,
    ):
        if pooling == "cls" and not mlp_only_train:
            pooling = "cls_before_pooler"  # a student is a plain encoder: its CLS has no head on top
        self.teacher_size = teacher_size
        super().__init__(encoder_config, pooling=pooling, mlp_only_train=mlp_only_train, **kwargs)


class StudentModel(SentenceEmbeddingModel):
    """One encoder that learns another model's vectors.

    Args:
        config: a `StudentConfig`.
        encoder: a loaded encoder; built with random weights from the config when not given.
    """

    config_class = StudentConfig  # type: ignore[assignment]  # a kind of the parent's
    export_name = "student"

    def __init__(
        self, config: StudentConfig, encoder: PreTrainedModel | None = None, lm_head: MaskedLmHead | None = None
    ):
        super().__init__(config, encoder, lm_head)
        if config.teacher_size is not None:
            self.teacher_projection = nn.Linear(config.hidden_size, config.teacher_size)
            self._init_weights(self.teacher_projection)

    def check_exportable(self) -> None:
        """Refuse layers averaged, too: a student is to be a plain encoder."""
        if self.config.pooling in LAYER_POOLINGS:
            raise UserError(
                f"pooling {self.config.pooling} has no form that sentence-transformers loads; choose cls, mean, max or "
                "last_token, or train with export false"
            )
        super().check_exportable()

    def _embedding(self, inputs: Mapping[str, Tensor | None], asked: dict[str, Any]) -> EmbeddingOutput:
        """In training by `compute`, with ``embeddings``, what the loss compares.

        They are (N, teacher_size) with a projection, (N, H) behind a head, else the sentence embedding itself.
        """
        if not self.training:
            return super()._embedding(inputs, asked)
        vectors, layers = self.compute.pooled(self.encoder, self.config.pooling, inputs, asked)  # (N, H)
        compared = self.projection_head(vectors) if self.config.has_projection else vectors
        if self.config.teacher_size is not None:
            compared = self.teacher_projection(compared)
        return EmbeddingOutput(sentence_embedding=vectors, embeddings=compared, **layers)


AutoConfig.register("student", StudentConfig)
AutoModel.register(StudentConfig, StudentModel)
