"""Settings to a model and its tokenizer, and the checks that the parts are sound and fit each other."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cacse_trainer.data.tokens import check_limit
from cacse_trainer.encoding.embedder import position_limit
from cacse_trainer.encoding.members import load_ensemble, load_members, load_similarities
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.models.adapters import LoraSettings
from cacse_trainer.models.base import SentenceModel, pools_by_itself
from cacse_trainer.models.bidirectional import tell_of_environment
from cacse_trainer.models.configuration_ensemble import EnsembleConfig
from cacse_trainer.models.modeling_cacse import cacse_class
from cacse_trainer.models.modeling_diffcse import DiffcseModel
from cacse_trainer.models.modeling_ensemble import EnsembleModel
from cacse_trainer.models.modeling_sentence_embedding import SentenceEmbeddingModel
from cacse_trainer.models.modeling_similarity import SimilarityEnsemble
from cacse_trainer.models.modeling_tncse import TncseModel
from cacse_trainer.models.modeling_tsdae import TsdaeModel
from cacse_trainer.models.pretrained import is_decoder, load_config
from cacse_trainer.models.prompting import prepare_tokenizer
from cacse_trainer.models.tokenizer_bundle import load_tokenizer_of
from cacse_trainer.runs.methods import CACSE, DIFFCSE, SIMCSE, TNCSE, TSDAE, method_of, settings_of
from cacse_trainer.settings.arguments import ModelArguments
from cacse_trainer.settings.distillation import EncoderChoice
from cacse_trainer.settings.resources import resolve_resource

Built = tuple[SentenceModel, PreTrainedTokenizerBase]


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    with user_errors(f"tokenizer of {path}"):
        config = load_config(path, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer_of(path, config, trust_remote_code=trust_remote_code)
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_ids):  # transformers makes one up
        raise UserError(f"model {path} has no tokenizer; save one beside it (tokenizer.save_pretrained)")
    return tokenizer


def load_encoders(choices: Sequence[EncoderChoice]) -> tuple[EnsembleModel, Any]:
    """The weighted sum of the chosen encoders, and its tokenizer or `TokenizerBundle`.

    Raises:
        UserError: one cannot be read, or the widths differ.
    """
    members = []
    for choice in choices:
        with user_errors(f"encoder {choice.path}"):
            members += load_members(resolve_resource(choice.path), choice.pooling, choice.weight)
    return load_ensemble(members)


def load_teachers_of_similarities(choices: Sequence[EncoderChoice]) -> tuple[SimilarityEnsemble, Any]:
    """The weighted mean of the cosines of the chosen encoders, and their tokenizer or `TokenizerBundle`.

    Raises:
        UserError: one cannot be read, the widths of one's parts differ, or a weight is negative.
    """
    teachers = []
    for choice in choices:
        with user_errors(f"encoder {choice.path}"):
            teachers.append(load_members(resolve_resource(choice.path), choice.pooling))
    return load_similarities(teachers, [choice.weight for choice in choices])


def build_model(settings: ModelArguments) -> Built:
    """The model that the settings describe, with its tokenizer.

    Raises:
        UserError: parts are missing or do not fit each other, or cannot be read.
    """
    if settings.model is not None and (settings.tower_a is not None or settings.tower_b is not None):
        raise UserError("give either model (SimCSE, DiffCSE) or tower_a and tower_b (CACSE, TNCSE), not both")
    for option in ("model", "tower_a", "tower_b"):
        if (start := getattr(settings, option)) is not None:
            check_start(start, option, settings.trust_remote_code)
    return BUILDERS[method_of(settings)](settings)


def check_start(name: str, option: str, trust_remote_code: bool = False) -> None:
    """Refuse to start from what a training saved of itself, which holds more than an encoder and cannot be exported.

    Args:
        name: folder or hub id.
        option: that names it, for the error.
        trust_remote_code: run the code that comes with it.

    Raises:
        UserError: with what to give instead; or it cannot be read.
    """
    with user_errors(f"{option} {name}", KeyError, RuntimeError):
        kind = load_config(resolve_resource(name), trust_remote_code=trust_remote_code).model_type
    if pools_by_itself(kind) and kind != EnsembleConfig.model_type:
        raise UserError(
            f"{option} {name}: is a training's own checkpoint ({kind}); give the encoder that it exported, such as "
            "export/encoder in the run's folder, or, if it is that one (averaged layers, layers that see both "
            "directions), a plain encoder"
        )


def build_simcse(settings: ModelArguments) -> Built:
    """One encoder and an objective over the views of a batch."""
    encoder = str(settings.model)
    path = resolve_resource(encoder)
    with user_errors(f"model {encoder}", KeyError, RuntimeError):
        config = load_config(path, trust_remote_code=settings.trust_remote_code)
        check_pooling_of(encoder, config, str(settings.pooling))
        tell_of_environment(encoder, config.model_type, settings.bidirectional_start_layer)
        tokenizer = load_tokenizer(path, settings.trust_remote_code)
        tokenizer = prepare_tokenizer(tokenizer, settings.prompt_template, settings.append_eos, config)
        own = {**stated(settings_of(SIMCSE, settings)), "dtype": base_dtype(settings)}
        del own["base_dtype"]
        lora = {name.removeprefix("lora_"): own.pop(name) for name in list(own) if name.startswith("lora_")}
        if "adapter" in own:
            own["adapter"] = resolve_resource(own["adapter"])
        model = SentenceEmbeddingModel.from_encoder(path, lora=LoraSettings(**lora) if "r" in lora else None, **own)
    return model, tokenizer


def build_diffcse(settings: ModelArguments) -> Built:
    """The encoder, its discriminator and the generator."""
    encoder, generator = str(settings.model), str(settings.generator)
    path = resolve_resource(encoder)
    own = {**stated(settings_of(DIFFCSE, settings)), "generator": resolve_resource(generator)}
    with user_errors(f"model {encoder}"):
        model = DiffcseModel.from_pretrained_parts(path, **own)
    tokenizer = load_tokenizer(path)
    if tokenizer.get_vocab() != load_tokenizer(own["generator"]).get_vocab():
        raise UserError(
            f"the tokenizers of {encoder} and of its generator {generator} differ; both read the same tokens"
        )
    return model, tokenizer


def build_tsdae(settings: ModelArguments) -> Built:
    """The encoder, and a decoder that starts from it; the first token is read without a projection."""
    encoder = str(settings.model)
    path = resolve_resource(encoder)
    own = stated(settings_of(TSDAE, settings))
    if own["pooling"] == "cls":
        own["pooling"] = "cls_before_pooler"
    with user_errors(f"model {encoder}", KeyError, RuntimeError):
        check_pooling_of(encoder, load_config(path), own["pooling"])
        model = TsdaeModel.from_encoder(path, **own)
    return model, load_tokenizer(path)


def stated(settings: dict[str, Any]) -> dict[str, Any]:
    """Without those whose None stands for the model's own default."""
    return {name: value for name, value in settings.items() if value is not None}


