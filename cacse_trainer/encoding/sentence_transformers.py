"""sentence-transformers' files of an encoder folder, read and written: pooling, layers above it, length, prompt.

A folder without them loads in sentence-transformers with MEAN pooling, whatever it was trained with. The module paths
that are written are the older ones, which old and new versions of the library know.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cacse_trainer.compute.pooling import POOLINGS
from cacse_trainer.encoding.released import HEAD, RAW, released
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.files import write_json
from cacse_trainer.models.modeling_static import POOLING as STATIC_POOLING
from cacse_trainer.models.pretrained import STATIC, damage_named, find_file, list_of_modules, read_settings

MODULES = "modules.json"
LENGTH = "sentence_bert_config.json"
KINDS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
"""In the names of the length file, by the kind of transformer that older versions saved; in the library's order."""
PROMPTS = "config_sentence_transformers.json"
QUERY, DOCUMENT = "query", "document"
"""The prompts by which a search is made, and their names in an exported folder."""
DOCUMENTS = (DOCUMENT, "passage")
TANH = "torch.nn.modules.activation.Tanh"
# pooling name → the flag of sentence-transformers' Pooling module
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "last_token": "pooling_mode_lasttoken",
}
NEWER_NAMES = {"lasttoken": "last_token", "weightedmean": "weighted_mean"}
"""Poolings that sentence-transformers 5.2 and later write without an underscore."""
ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.Tanh, nn.Identity, nn.ReLU, nn.GELU, nn.SiLU)
}
"""Of the Dense module, by the last part of the class's name."""
WITHOUT_EFFECT = frozenset({"trust_remote_code", "use_fast", "model_max_length", "padding_side", "cache_dir"})
"""Arguments of config and tokenizer that change no vector here, or that no folder may ask for."""


@dataclass
class Modules:
    """What the files state.

    Args:
        pooling: its name, None where no file states one.
        above: the layers above the pooling, in order; none for most models.
        max_seq_length: None where the tokenizer decides.
        lower_case: sentences are lower-cased before the tokenizer.
        prompt: put before every sentence where no other is asked for.
        prompts: all that are named.
        normalizes: sentence-transformers scales this model's vectors to length 1, as the last step.
        static: where the table of a model without a transformer is; None for all others.
    """

    pooling: str | None = None
    above: list[nn.Module] = field(default_factory=list)
    max_seq_length: int | None = None
    lower_case: bool = False
    prompt: str = ""
    prompts: dict[str, str] = field(default_factory=dict)
    normalizes: bool = False
    static: str | None = None

    @property
    def prepare(self) -> Callable[..., str] | None:
        """The text that the tokenizer sees, from a sentence and a prompt; None where that is the two as they are."""
        if not self.prompt and not self.lower_case:
            return None

        def prepared(text: str, prompt: str | None = None) -> str:
            whole = (self.prompt if prompt is None else prompt) + text
            return whole.lower() if self.lower_case else whole

        return prepared

    @property
    def query_prompt(self) -> str:
        """What belongs before a query: the prompt of that name, else the default one."""
        return self.prompts.get(QUERY, self.prompt)

    @property
    def document_prompt(self) -> str:
        """What belongs before a document: the prompt ``document`` or ``passage``, else the default one."""
        return next((self.prompts[name] for name in DOCUMENTS if name in self.prompts), self.prompt)

    def length(self, longest: int) -> int:
        """The limit in tokens, of a model that takes ``longest``."""
        return min(self.max_seq_length or longest, longest)


