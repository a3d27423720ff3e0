"""Any encoder to a function of tensors: our own models, plain transformers encoders, sentence-transformers folders.

The pooling is the one that the user states, else the one that the folder states, else a guess that is logged.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import cacse_trainer.models  # noqa: F401 - registers the model classes with AutoModel
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.embed import Embed, length_limit
from cacse_trainer.export.stated_modules import Modules, read_modules
from cacse_trainer.models.modeling_cacse import CacseModel
from cacse_trainer.models.modeling_ensemble import EnsembleModel
from cacse_trainer.models.modeling_sentence_embedding import SentenceEmbeddingModel, known_inputs
from cacse_trainer.models.pooling import LAYER_POOLINGS, POOLINGS, pool
from cacse_trainer.recipes import nearest, resolve_resource

logger = logging.getLogger(__name__)

CLS_WITH_MLP = "cls_with_mlp"
"""The first token's state through the model's own head, dense and tanh; SimCSE's pooler ``cls``."""

CHOICES = ("cls", CLS_WITH_MLP, "mean", "last_token", "avg_top2", "avg_first_last", "max")
"""The poolings that are offered; the other names of `POOLINGS` are taken too."""

SAMPLED_VALUES = 4096  # of each weight tensor, for the fingerprint


@dataclass
class Loaded:
    """An encoder that is ready to run.

    Args:
        name: as the user gave it.
        model: in eval mode, on its device.
        tokenizer: with a padding token.
        embed: the function that `embed_sentences` takes.
        pooling: what was stated or guessed.
        max_seq_length: in tokens.
        normalizes: sentence-transformers would scale the vectors to length 1.
        prepare: the text that the tokenizer sees, from a sentence; None where that is the sentence itself.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    embed: Embed
    pooling: str
    max_seq_length: int
    normalizes: bool = False
    prepare: Callable[[str], str] | None = None


def load_encoder(
    name: str,
    *,
    pooling: str | None = None,
    device: torch.device | str | None = None,
    adapter: str | None = None,
    max_seq_length: int | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Load an encoder in float32.

    Args:
        name: a folder, a hub id or ``package:NAME/FOLDER``.
        pooling: one of `CHOICES`; layers that the folder has above its own pooling are then left out.
        device: default: a GPU where there is one.
        adapter: folder or hub id of a PEFT adapter, merged into the weights.
        max_seq_length: default: what the folder states, else the longest that tokenizer and model take.
        trust_remote_code: run the model code that comes with the checkpoint.

    Raises:
        UserError: nothing there, no tokenizer, an unknown pooling, or one that this model has not.
    """
    if pooling is not None and pooling not in POOLINGS and pooling != CLS_WITH_MLP:
        raise UserError(
            f"pooling {pooling!r} is unknown{nearest(pooling, CHOICES)}; choose one of {', '.join(CHOICES)}"
        )
    path = resolve_resource(name)
    _check_folder(name, path)
    stated = read_modules(path, pooled_otherwise=pooling not in (None, CLS_WITH_MLP))
    where = {"subfolder": stated.subfolder, "trust_remote_code": trust_remote_code}
    device = torch.device(device) if device is not None else default_device()
    try:
        config = AutoConfig.from_pretrained(path, **where)
        model, report = AutoModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **where)
        tokenizer = AutoTokenizer.from_pretrained(path, **where)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise UserError(f"model {name}: {_one_line(error)}") from error
    check_tokenizer(name, tokenizer, model)
    if adapter is not None:
        model = merge_adapter(model, adapter)
    if config.is_encoder_decoder:
        model = model.get_encoder()
    model = model.eval().to(device)
    chosen = pooling or stated.pooling or stated_by_model(model) or guess_pooling(name, config)
    embed = embed_function(
        name, model, chosen, stated.dense, set(report["missing_keys"]), is_stated=pooling is not None
    )
    limit = max_seq_length or stated.max_seq_length or length_limit(tokenizer, model.config)
    limit = min(limit, length_limit(tokenizer, model.config)) if max_seq_length is None else limit
    _check_length(name, limit, length_limit(tokenizer, model.config))
    described = describe_pooling(model, chosen, stated)
    return Loaded(name, model, tokenizer, embed, described, limit, stated.normalizes, text_function(stated))


def default_device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def embed_function(
    name: str, model: PreTrainedModel, pooling: str, dense: list[nn.Module], missing: set[str], *, is_stated: bool
) -> Embed:
    """The function of input tensors for a pooling.

    Raises:
        UserError: the model has no head, or no layers to average.
    """
    ours = isinstance(model, (CacseModel, EnsembleModel, SentenceEmbeddingModel))
    if ours and not is_stated:
        return lambda **inputs: model.embed(**known_inputs(model, inputs))
    if pooling == CLS_WITH_MLP:
        return _with_head(name, model, dense, missing)
    core = model.encoder if isinstance(model, SentenceEmbeddingModel) else model
    if isinstance(core, (CacseModel, EnsembleModel)) and pooling in LAYER_POOLINGS:
        raise UserError(
            f"model {name}: pooling {pooling} averages layers, and a sum of towers has none; use cls or mean"
        )
    layers = nn.ModuleList(dense).to(model.device)
    more = {"output_hidden_states": True} if pooling in LAYER_POOLINGS else {}

    def embed(**inputs: Tensor) -> Tensor:
        output = core(**known_inputs(core, inputs), **more)
        hidden = output.hidden_states if more else None
        vectors = pool(pooling, output.last_hidden_state, hidden, inputs.get("attention_mask"))  # (N, H)
        for layer in layers:
            vectors = layer(vectors)
        return vectors

    return embed


