"""The contract of a model: what the trainer, the export, the loader and a list of teachers ask of one, written once.

A model of one's own is a `SentenceModel` with a `SentenceConfig`: a ``forward`` that returns its loss, and ``embed``.
All else has a default here, to be stated otherwise where a model can do more. A plain encoder of transformers is
answered for by `PlainEncoder`, so that nothing outside of models/ asks of which class a model is.
"""

import copy
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from cacse_trainer.compute.encoder_tools import known_inputs
from cacse_trainer.compute.fast_paths import switch_paths
from cacse_trainer.compute.pooling import LAYER_POOLINGS
from cacse_trainer.compute.reading import sentence_vectors
from cacse_trainer.errors import UserError
from cacse_trainer.files import fits
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.models.heads import FreshLinear
from cacse_trainer.models.pretrained import MEND
from cacse_trainer.models.vocabulary import TokenReader

Embed = Callable[..., Tensor]
"""``embed(input_ids, attention_mask[, token_type_ids]) → (N, H)``."""

CLS_WITH_MLP = "cls_with_mlp"
"""The first token's state through the model's own head, dense and tanh; SimCSE's pooler ``cls``."""


class Part(NamedTuple):
    """A plain encoder of a sum, its pooling and its factor; whether its vector is scaled to length 1 before."""

    encoder: Any
    pooling: str
    weight: float = 1.0
    normalized: bool = False


@dataclass
class Export:
    """A folder that a trained model is exported to.

    Args:
        name: of the folder.
        title: of its card.
        what: one sentence for its card.
        model: what AutoModel shall load from it.
        embed: how the trained model computes the vectors that the folder must give.
        pooling: of the token states, as sentence-transformers names it; None: it has no such form, and the folder is
            one for `SentenceEncoder` alone.
        dense: a layer above the pooling, followed by tanh.
        merged: an adapter was merged into the weights.
        needs_package: AutoModel knows the model once this package is imported.
        own_module: sentence-transformers cannot build it of its own modules, and runs the folder's.
    """

    name: str
    title: str
    what: str
    model: PreTrainedModel
    embed: Embed
    pooling: str | None = None
    dense: nn.Linear | None = None
    merged: bool = False
    needs_package: bool = False
    own_module: bool = False


def as_config(config: PretrainedConfig | dict[str, Any] | None) -> PretrainedConfig:
    """A sub-config from whatever ``config.json`` or a caller holds; BERT-base when nothing is given.

    Of a kind whose code comes with its checkpoint only the fields are known: a plain `PretrainedConfig`.

    Raises:
        ValueError: it is no config, or does not say of which kind.
    """
    if isinstance(config, PretrainedConfig):
        return config
    fields = config or {"model_type": "bert"}
    if not fits(fields, dict) or not fits(fields.get("model_type"), str):
        raise ValueError(f"config.json holds {str(config)[:40]!r} where an encoder's config belongs; {MEND}")
    fields = dict(fields)
    kind = fields.pop("model_type")
    return AutoConfig.for_model(kind, **fields) if kind in CONFIG_MAPPING else PretrainedConfig(**fields)