def read_modules(name: str, pooled_otherwise: bool = False) -> Modules:
    """Read ``modules.json`` and what it points to.

    Args:
        name: folder or hub id.
        pooled_otherwise: the user states the pooling; what the folder has from there on is not read.

    Returns:
        What is stated; of a folder without ``modules.json`` the pooling of a released model of that name (`released`),
        else nothing.

    Raises:
        UserError: a module of a kind that is not supported, with its name.
    """
    found, listed = Modules(), list_of_modules(name)
    if not listed:
        known = released(name)
        if known is not None and not pooled_otherwise:
            found.pooling = "cls" if known.pooling == RAW else known.pooling
        return found
    found.prompts, found.prompt = _read_prompts(name)
    for place, module in enumerate(listed):
        kind, path = module["type"].rpartition(".")[2], module["path"]
        if kind == "Transformer" and place == 0:
            _read_transformer(name, path, found)
        elif kind == STATIC and place == 0:
            found.static, found.pooling = path, STATIC_POOLING
        elif pooled_otherwise:
            continue
        elif kind == "Pooling" and not found.pooling and not found.above:
            found.pooling = _read_pooling(name, path, found.prompt)
        elif kind == "Dense" and found.pooling:
            found.above.append(_read_dense(name, path))
        elif kind == "Normalize" and found.pooling:
            _read_names(name, path, kind, read_settings(name, f"{path}/config.json") or {})
            found.above.append(Normalize())
        elif kind != "Dropout":  # which does nothing at inference
            raise UserError(
                f"model {name}: modules.json has a {kind} module in place {place}, which is not supported here "
                "(Transformer and Pooling, or StaticEmbedding, then Dense and Normalize); load it with "
                "sentence-transformers"
            )
    while found.above and isinstance(found.above[-1], Normalize):
        found.normalizes = True
        found.above.pop()
    return found


def states_head(name: str) -> bool:
    """Whether a folder states the first token's state behind a trained layer, as supervised SimCSE has it."""
    listed = list_of_modules(name)
    if not listed:
        known = released(name)
        return known is not None and known.pooling == HEAD
    kinds = [module["type"].rpartition(".")[2] for module in listed]
    if kinds[1:3] != ["Pooling", "Dense"]:
        return False
    try:
        return _read_pooling(name, listed[1]["path"], "") == "cls"
    except UserError:  # of a pooling that is not supported: it is no first token
        return False


class Normalize(nn.Module):
    """Rows scaled to length 1: (N, H) → (N, H)."""

    def forward(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)


def read_prompts(name: str) -> dict[str, str]:
    """The prompts that a folder names, also a training checkpoint's."""
    return _read_prompts(name)[0]


def _read_prompts(name: str) -> tuple[dict[str, str], str]:
    """The prompts by name, and what is put before every sentence: nothing where no prompt is the default one."""
    kinds = {"prompts": dict[str, str | None] | None, "default_prompt_name": str | None}
    settings = read_settings(name, PROMPTS, **kinds) or {}
    chosen = settings.get("default_prompt_name")
    prompts = {key: text or "" for key, text in (settings.get("prompts") or {}).items()}
    if chosen and chosen not in {QUERY, DOCUMENT, *prompts}:  # the library knows these two
        raise UserError(
            f"model {name}: {PROMPTS} names the default prompt {chosen!r}, and has no such prompt; add it to prompts "
            "there, or take default_prompt_name out"
        )
    return prompts, prompts.get(chosen, "") if chosen else ""


def _read_transformer(name: str, path: str, found: Modules) -> None:
    """The length limit and what else the transformer's file says; what would be left out is refused."""
    groups = ("config_args", "config_kwargs", "tokenizer_args", "processor_kwargs", "processing_kwargs")
    kinds = {"max_seq_length": int | None, **dict.fromkeys(groups, dict | None)}
    files = (read_settings(name, f"{path}/sentence_{kind}_config.json".lstrip("/"), **kinds) for kind in KINDS)
    settings = next(filter(None, files), {})
    found.max_seq_length = settings.get("max_seq_length")
    if found.max_seq_length is not None and found.max_seq_length < 1:
        raise UserError(
            f"model {name}: max_seq_length is {found.max_seq_length} in its {LENGTH}; write a number from 1 there, or "
            "take it out"
        )
    found.lower_case = bool(settings.get("do_lower_case"))
    asked = [f"{group} {key}" for group in groups for key in settings.get(group) or {} if key not in WITHOUT_EFFECT]
    if settings.get("transformer_task", "feature-extraction") != "feature-extraction":
        asked.append(f"transformer_task {settings['transformer_task']}")
    if asked:
        raise UserError(
            f"model {name}: its {LENGTH} asks for {', '.join(asked)}, which is not supported here; load it with "
            "sentence-transformers"
        )


