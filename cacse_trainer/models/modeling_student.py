"""The student of a distillation: one encoder without a head, and where the widths differ a projection to the teacher's.

The projection serves the loss only. The sentence embedding, which is scored and exported, is the encoder's own.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from cacse_trainer.models.configuration_sentence_embedding import SentenceEmbeddingConfig
from cacse_trainer.models.heads import MaskedLmHead
from cacse_trainer.models.modeling_sentence_embedding import SentenceEmbeddingModel
from cacse_trainer.models.outputs import EmbeddingOutput


class StudentConfig(SentenceEmbeddingConfig):
    """Configuration of `StudentModel`.

    Args:
        encoder_config: the encoder's config (or its dict).
        pooling: one of `POOLINGS` without a head.
        teacher_size: width of the teacher's vectors, where it is not the student's; None: no projection.

    The other arguments are those of `SentenceEmbeddingConfig`.

    Raises:
        ValueError: the pooling has a head, or a setting is out of range.
    """

    model_type = "student"

    def __init__(
        self,
        encoder_config: PretrainedConfig | dict[str, Any] | None = None,
        pooling: str = "cls_before_pooler",
        teacher_size: int | None = None,
        **kwargs: Any,
    ):
        if pooling == "cls":
            pooling = "cls_before_pooler"  # a student is a plain encoder: its CLS has no head on top
        self.teacher_size = teacher_size
        super().__init__(encoder_config, pooling=pooling, **kwargs)


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

    def forward(  # type: ignore[override]  # no masked copies
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> EmbeddingOutput | tuple[Any, ...]:
        """(N, L) → ``sentence_embedding`` (N, H); in training also ``embeddings``, what the loss compares.

        In training the rows run as `compute` says, and ``embeddings`` are
        (N, teacher_size) with a projection, else the sentence embedding itself. Three dimensions are as in
        `SentenceEmbeddingModel`.
        """
        if not self.training or input_ids.dim() != 2:
            return super().forward(input_ids, attention_mask, token_type_ids, return_dict=return_dict)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        vectors = self._encode_rows(given)  # (N, H)
        compared = self.teacher_projection(vectors) if self.config.teacher_size is not None else vectors
        output = EmbeddingOutput(sentence_embedding=vectors, embeddings=compared)
        return output if return_dict is not False else output.to_tuple()


AutoConfig.register("student", StudentConfig)
AutoModel.register(StudentConfig, StudentModel)