def base_dtype(settings: ModelArguments) -> torch.dtype:
    """The dtype of the weights: float32, unless they are frozen under an adapter.

    Raises:
        UserError: another dtype, or bfloat16 for weights that are trained.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if settings.base_dtype not in dtypes:
        raise UserError(f"base_dtype {settings.base_dtype!r}: give {' or '.join(dtypes)}")
    if settings.base_dtype != "float32" and settings.lora_r is None and settings.adapter is None:
        raise UserError("base_dtype bfloat16 is for frozen weights: give lora_r or adapter, or train with bf16 true")
    return dtypes[settings.base_dtype]


def check_pooling_of(name: str, config: PretrainedConfig, pooling: str) -> None:
    """Refuse to read a decoder at its first token, which has seen nothing of the sentence."""
    if is_decoder(config) and pooling.startswith("cls"):
        raise UserError(
            f"model {name} is a decoder, whose first token sees nothing of the sentence; choose pooling last_token, "
            "mean or weighted_mean"
        )


def build_cacse(settings: ModelArguments) -> Built:
    """Two towers and a fresh cascade."""
    own = stated(settings_of(CACSE, settings))
    if settings.constraint is not None:
        own["constraint"] = resolve_resource(settings.constraint)
    return _build_towers(settings, lambda path_a: cacse_class(load_config(path_a)).from_towers, own)


def build_tncse(settings: ModelArguments) -> Built:
    """Two towers that learn from each other."""
    return _build_towers(settings, lambda path_a: TncseModel.from_towers, stated(settings_of(TNCSE, settings)))


def _build_towers(
    settings: ModelArguments, from_towers_for: Callable[[str], Callable[..., SentenceModel]], own: dict[str, Any]
) -> Built:
    """A pair of towers by what ``from_towers_for`` gives for tower A's folder, and the tokenizer of both."""
    tower_a, tower_b = settings.tower_a, settings.tower_b
    if tower_a is None or tower_b is None:
        raise UserError(
            "nothing to train: give model (SimCSE, DiffCSE), or tower_a and tower_b (CACSE, TNCSE), in a recipe or as "
            "flags"
        )
    path_a, path_b = resolve_resource(tower_a), resolve_resource(tower_b)
    with user_errors(f"towers {tower_a}, {tower_b}"):
        model = from_towers_for(path_a)(path_a, path_b, **own)
    tokenizer = load_tokenizer(path_a)
    other = load_tokenizer(path_b)
    if tokenizer.get_vocab() != other.get_vocab():
        raise UserError(f"the towers' tokenizers differ ({tower_a} and {tower_b}); both towers read the same tokens")
    return model, tokenizer


BUILDERS: dict[str, Callable[[ModelArguments], Built]]
BUILDERS = {CACSE: build_cacse, TNCSE: build_tncse, SIMCSE: build_simcse, DIFFCSE: build_diffcse, TSDAE: build_tsdae}
"""Every method that has a model of its own, by the name that `method_of` the settings gives."""


def check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> None:
    """Refuse a tokenizer with more tokens than the model has, and a length beyond the model's positions."""
    largest, vocabulary = max(tokenizer.get_vocab().values()), model.config.vocab_size
    if largest >= vocabulary:
        raise UserError(
            f"the tokenizer does not fit the model: it gives ids up to {largest}, the model has {vocabulary} embeddings"
        )
    positions = position_limit(model.config)
    if max_seq_length > positions:
        raise UserError(f"max_seq_length={max_seq_length} is beyond the model's {positions} positions")
    check_limit(tokenizer, max_seq_length)


def check_weights(model: nn.Module) -> None:
    """Refuse weights that are NaN or infinite, with which nothing can be learned."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"the weights that training starts from are not sound: {name} is not finite; take another model"
            )