class SentenceConfig(PretrainedConfig):
    """Base of the configs of sentence models: by it the loader knows that a folder's model pools by itself."""

    sources: ClassVar[Any] = ()  # what to cite for the loss, see `bibtex_of`

    def keep(self, arguments: dict[str, Any]) -> None:
        """Make attributes of the named arguments of ``__init__``, its ``locals()``; of ``…_config`` by `as_config`."""
        for name, value in arguments.items():
            if name not in ("self", "kwargs", "__class__"):
                setattr(self, name, as_config(value) if name.endswith("_config") else value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As the parent's, from what a file holds: values of other types than ``__init__`` states are refused.

        Raises:
            ValueError: with the first of them.
        """
        for name, kind in cls._settings().items():
            if name in config_dict and not fits(config_dict[name], kind):
                raise ValueError(f"config.json is damaged ({name!r} is {str(config_dict[name])[:40]!r}); {MEND}")
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def _settings(cls) -> dict[str, Any]:
        """The arguments of ``__init__``, those of the classes above it too, and their types."""
        kinds = cls.__mro__[cls.__mro__.index(SentenceConfig) - 1 :: -1] if cls is not SentenceConfig else ()
        taken = [parameter for kind in kinds for parameter in inspect.signature(kind).parameters.values()]
        kept = [one for one in taken if one.kind is not one.VAR_KEYWORD]
        return {one.name: Any if one.annotation is one.empty else one.annotation for one in kept}

    @classmethod
    def check_names(cls, settings: Collection[str]) -> None:
        """Refuse names that are no settings of this config.

        Raises:
            ValueError: with the first of them.
        """
        unknown = sorted(set(settings) - set(cls._settings()))
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no setting of {cls.__name__}")


def pools_by_itself(model_type: Any) -> bool:
    """Whether models of this kind are `SentenceModel`s."""
    return model_type in CONFIG_MAPPING and issubclass(CONFIG_MAPPING[model_type], SentenceConfig)


class SentenceModel(TokenReader):
    """Base of the models that train sentence embeddings.

    ``forward`` takes by name (no ``**kwargs``) ``input_ids`` (B, V, L), and of the same shape ``attention_mask``, 1 for
    tokens and 0 for padding (default: all ones), and what else the tokenizer gives, such as ``token_type_ids``. It may
    take ``text_ids`` (B, V), numbers of the sentences: equal ones are no negatives of each other; what the trainer adds
    for a guide and for ``keep_weight`` (``left_out``, ``kept``: see `SentenceEmbeddingModel`); and, as everywhere in
    transformers, ``output_hidden_states``, ``output_attentions`` (which needs ``attn_implementation="eager"``) and
    ``return_dict``, of which False gives a tuple; each defaults to what the config says. It returns a `ModelOutput`
    with ``loss``; its parts may stand in ``losses``, by name, for the log. `embed` gives the sentence embedding.
    Register both classes with `AutoConfig` and `AutoModel`.

    Attributes:
        compute: see `ComputeSettings`; the trainer sets it by `use`. A model may leave it unread.
        export_name: folder of its export.
        stated_pooling: name of the pooling of `embed`.
        deletion: share of the words that are deleted of the copy that the loss reads as ``damaged_input_ids``: the
            trainer adds it (`data.deletion`); 0: none is read.
        learns_scores: whether the loss reads the margins of rows with a column ``scores``, as ``labels`` (B, K).
        needs_masked_copies: whether the loss reads ``mlm_input_ids``: the trainer adds it (`Masking`).
        has_adapter: whether an adapter is trained, and saved, instead of its own weights (`AdapterModel`).
        loads_from_folder: whether what is saved is a folder that AutoModel loads.
    """

    config_class: type[PretrainedConfig] = SentenceConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    compute = ComputeSettings()
    export_name = "encoder"
    stated_pooling: Any = "own"
    deletion: Any = 0.0
    learns_scores: Any = False
    needs_masked_copies: Any = False
    has_adapter: Any = False
    loads_from_folder = True

    def post_init(self) -> None:
        """As in transformers; named for FSDP are layers of this model alone, and none around embeddings.

        accelerate refuses a name that a model has not, and wraps the embeddings by themselves, which must be once.
        """
        super().post_init()
        whole = (part for part in self.modules() if not any(isinstance(one, nn.Embedding) for one in part.modules()))
        self._no_split_modules = {type(part).__name__ for part in whole} & set(self._no_split_modules or ())

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """(N, L) → (N, H), the sentence embedding."""
        raise NotImplementedError

    def use(self, compute: ComputeSettings) -> None:
        """Compute so from now on."""
        self.compute = compute
        switch_paths(self, compute.fast_paths)

    def adopt_adapter(self, adapters: Mapping[str, Any] | None) -> None:
        """Make an adapter that peft has put into this model its own: it is then saved, and exported, with it.

        Args:
            adapters: peft's configs by name; None: the model was not wrapped, its encoder may be.

        Raises:
            UserError: it trains no adapter, or not this one.
        """
        if adapters is not None:
            self.add_adapter()

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: of such a checkpoint everything but the adapter would be lost.

        Raises:
            UserError: always.
        """
        raise UserError(f"a {type(self).__name__} trains no adapter; a SentenceEmbeddingModel does")

    def asked(self, output_hidden_states: Any, output_attentions: Any) -> dict[str, Any]:
        """The flags of ``forward`` that ask an encoder to show its layers; one that is None is the config's."""
        given = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        settled = {name: getattr(self.config, name) if flag is None else flag for name, flag in given.items()}
        return {name: flag for name, flag in settled.items() if flag}

    def returned(self, output: ModelOutput, return_dict: bool | None) -> Any:
        """What ``forward`` gives back: its output, or a tuple where that, or else the config, says so."""
        chosen = self.config.return_dict if return_dict is None else return_dict
        return output.to_tuple() if chosen is False else output

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, FreshLinear):
            module.draw()
        else:
            super()._init_weights(module)

    def freeze(self) -> None:
        """Freeze what never gets a gradient, so that DDP need not search for it; called when the model was loaded."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As `PreTrainedModel.from_pretrained`; the frozen parts are frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze()
        return loaded

    def starts(self) -> list[str]:
        """Folders or hub ids that its encoders were loaded from, where they know."""
        names = [part.name_or_path for part in self.children() if isinstance(part, PreTrainedModel)]
        return list(dict.fromkeys(filter(None, names)))

    def effective_negatives(self, batch_size: int) -> int:
        """Negatives of each row in a global batch."""
        return batch_size - 1

    def check_rows(self, columns: Sequence[str], labels: Iterable[float] | None) -> None:
        """Refuse training text that the loss has no place for.

        Args:
            columns: of the text.
            labels: of labelled pairs; None: there are none.

        Raises:
            UserError: with the columns, or the label.
        """

    def embed_as(self, pooling: str | None = None) -> Embed:
        """`embed` of whatever inputs the tokenizer gives; with another pooling that the user states, where it has one.

        Raises:
            ValueError: it has not, and what to do instead.
        """
        if pooling is not None:
            raise ValueError(f"pooling {pooling}: a {type(self).__name__} pools in its own way; leave the pooling out")
        return lambda **inputs: self.embed(**known_inputs(self, inputs))

    def parts(self) -> list[Part]:
        """The plain encoders whose weighted sum it is, for an ensemble or a teacher.

        Raises:
            ValueError: it is none.
        """
        raise ValueError(f"a {type(self).__name__} is no sum of plain encoders, of which an ensemble is made")

    def check_exportable(self) -> None:
        """Refuse, before training, what `exports` would refuse.

        Raises:
            UserError: with what to change.
        """

    def exports(self, title: str) -> list[Export]:
        """What is exported of the trained model, which is in eval mode; ``title`` names it in texts.

        Raises:
            UserError: see `check_exportable`.
        """
        what = f"A {type(self).__name__}, which pools by itself."
        return [Export(self.export_name, title, what, self, self.embed, needs_package=True)]


class PlainEncoder:
    """What is asked of an encoder of transformers, which pools as it is told.

    Args:
        encoder: the encoder.
        dense: layers above its pooling.
        missing: names of weights that its checkpoint lacked.
    """

    stated_pooling = None

    def __init__(self, encoder: Any, dense: Sequence[nn.Module] = (), missing: Collection[str] = ()):
        self.encoder, self.missing = encoder, missing
        self.dense = nn.ModuleList(dense).to(encoder.device)

    def embed_as(self, pooling: str) -> Embed:
        """The pooled states, (N, L) → (N, H), with the layers above.

        Raises:
            ValueError: a head is asked for, and there is none.
        """
        if pooling == CLS_WITH_MLP and not self.dense:
            has_pooler = any(name == "pooler" and module is not None for name, module in self.encoder.named_children())
            if not has_pooler or any(name.startswith("pooler.") for name in self.missing):
                raise ValueError(f"pooling {pooling} needs a trained pooler, and it has none; use cls")
            return lambda **inputs: self.encoder(**known_inputs(self.encoder, inputs)).pooler_output
        states = "cls" if pooling == CLS_WITH_MLP else pooling

        def embed(**inputs: Tensor) -> Tensor:
            vectors = sentence_vectors(self.encoder, states, inputs)  # (N, H)
            for layer in self.dense:
                vectors = layer(vectors)
            return vectors

        return embed

    def exports(self, title: str) -> list[Export]:
        """Nothing: it is what exports are.

        Raises:
            UserError: always.
        """
        raise UserError(f"no export for a {type(self.encoder).__name__}")


def contract_of(model: Any, dense: Sequence[nn.Module] = (), missing: Collection[str] = ()) -> Any:
    """Who answers for a loaded model: itself if it is a `SentenceModel`, else a `PlainEncoder` with these arguments."""
    return model if isinstance(model, SentenceModel) else PlainEncoder(model, dense, missing)


class TowerSum(SentenceModel):
    """A model whose ``last_hidden_state`` is a sum of several encoders'."""

    def embed_as(self, pooling: str | None = None) -> Embed:
        """As `SentenceModel.embed_as`: the sum's token states take every pooling that reads the last layer."""
        if pooling is None:
            return super().embed_as()
        if pooling in LAYER_POOLINGS:
            raise ValueError(f"pooling {pooling} averages layers, and a sum of towers has none; use cls or mean")
        return PlainEncoder(self).embed_as(pooling)


def with_settings(encoder: Any, settings: dict[str, Any]) -> Any:
    """A view of an encoder, its weights shared, under a config of its own with these settings."""
    view = copy.copy(encoder)
    view.config = copy.deepcopy(encoder.config)
    view.config.update(settings)
    return view
