"""Configuration of the single-tower sentence embedding model."""

from operator import attrgetter
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from cacse_trainer.compute.pooling import check_pooling
from cacse_trainer.models.base import SentenceConfig
from cacse_trainer.models.heads import PROJECTIONS
from cacse_trainer.models.objectives import OBJECTIVES, SPLITS_VECTORS

# What the kinds of encoder call their dropouts; dropouts of classifiers are not among them.
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
)


def set_encoder_dropout(config: PretrainedConfig, dropout: float | None) -> dict[str, float]:
    """Set every dropout that this kind of encoder has; None leaves them as the checkpoint has them.

    Returns:
        What they were, by their names.

    Raises:
        ValueError: the dropout is out of range.
    """
    fields = config.to_dict()
    original = {name: fields[name] for name in DROPOUTS if name in fields}
    if dropout is not None:
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be within [0, 1), got {dropout}")
        for name in original:
            setattr(config, name, dropout)
    return original


class SentenceEmbeddingConfig(SentenceConfig):
    """Configuration of `SentenceEmbeddingModel`.

    Args:
        encoder_config: the encoder's config (or its dict); dropout is kept there.
        pooling: one of `POOLINGS`. ``cls`` has the projection on top, ``cls_before_pooler`` is the raw CLS state.
        projection: ``tanh`` (SimCSE) or ``batch_norm`` (DiffCSE); used with pooling ``cls`` only.
        mlp_only_train: drop the projection at inference (SimCSE's unsupervised models).
        objective: one of `OBJECTIVES`.
        contrastive_temperature: τ.
        hard_negative_weight: a logit added to each anchor's own hard negatives.
        within_view_negatives: anchors are compared with anchors and positives with positives, too (`info_nce`).
        matryoshka_dims: the objective is summed over the first so many coordinates of the vectors, for each of these.
        matryoshka_weights: of the sum, one each; None: 1.
        keep_weight: weight of `cosine_drift` on the general sentences that a batch has in ``kept``.
        mlm_weight: weight of the auxiliary masked language model loss (SimCSE: 0.1); 0 is none, and no head for it.
        original_dropout: the encoder's dropouts before training, by name; an export gets them back.
        cosine_weight, ibn_weight, cln_weight, angle_weight: of the parts of ``angle_combined`` and ``bellm``.
        ranking_scale: τ of the CoSENT and angle losses, a factor.
        positive_threshold: of graded labels, those from here on are positive to the in-batch part; None: labels must
            be 0 or 1 there.
        bidirectional_start_layer: decoder layers from this one on (from 0) see both directions; None: all are causal.
        prompt_template, append_eos: what the tokenizer was given (`prepare_tokenizer`), for the record.

    Raises:
        ValueError: a setting is unknown or out of range; the message gives the choices.
    """

    model_type = "sentence_embedding"
    sub_configs = {"encoder_config": AutoConfig}  # noqa: RUF012 - read by transformers as a class attribute

    def __init__(
        self,
        encoder_config: PretrainedConfig | dict[str, Any] | None = None,
        pooling: str = "cls",
        projection: str = "tanh",
        mlp_only_train: bool = False,
        objective: str = "info_nce",
        contrastive_temperature: float = 0.05,
        hard_negative_weight: float = 0.0,
        within_view_negatives: bool = False,
        matryoshka_dims: list[int] | None = None,
        matryoshka_weights: list[float] | None = None,
        keep_weight: float = 0.0,
        mlm_weight: float = 0.0,
        original_dropout: dict[str, float] | None = None,
        cosine_weight: float = 0.0,
        ibn_weight: float = 1.0,
        cln_weight: float = 1.0,
        angle_weight: float = 0.02,
        ranking_scale: float = 20.0,
        positive_threshold: float | None = None,
        bidirectional_start_layer: int | None = None,
        prompt_template: str | None = None,
        append_eos: bool = False,
        **kwargs: Any,
    ):
        self.keep(locals())
        self.original_dropout = dict(original_dropout or {})
        check_pooling(pooling)
        for name, value, choices in (("projection", projection, PROJECTIONS), ("objective", objective, OBJECTIVES)):
            if value not in choices:
                raise ValueError(f"{name} {value!r} is unknown; choose one of {', '.join(choices)}")
        for name in ("contrastive_temperature", "ranking_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("keep_weight", "mlm_weight", "cosine_weight", "ibn_weight", "cln_weight", "angle_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        self._check_matryoshka()
        # The base class writes its choice into the sub-configs; an encoder that already runs keeps its own.
        kwargs.setdefault("attn_implementation", self.encoder_config._attn_implementation)
        super().__init__(**kwargs)

    def _check_matryoshka(self) -> None:
        dims, weights = self.matryoshka_dims, self.matryoshka_weights
        if dims is None:
            if weights is not None:
                raise ValueError("matryoshka_weights belong to matryoshka_dims: give these, too")
            return
        width = self.hidden_size
        if not dims or len(set(dims)) < len(dims) or not all(1 <= size <= width for size in dims):
            raise ValueError(
                f"matryoshka_dims {dims}: give different numbers from 1 to the vectors' {width} dimensions"
            )
        if weights is not None and (len(weights) != len(dims) or not all(weight > 0 for weight in weights)):
            raise ValueError(f"matryoshka_weights {weights}: give one above 0 for each of the {len(dims)} dimensions")
        if self.objective in SPLITS_VECTORS and any(size % 2 for size in dims):
            raise ValueError(
                f"matryoshka_dims {dims}: objective {self.objective} splits vectors in halves, give even ones"
            )
        if self.has_projection and self.mlp_only_train:
            raise ValueError(
                "matryoshka_dims shape the vectors behind the projection, which mlp_only_train drops; choose pooling "
                "mean or cls_before_pooler, or mlp_only_train false"
            )

    hidden_size = property(attrgetter("encoder_config.hidden_size"))
    """Width of the embedding, asked for by sentence-transformers and others."""
    max_position_embeddings = property(attrgetter("encoder_config.max_position_embeddings"))
    """The encoder's position table, asked for by sentence-transformers for the length limit."""
    initializer_range = property(attrgetter("encoder_config.initializer_range"))
    """Standard deviation with which new linear layers are drawn, as the encoder's own were."""

    @property
    def sources(self) -> Any:
        """What to cite: of the objective, and of what is around it."""
        eos, both = self.objective == "info_nce" and self.append_eos, self.bidirectional_start_layer is not None
        found = ("sts_cft",) if eos else OBJECTIVES[self.objective].sources
        return (*(("bellm",) if both else ()), *found, *(("matryoshka",) if self.matryoshka_dims else ()))

    @property
    def vocab_size(self) -> int:
        """The encoder's vocabulary; set, it is that of every model in here."""
        return self.encoder_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        for name in self.sub_configs:
            getattr(self, name).vocab_size = size

    @property
    def has_projection(self) -> bool:
        """Whether the vectors that the loss compares pass a projection."""
        return self.pooling == "cls"

    @property
    def projects_at_inference(self) -> bool:
        """Whether the sentence embedding passes the projection: the pooling is then ``cls`` with the head on top."""
        return self.has_projection and not self.mlp_only_train