def _with_head(name: str, model: PreTrainedModel, dense: list[nn.Module], missing: set[str]) -> Embed:
    if isinstance(model, SentenceEmbeddingModel):
        if not model.config.has_projection:
            raise UserError(f"model {name} has no head: it was trained with pooling {model.config.pooling}")
        encoder, head = model.encoder, model.projection_head
        return lambda **inputs: head(encoder(**known_inputs(encoder, inputs)).last_hidden_state[:, 0])
    if dense:
        head = nn.Sequential(*dense).to(model.device)
        return lambda **inputs: head(
            pool("cls", model(**known_inputs(model, inputs)).last_hidden_state, None, inputs.get("attention_mask"))
        )
    has_pooler = any(part == "pooler" and module is not None for part, module in model.named_children())
    if not has_pooler or any(key.startswith("pooler.") for key in missing):
        raise UserError(f"model {name}: pooling {CLS_WITH_MLP} needs a trained pooler, and it has none; use cls")
    return lambda **inputs: model(**known_inputs(model, inputs)).pooler_output


def stated_by_model(model: PreTrainedModel) -> str | None:
    """The pooling that one of our own model classes has; None for any other."""
    if isinstance(model, SentenceEmbeddingModel):
        if model.config.has_projection:
            return CLS_WITH_MLP if model.config.projects_at_inference else "cls"
        return {"cls_before_pooler": "cls", "avg": "mean"}.get(model.config.pooling, model.config.pooling)
    return "cls" if isinstance(model, (CacseModel, EnsembleModel)) else None


def guess_pooling(name: str, config: Any) -> str:
    """Nothing is stated: the last token of a decoder, else the mean, as sentence-transformers does. Logged."""
    decoder = any(str(kind).endswith("ForCausalLM") for kind in config.architectures or [])
    guess = "last_token" if decoder else "mean"
    logger.warning(
        "model %s states no pooling: GUESSED %s (state another with pooling, --pooling: %s)",
        name,
        guess,
        ", ".join(CHOICES),
    )
    return guess


def describe_pooling(model: PreTrainedModel, pooling: str, stated: Modules) -> str:
    """The pooling's name, with what the folder puts above it."""
    if pooling == "cls" and stated.dense:
        return CLS_WITH_MLP
    return f"{pooling} + dense" if stated.dense and pooling != CLS_WITH_MLP else pooling


def text_function(stated: Modules) -> Callable[[str], str] | None:
    """What the folder wants done to a sentence before the tokenizer."""
    if not stated.prompt and not stated.lower_case:
        return None
    return lambda sentence: stated.prompt + (sentence.lower() if stated.lower_case else sentence)


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Refuse a tokenizer without a vocabulary (transformers makes one up) or of another model; give it padding.

    Raises:
        UserError: with what is missing.
    """
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) <= len(tokenizer.all_special_ids):
        raise UserError(
            f"model {name} has no tokenizer; save one beside it (tokenizer.save_pretrained), or give another model"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if max(vocabulary.values()) >= rows:
        raise UserError(
            f"model {name}: its tokenizer gives ids up to {max(vocabulary.values())}, the model has {rows} embeddings"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token


def merge_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The model with a PEFT adapter's weights merged in.

    Raises:
        UserError: peft is not installed, or the adapter cannot be read.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise UserError("an adapter needs the peft library: pip install peft") from error
    try:
        return PeftModel.from_pretrained(model, resolve_resource(adapter)).merge_and_unload()
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"adapter {adapter}: {_one_line(error)}") from error


def fingerprint(model: nn.Module) -> str:
    """A hash of the names, shapes and a sample of the values of all weights: two trained models never share it."""
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // SAMPLED_VALUES)].float().cpu().contiguous()
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_folder(name: str, path: str) -> None:
    folder = Path(path)
    if not folder.exists():
        if path.count("/") > 1 or path.startswith((".", "/", "~")):
            raise UserError(f"model {name}: no such folder")
        return
    if not folder.is_dir():
        raise UserError(f"model {name} is a file; give the folder that holds config.json")
    if (folder / "config.json").is_file() or (folder / "modules.json").is_file():
        return
    inside = sorted(child.parent for pattern in ("*/config.json", "*/*/config.json") for child in folder.glob(pattern))
    hint = f"; did you mean {inside[0]}?" if inside else ""
    if (folder / "adapter_config.json").is_file():
        hint = "; it holds an adapter: give the base model, and this folder as adapter (--adapter)"
    raise UserError(f"model {name}: no config.json in it{hint}")


def _check_length(name: str, asked: int, possible: int) -> None:
    if not 0 < asked <= possible:
        raise UserError(f"model {name}: max_seq_length {asked} is beyond the {possible} tokens that it takes")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
