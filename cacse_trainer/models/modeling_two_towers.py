"""Two encoder towers that are trained jointly and summed at inference: what CACSE and TNCSE share.

A method of two towers is a subclass that says, in ``_losses``, how the towers' views of a batch are compared.
Inference: h_A + h_B, pooled as in the losses (published: at the first token). Backbones come from `AutoModel`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from cacse_trainer.compute.encoder_tools import loaded_or, run_encoder
from cacse_trainer.compute.pooling import pool
from cacse_trainer.compute.reading import sentence_vectors
from cacse_trainer.errors import UserError
from cacse_trainer.models.base import Export, Part, PlainEncoder, TowerSum, with_settings
from cacse_trainer.models.configuration_sentence_embedding import set_encoder_dropout
from cacse_trainer.models.configuration_two_towers import TwoTowersConfig
from cacse_trainer.models.modeling_ensemble import EnsembleModel
from cacse_trainer.models.outputs import TwoTowersOutput, joined, layers_of
from cacse_trainer.models.pretrained import build_encoder, load_config, load_encoder_model


def load_tower(
    path: str, config: Any, dtype: torch.dtype, attn_implementation: str | None
) -> tuple[PreTrainedModel, set[str]]:
    """A pretrained encoder without the name of this machine's folder, and which of its weights were drawn anew.

    It raises as `load_encoder_model` does.
    """
    tower, drawn = load_encoder_model(path, config=config, dtype=dtype, attn_implementation=attn_implementation)
    if Path(path).exists():
        tower.config.name_or_path = ""
    return tower, drawn


class TwoTowersModel(TowerSum):
    """A model with ``tower_a`` and ``tower_b``.

    Args:
        config: a `TwoTowersConfig`.
        tower_a, tower_b: loaded towers; built with random weights from the config when not given.
    """

    config_class: type[PretrainedConfig] = TwoTowersConfig
    output_class = TwoTowersOutput
    tower_kind: str | None = None
    """The one kind that the towers may be of; None: any."""

    def __init__(self, config: Any, tower_a: PreTrainedModel | None = None, tower_b: PreTrainedModel | None = None):
        super().__init__(config)
        dtype = torch.get_default_dtype()  # a sub-config may name another, which from_config would obey
        self.tower_a = loaded_or(tower_a, lambda: build_encoder(config.tower_a_config, dtype=dtype))
        self.tower_b = loaded_or(tower_b, lambda: build_encoder(config.tower_b_config, dtype=dtype))

    @classmethod
    def part_configs(
        cls, paths: Sequence[str], tower_dropout: list[float] | None, *others: float | None
    ) -> tuple[list[PretrainedConfig], dict[str, list[float]]]:
        """The configs of tower A, tower B and other parts, with their dropouts, and what the towers' had been.

        No machine's folder stands in what is saved of them.

        Raises:
            ValueError: another number of dropouts than two, or a part of another kind than the class's.
        """
        if tower_dropout is not None and len(tower_dropout) != 2:
            raise ValueError(f"tower_dropout takes two numbers, for tower A and tower B, got {tower_dropout}")
        configs, had = [load_config(path) for path in paths], []
        for path, config, dropout in zip(paths, configs, (*(tower_dropout or (None, None)), *others), strict=True):
            if cls.tower_kind not in (None, config.model_type):
                raise ValueError(
                    f"{cls.__name__} is made of {cls.tower_kind} towers, got {config.model_type} towers ({path})"
                )
            if Path(path).exists():
                config.name_or_path = ""
            had.append(list(set_encoder_dropout(config, dropout).values()))
        return configs, {"tower_a": had[0], "tower_b": had[1]}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> TwoTowersOutput | tuple[Any, ...]:
        """(B, 2, L) → the losses and the embeddings they compare; (N, L) → the sentence embedding.

        The arguments are those that `SentenceModel` names; the views are the two of each sentence.

        Raises:
            ValueError: another number of dimensions or views.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        asked = self.asked(output_hidden_states, output_attentions)
        if input_ids.dim() == 3:
            rows = {name: tensor for name, tensor in inputs.items() if tensor is not None}
            batch, views, _ = input_ids.shape
            if views != 2:
                raise ValueError(
                    f"{self.config.method} compares two views of each row, got {views}: give one text column, or two"
                )
            output = self._losses({name: tensor.flatten(0, 1) for name, tensor in rows.items()}, batch, text_ids, asked)
        elif input_ids.dim() == 2:
            a, b = (run_encoder(tower, inputs, **asked) for tower in (self.tower_a, self.tower_b))
            hidden = a.last_hidden_state + b.last_hidden_state  # (N, L, H)
            vectors = pool(self.config.pooling, hidden, attention_mask=attention_mask)
            layers = joined([layers_of(a, asked), layers_of(b, asked)])
            output = self.output_class(last_hidden_state=hidden, sentence_embedding=vectors, **layers)
        else:
            raise ValueError(f"input_ids must be (batch, 2, length) or (rows, length), got {tuple(input_ids.shape)}")
        return self.returned(output, return_dict)

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """(N, L) → (N, H), h_A + h_B, pooled."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        pooling = self.config.pooling
        return sentence_vectors(self.tower_a, pooling, inputs) + sentence_vectors(self.tower_b, pooling, inputs)

    @property
    def stated_pooling(self) -> str:
        """Of both towers."""
        return self.config.pooling

    def effective_negatives(self, batch_size: int) -> int:
        """Negatives of each view in a global batch: every other view but its partner."""
        return 2 * batch_size - 2

    def check_rows(self, columns: Sequence[str], labels: Iterable[float] | None) -> None:
        """Refuse more than two columns, and labels."""
        if len(columns) > 2 or labels is not None:
            raise UserError(
                f"{self.config.method} compares two views of a row, got the columns {', '.join(columns)}; "
                "choose one or two with text_columns"
            )

    def parts(self) -> list[Part]:
        """The two towers."""
        return [Part(self.tower_a, self.config.pooling), Part(self.tower_b, self.config.pooling)]

    def exports(self, title: str) -> list[Export]:
        """``tower_a``, ``tower_b``, and ``ensemble``, their sum; what else was trained is left behind."""
        found, towers = [], []
        pooling = self.config.pooling
        for letter, tower in (("a", self.tower_a), ("b", self.tower_b)):
            name, embed = f"tower_{letter}", PlainEncoder(tower).embed_as(pooling)
            names = set_encoder_dropout(tower.config, None)
            towers.append(
                with_settings(tower, dict(zip(names, self.config.original_dropout.get(name, ()), strict=False)))
            )
            what = f"Tower {letter.upper()} of {title}: a plain encoder."
            found.append(Export(name, f"{title} {name}", what, towers[-1], embed, pooling))
        what = f"Both towers of {title}: the sum of their vectors."
        both = EnsembleModel.from_encoders(towers, poolings=[pooling, pooling])
        found.append(Export("ensemble", f"{title} ensemble", what, both, self.embed, pooling, needs_package=True))
        return found

    def _losses(
        self, inputs: dict[str, Tensor], batch: int, text_ids: Tensor | None, asked: dict[str, Any]
    ) -> TwoTowersOutput:
        """What ``forward`` gives in training.

        Args:
            inputs: (2B, L) by name, the two views of each row side by side.
            batch: B.
            text_ids: (B, 1 or 2), or None.
            asked: see `SentenceModel.asked`; then each tower runs in one padded pass.
        """
        raise NotImplementedError