def _read_pooling(name: str, path: str, prompt: str) -> str:
    modes_kind = str | list[str] | None
    settings = read_settings(name, f"{path}/config.json".lstrip("/"), pooling_mode=modes_kind) or {}
    modes = settings.get("pooling_mode") or []
    flags = [flag for flag, value in settings.items() if flag.startswith("pooling_mode_") and value is True]
    known = {**NEWER_NAMES, **{flag: pooling for pooling, flag in POOLING_FLAGS.items()}}
    chosen = [known.get(mode, mode) for mode in ([modes] if isinstance(modes, str) else modes) or flags]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise UserError(
            f"model {name}: its pooling is {' + '.join(chosen) or 'not stated'} in {path}/config.json, which is not "
            f"supported here; state another with pooling: {', '.join(POOLINGS)}"
        )
    if prompt and settings.get("include_prompt") is False:
        raise UserError(f"model {name}: its pooling leaves the prompt's tokens out, which is not supported here")
    return chosen[0]


def _read_dense(name: str, path: str) -> nn.Module:
    kinds = {"in_features": int, "out_features": int, "activation_function": str | None}
    settings = read_settings(name, f"{path}/config.json", **kinds)
    file = find_file(name, f"{path}/model.safetensors") or find_file(name, f"{path}/pytorch_model.bin")
    if settings is None or file is None:
        raise UserError(f"model {name}: modules.json names the Dense module {path}, but its files are missing")
    activation = (settings.get("activation_function") or TANH).rpartition(".")[2]
    _read_names(name, path, "Dense", settings)
    if activation not in ACTIVATIONS or settings.get("use_residual"):
        raise UserError(
            f"model {name}: the Dense module {path} (activation {activation}) is not supported here; "
            "load it with sentence-transformers"
        )
    what = f"model {name}: the Dense module {path}"
    with user_errors(what, KeyError), damage_named(name, {"subfolder": path}):
        loaded = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        weights = {key.removeprefix("linear."): tensor for key, tensor in loaded.items()}
        layer = nn.Linear(settings["in_features"], settings["out_features"], bias="bias" in weights)
        layer.load_state_dict(weights)
    return nn.Sequential(layer, ACTIVATIONS[activation]()).requires_grad_(False)


def _read_names(name: str, path: str, kind: str, settings: dict[str, Any]) -> None:
    """Refuse a layer that reads or writes something else than the sentence's vector."""
    keys = ("module_input_name", "module_output_name")
    names = {str(settings.get(key) or "sentence_embedding") for key in keys}
    if names != {"sentence_embedding"}:
        raise UserError(
            f"model {name}: the {kind} module {path} works on {', '.join(sorted(names))}, which is not supported here; "
            "load it with sentence-transformers"
        )


def write_modules(
    folder: Path,
    *,
    pooling: str,
    hidden_size: int,
    max_seq_length: int,
    dense: nn.Linear | None = None,
    prompts: Mapping[str, str] | None = None,
    layers: Sequence[nn.Module] = (),
    **settings: Any,
) -> None:
    """Write ``modules.json``, ``1_Pooling/config.json`` and the two configuration files.

    Args:
        folder: of an encoder that AutoModel loads.
        pooling: cls, mean, max, weighted_mean or last_token.
        hidden_size: width of the encoder.
        max_seq_length: the tokenizer's own limit.
        dense: a layer above the pooling, followed by tanh: the head of supervised SimCSE.
        prompts: by name.
        layers: more layers above, see `write_layers`.
        settings: see `list_modules`.

    Raises:
        ValueError: sentence-transformers has no such pooling.
    """
    if pooling not in POOLING_FLAGS:
        raise ValueError(f"sentence-transformers has no pooling {pooling!r}; choose one of {sorted(POOLING_FLAGS)}")
    modules = {"": "Transformer", "1_Pooling": "Pooling"}
    flags = {flag: name == pooling for name, flag in POOLING_FLAGS.items()}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden_size, **flags})
    above = [nn.Sequential(dense, nn.Tanh())] if dense is not None else []
    write_layers(folder, modules, [*above, *layers])
    list_modules(folder, modules, max_seq_length, prompts, **settings)


