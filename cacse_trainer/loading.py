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
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import cacse_trainer.models  # noqa: F401 - registers the model classes with AutoModel
from cacse_trainer.embedding import (
    CHOICES,
    CLS_WITH_MLP,
    describe_pooling,
    embed_function,
    guess_pooling,
    stated_by_model,
)
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.embed import Embed, length_limit
from cacse_trainer.export.stated_modules import Modules, read_json, read_modules
from cacse_trainer.models.modeling_ensemble import EnsembleModel
from cacse_trainer.models.pooling import POOLINGS
from cacse_trainer.models.tokenizer_bundle import TokenizerBundle
from cacse_trainer.recipes import nearest, resolve_resource

logger = logging.getLogger(__name__)

OURS = frozenset({"cacse", "cacse_ensemble", "sentence_embedding", "diffcse", "student"})
"""Kinds of models that pool by themselves; what their folders say to sentence-transformers is not needed."""

SAMPLED_VALUES = 4096  # of each weight tensor, for the fingerprint


@dataclass
class Loaded:
    """An encoder that is ready to run.

    Args:
        name: as the user gave it.
        model: in eval mode, on its device.
        tokenizer: with a padding token; a `TokenizerBundle` where the encoders have tokenizers of their own.
        embed: the function that `embed_sentences` takes.
        pooling: what was stated or guessed.
        max_seq_length: in tokens.
        normalizes: sentence-transformers would scale the vectors to length 1.
        prepare: the text that the tokenizer sees, from a sentence; None where that is the sentence itself.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Any
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
    kind = (read_json(path, "config.json") or {}).get("model_type")
    stated = Modules() if kind in OURS else read_modules(path, pooled_otherwise=pooling not in (None, CLS_WITH_MLP))
    where = {"subfolder": stated.subfolder, "trust_remote_code": trust_remote_code}
    device = torch.device(device) if device is not None else default_device()
    try:
        config = AutoConfig.from_pretrained(path, **where)
        model, report = AutoModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **where)
        if isinstance(model, EnsembleModel) and model.config.own_tokenizers:
            tokenizer: Any = TokenizerBundle.from_pretrained(path, len(model.encoders))
        else:
            tokenizer = AutoTokenizer.from_pretrained(path, **where)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise UserError(f"model {name}: {_one_line(error)}") from error
    if isinstance(tokenizer, TokenizerBundle):
        for part, encoder in zip(tokenizer.tokenizers, model.encoders, strict=True):
            check_tokenizer(name, part, encoder)
    else:
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


def text_function(stated: Modules) -> Callable[[str], str] | None:
    """What the folder wants done to a sentence before the tokenizer."""
    if not stated.prompt and not stated.lower_case:
        return None
    return lambda sentence: stated.prompt + (sentence.lower() if stated.lower_case else sentence)


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
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
