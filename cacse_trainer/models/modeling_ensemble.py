"""Several encoders as one: the weighted sum of their hidden states. A trained CACSE pair is exported as one."""

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from cacse_trainer.models.configuration_ensemble import EnsembleConfig
from cacse_trainer.models.outputs import EmbeddingOutput


class EnsembleModel(PreTrainedModel):
    """``h = Σ_i w_i · h_i`` at each token; the sentence embedding is h at the first token.

    The encoders read the same tokens, so they share a vocabulary.

    Args:
        config: an `EnsembleConfig`.
        encoders: loaded encoders; built with random weights from the config when not given.
    """

    config_class = EnsembleConfig
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: EnsembleConfig, encoders: Sequence[PreTrainedModel] | None = None):
        super().__init__(config)
        if encoders is None:
            built = []
            for encoder_config in config.build_encoder_configs():
                encoder_config._attn_implementation = config._attn_implementation
                built.append(AutoModel.from_config(encoder_config))
        else:
            built = list(encoders)
            for encoder in built:  # keeps post_init from drawing loaded weights anew
                for module in encoder.modules():
                    module._is_hf_initialized = True
        self.encoders = nn.ModuleList(built)
        self.post_init()

    @classmethod
    def from_encoders(cls, encoders: Sequence[PreTrainedModel], weights: list[float] | None = None) -> "EnsembleModel":
        """An ensemble of models in memory; default weights 1, the sum."""
        config = EnsembleConfig([encoder.config for encoder in encoders], weights, dtype=encoders[0].dtype)
        return cls(config, encoders)

    def get_input_embeddings(self) -> nn.Module:
        """The first encoder's."""
        return self.encoders[0].get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> EmbeddingOutput | tuple[Tensor, ...]:
        """(N, L) → ``last_hidden_state`` (N, L, H) and ``sentence_embedding`` (N, H)."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        hidden = sum(
            weight * encoder(**inputs).last_hidden_state
            for weight, encoder in zip(self.config.weights, self.encoders, strict=True)
        )
        output = EmbeddingOutput(last_hidden_state=hidden, sentence_embedding=hidden[:, 0])
        return output if return_dict is not False else output.to_tuple()

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """(N, L) → (N, H)."""
        return self(input_ids, attention_mask, token_type_ids).sentence_embedding


AutoConfig.register("cacse_ensemble", EnsembleConfig)
AutoModel.register(EnsembleConfig, EnsembleModel)
