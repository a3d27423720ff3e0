"""What a folder or hub id says of itself in sentence-transformers' files: pooling, layers above it, length, prompt."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.utils import cached_file

from cacse_trainer.compute.pooling import POOLINGS
from cacse_trainer.encoding.sentence_transformers import POOLING_FLAGS
from cacse_trainer.errors import UserError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "Tanh": nn.Tanh,
    "Identity": nn.Identity,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
}
"""Of sentence-transformers' Dense module, by the last part of the class's name."""

NEWER_NAMES = {"lasttoken": "last_token", "weightedmean": "weighted_mean"}
"""Poolings that sentence-transformers 5.2 and later write without an underscore."""


@dataclass
class Modules:
    """What the files state.

    Args:
        subfolder: of the transformer, ``""`` for the folder itself.
        pooling: its name, None where no file states one.
        dense: the layers above the pooling, in order; none for most models.
        max_seq_length: None where the tokenizer decides.
        lower_case: sentences are lower-cased before the tokenizer.
        prompt: put before every sentence.
        normalizes: sentence-transformers scales this model's vectors to length 1.
    """

    subfolder: str = ""
    pooling: str | None = None
    dense: list[nn.Module] = field(default_factory=list)
    max_seq_length: int | None = None
    lower_case: bool = False
    prompt: str = ""
    normalizes: bool = False


def find_file(name: str, file: str) -> Path | None:
    """A file of a folder or of a hub model (downloaded, or found in the cache); None when there is none."""
    found = cached_file(
        name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return Path(found) if found else None


def read_json(name: str, file: str) -> Any:
    """A JSON file of a folder or hub model; None when there is none.

    Raises:
        UserError: the file is no JSON.
    """
    path = find_file(name, file)
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"model {name}: {file} is no JSON ({error})") from error


def read_modules(name: str, pooled_otherwise: bool = False) -> Modules:
    """Read ``modules.json`` and what it points to.

    Args:
        name: folder or hub id.
        pooled_otherwise: the user states the pooling; what the folder has from there on is not read.

    Returns:
        What is stated; of a folder without ``modules.json`` an empty `Modules`.

    Raises:
        UserError: a module of a kind that is not supported, with its name.
    """
    listed = read_json(name, "modules.json")
    found = Modules()
    if listed is None:
        return found
    for module in listed:
        kind, path = module["type"].rpartition(".")[2], module["path"]
        if kind == "Transformer":
            _read_transformer(name, path, found)
        elif pooled_otherwise:
            continue
        elif kind == "Pooling":
            found.pooling = _read_pooling(name, path)
        elif kind == "Dense":
            found.dense.append(_read_dense(name, path))
        elif kind == "Normalize":
            found.normalizes = True
        elif kind != "Dropout":  # which does nothing at inference
            raise UserError(
                f"model {name}: modules.json has a {kind} module, which is not supported here (Transformer, Pooling, "
                "Dense, Normalize); load it with sentence-transformers"
            )
    prompts = read_json(name, "config_sentence_transformers.json") or {}
    if prompts.get("default_prompt_name"):
        found.prompt = prompts["prompts"][prompts["default_prompt_name"]]
    return found


def _inside(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file


def _read_transformer(name: str, path: str, found: Modules) -> None:
    found.subfolder = path
    settings = read_json(name, _inside(path, "sentence_bert_config.json")) or {}
    found.max_seq_length = settings.get("max_seq_length")
    found.lower_case = bool(settings.get("do_lower_case"))


def _read_pooling(name: str, path: str) -> str:
    settings = read_json(name, _inside(path, "config.json")) or {}
    mode = settings.get("pooling_mode")
    if isinstance(mode, str):
        chosen = [NEWER_NAMES.get(mode, mode)]
    elif mode:
        chosen = [NEWER_NAMES.get(one, one) for one in mode]
    else:
        known = {flag: pooling for pooling, flag in POOLING_FLAGS.items()}
        flags = [flag for flag, value in settings.items() if flag.startswith("pooling_mode_") and value is True]
        chosen = [known.get(flag, flag) for flag in flags]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise UserError(
            f"model {name}: its pooling is {' + '.join(chosen) or 'not stated'} in {path}/config.json, which is not "
            f"supported here; state another with pooling: {', '.join(POOLINGS)}"
        )
    if settings.get("include_prompt") is False:
        raise UserError(f"model {name}: its pooling leaves the prompt's tokens out, which is not supported here")
    return chosen[0]


def _read_dense(name: str, path: str) -> nn.Module:
    settings = read_json(name, f"{path}/config.json")
    file = find_file(name, f"{path}/model.safetensors") or find_file(name, f"{path}/pytorch_model.bin")
    if settings is None or file is None:
        raise UserError(f"model {name}: modules.json names the Dense module {path}, but its files are missing")
    activation = settings.get("activation_function", "torch.nn.modules.activation.Tanh").rpartition(".")[2]
    inputs, outputs = (settings.get(key, "sentence_embedding") for key in ("module_input_name", "module_output_name"))
    if activation not in ACTIVATIONS or settings.get("use_residual") or {inputs, outputs} != {"sentence_embedding"}:
        raise UserError(
            f"model {name}: the Dense module {path} (activation {activation}) is not supported here; "
            "load it with sentence-transformers"
        )
    loaded = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    weights = {key.removeprefix("linear."): tensor for key, tensor in loaded.items()}
    layer = nn.Linear(settings["in_features"], settings["out_features"], bias="bias" in weights)
    layer.load_state_dict(weights)
    return nn.Sequential(layer, ACTIVATIONS[activation]()).requires_grad_(False)