def write_layers(folder: Path, modules: dict[str, str], layers: Sequence[nn.Module]) -> None:
    """Write the layers above the pooling, as `Modules.above` has them, and add them to the ``modules`` by path."""
    for layer in layers:
        kind = "Normalize" if isinstance(layer, Normalize) else "Dense"
        path = f"{len(modules)}_{kind}"
        modules[path] = kind
        if isinstance(layer, nn.Sequential):
            _write_dense(folder / path, *layer)


def _write_dense(folder: Path, linear: Any, activation: nn.Module) -> None:
    folder.mkdir(exist_ok=True)
    kind = type(activation)
    settings = {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
        "activation_function": f"{kind.__module__}.{kind.__qualname__}",
    }
    write_json(folder / "config.json", settings)
    weights = {f"linear.{name}": tensor.cpu().contiguous() for name, tensor in linear.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def list_modules(
    folder: Path,
    modules: dict[str, str],
    max_seq_length: int,
    prompts: Mapping[str, str] | None = None,
    lower_case: bool = False,
    prompt: str = "",
) -> None:
    """Write ``modules.json``, with the length limit, the similarity and the prompts.

    Args:
        folder: of the encoder.
        modules: by path sentence-transformers' kinds, or whole paths of classes.
        max_seq_length: in tokens.
        prompts: by name.
        lower_case: sentences are lower-cased before the tokenizer.
        prompt: the one of the prompts that is put before every sentence where no other is asked for.
    """
    _write_list(folder, modules, {"max_seq_length": max_seq_length, "do_lower_case": lower_case})
    write_prompts(folder, prompts or {}, prompt)


def list_own_pooling(folder: Path, max_seq_length: int) -> None:
    """Write ``modules.json`` of a model that pools by itself: its ``sentence_embedding`` is what is read.

    sentence-transformers then takes no mean of its token states, once this package is imported. Without it, and in
    versions that know of no output but token states, the folder is refused.
    """
    output = "sentence_embedding"
    how = {"method": "forward", "method_output_name": output}
    read = {"module_output_name": output, "modality_config": {"text": how}}
    _write_list(folder, {"": "Transformer"}, {"max_seq_length": max_seq_length, "do_lower_case": False, **read})


def _write_list(folder: Path, modules: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    kinds = {path: kind if "." in kind else f"sentence_transformers.models.{kind}" for path, kind in modules.items()}
    listed = [{"idx": i, "name": str(i), "path": path, "type": kinds[path]} for i, path in enumerate(kinds)]
    write_json(folder / MODULES, listed)
    write_json(folder / LENGTH, settings)


def write_prompts(folder: Path, prompts: Mapping[str, str], prompt: str = "") -> None:
    """Write the prompts by name, of an encoder's folder or a checkpoint; ``prompt``: the default one of them."""
    default = next((name for name, text in prompts.items() if prompt and text == prompt), None)
    chosen = {"default_prompt_name": default} if default is not None else {}
    write_json(folder / PROMPTS, {"similarity_fn_name": "cosine", "prompts": dict(prompts), **chosen})


def search_prompts(query: str, document: str) -> dict[str, str]:
    """The prompts of a search by their names; none where both are empty."""
    return {QUERY: query, DOCUMENT: document} if query or document else {}
