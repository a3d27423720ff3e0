"""The one place at which transformers' Auto classes read a folder or a hub id.

What is read is whole, or refused with its mend: a weight that the files lack, or hold in another size, would be drawn
at random. Code that comes with a checkpoint runs only where the user asks for it; unasked, transformers would put the
question on standard input. Of a sentence-transformers folder the transformer is read, wherever ``modules.json`` has it.
"""

import functools
import json
import logging
import re
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING,
)
from transformers.utils import cached_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from cacse_trainer.errors import UserError, one_line
from cacse_trainer.files import check_entries

logger = logging.getLogger(__name__)

POOLER = r"(^|\.)pooler\."
"""Weights that a checkpoint may lack: most poolings do not read them, and those that do ask for them."""
ANY = r""
"""Every weight: the caller is told what was drawn, and judges it."""
ENCODER_HALVES = frozenset({"t5", "mt5", "umt5"})
"""Encoder-decoders whose encoder is a model of its own."""
SEES_BOTH_SIDES = frozenset({"xlnet", "bert-generation"})
"""Kinds that transformers lists as causal, and that read a whole text."""
READ = frozenset({".safetensors", ".bin", ".json", ".model", ".txt"})
"""Endings of the files that a model is read from."""
MEND = "download the model anew"
STATIC = "StaticEmbedding"
"""In ``modules.json`` the module of a model that has no transformer."""
LFS_POINTER = b"version https://git-lfs"


def load_config(path: str | Path, *, trust_remote_code: bool = False, **where: Any) -> PretrainedConfig:
    """The config of a folder or hub id.

    Args:
        path: folder or hub id.
        trust_remote_code: run the code that comes with it.
        where: ``revision``, …, as for `AutoConfig.from_pretrained`.

    Raises:
        UserError: a file is damaged, with its name.
        ValueError: it needs code that the user does not trust, or is of an unknown kind.
        OSError: there is none.
    """
    path, where = _transformer_of(path, where)
    with damage_named(path, where):
        return AutoConfig.from_pretrained(path, trust_remote_code=bool(trust_remote_code), **where)


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False, **where: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id; arguments and errors as for `load_config`."""
    path, where = _transformer_of(path, where)
    with damage_named(path, where):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=bool(trust_remote_code), **where)


def load_encoder_model(path: str | Path, **loading: Any) -> tuple[Any, set[str]]:
    """The bare encoder of a folder or hub id, and what it lacks; arguments and errors as for `load_weights`."""
    config = loading.pop("config", None)
    if config is None:
        names = ("trust_remote_code", "revision")
        config = load_config(path, **{name: loading[name] for name in names if name in loading})
    kind = encoder_class(config, str(path))
    if not Path(path).exists() and find_file(path, ADAPTER_CONFIG_NAME) is not None:
        # of a hub id AutoModel would take the adapter's base in its place; the class itself knows what to read
        kind = MODEL_MAPPING.get(type(config), kind)
    return load_weights(kind, path, config=config, **loading)


def load_weights(
    kind: Any,
    path: str | Path,
    *,
    optional: str = POOLER,
    trust_remote_code: bool = False,
    **loading: Any,
) -> tuple[Any, set[str]]:
    """A model with the weights of a folder or hub id, all of them.

    Where the file's names carry one prefix more than the model's (``module.``, ``_orig_mod.``, ``model.``, …, left by a
    wrapper that was saved with the model), it is taken off, with a warning.

    Args:
        kind: a class with ``from_pretrained``.
        path: folder or hub id.
        optional: pattern of the weights that may be missing.
        trust_remote_code: run the code that comes with it.
        loading: as for ``from_pretrained``.

    Returns:
        The model, and the names of optional weights that were drawn at random.

    Raises:
        UserError: weights are missing or of another size, or a file is damaged.
        ValueError, OSError: as for `load_config`.
    """
    place, loading = _transformer_of(path, loading)
    loading |= {"trust_remote_code": bool(trust_remote_code)}
    loading |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # they are named below
    with damage_named(place, loading):
        model, info = kind.from_pretrained(place, **loading)
        prefix = _prefix(info["missing_keys"], _required(info, optional), info["unexpected_keys"])
        if prefix is not None:
            logger.warning("model %s: the names of its weights begin with %r; it is taken off", path, prefix)
            loading["key_mapping"] = {f"^{re.escape(prefix)}": ""}
            model, info = kind.from_pretrained(place, **loading)
    missing = _required(info, optional)
    if missing:
        others = sorted(info["unexpected_keys"])
        renamed = f"it has others, such as {others[0]}: rename them, or " if others else ""
        raise UserError(
            f"model {path} lacks {len(missing)} weights of its own config, {missing[0]} among them, which would be "
            f"drawn at random; {renamed}take config.json and weights of one and the same model, or download it anew"
        )
    for name, found, wanted in sorted(info["mismatched_keys"]):
        raise UserError(
            f"model {path}: {name} is {tuple(found)} in its file, and {tuple(wanted)} by its config.json; take both of "
            "one and the same model, or download it anew"
        )
    return model, set(info["missing_keys"])


def build_encoder(config: PretrainedConfig, kind: Any = None, **more: Any) -> Any:
    """A model of a config, its weights still to be loaded or drawn; of ``kind``, or the bare encoder."""
    return (kind or encoder_class(config)).from_config(config, trust_remote_code=False, **more)


def attention_for(config: PretrainedConfig, asked: str | None) -> str | None:
    """The attention asked for; the plain one where that is SDPA, which transformers has not for this kind."""
    kind: Any = MODEL_MAPPING.get(type(config), None)
    return "eager" if asked == "sdpa" and not getattr(kind, "_supports_sdpa", True) else asked


def encoder_class(config: PretrainedConfig, name: str = "") -> Any:
    """The Auto class that gives the bare encoder of a model of this config.

    Raises:
        UserError: an encoder-decoder whose encoder is no model of its own.
    """
    if config.model_type in ENCODER_HALVES:
        return AutoModelForTextEncoding
    if config.is_encoder_decoder:
        raise UserError(
            f"model {name or config.name_or_path} is an encoder-decoder ({config.model_type}), of which no encoder is "
            f"taken here; of such, choose one of {', '.join(sorted(ENCODER_HALVES))}, or an encoder or a decoder"
        )
    return AutoModel


def is_decoder(config: PretrainedConfig) -> bool:
    """Whether each token sees only those before it, so that the last one has seen most."""
    kind, fields = config.model_type, config.to_dict()
    if fields.get("is_causal") is False or fields.get("use_bidirectional_attention") or kind in SEES_BOTH_SIDES:
        return False
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return causal or any(str(name).endswith("ForCausalLM") for name in config.architectures or [])


def runs_its_own_code(model: PreTrainedModel) -> bool:
    """Whether the model's class came with its checkpoint."""
    return type(model).__module__.startswith("transformers_modules.")


def find_file(path: str | Path, file: str) -> Path | None:
    """A file of a folder or of a hub model (downloaded, or found in the cache); None when there is none."""
    found = cached_file(
        str(path), file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return Path(found) if found else None


def read_settings(path: str | Path, file: str, /, **kinds: Any) -> dict[str, Any] | None:
    """A JSON file of a folder or hub model that holds an object; None when there is none.

    Args:
        path: folder or hub id.
        file: its name in there.
        kinds: the entries that it must have, and their types, as for `check_entries`.

    Raises:
        UserError: the file is no JSON, no object, or lacks an entry of the right type.
    """
    found = find_file(path, file)
    if found is None:
        return None
    settings = _json(path, found)
    check_entries(settings, f"model {path}: {file}", MEND, **kinds)
    return settings


def _json(path: str | Path, file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"model {path}: {damage(file)}") from error


def list_of_modules(path: str | Path) -> list[dict[str, str]]:
    """The modules, by ``type`` and ``path``, that ``modules.json`` of a sentence-transformers folder lists.

    Raises:
        UserError: it is no such list.
    """
    found = find_file(path, "modules.json")
    rows = [] if found is None else _json(path, found)
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("type"), str) and isinstance(row.get("path"), str) for row in rows
    ):
        raise UserError(f"model {path}: modules.json is no list of modules with a type and a path; download it anew")
    return rows


def _transformer_of(path: str | Path, where: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where the transformer of a sentence-transformers folder is; the folder itself where nothing else is said."""
    if "subfolder" in where:
        return str(path), dict(where)
    if Path(path).is_dir():
        return str(Path(path) / _subfolder(path)), dict(where)
    subfolder = _hub_subfolder(str(path))
    return str(path), {**where, "subfolder": subfolder} if subfolder else dict(where)


def _subfolder(path: str | Path) -> str:
    first = next(iter(list_of_modules(path)), {"type": "", "path": ""})
    if first["type"].endswith(f".{STATIC}"):
        raise UserError(f"model {path}: is a static table, which has no transformer; give the encoder it was made of")
    return first["path"] if first["type"].endswith(".Transformer") else ""


_hub_subfolder = functools.cache(_subfolder)
"""The same of a hub id, which is asked for once."""


def _required(info: dict[str, Any], optional: str) -> list[str]:
    return sorted(name for name in info["missing_keys"] if not re.search(optional, name))


def _prefix(missing: Collection[str], required: Collection[str], others: Collection[str]) -> str | None:
    """What has to be taken off the other names, so that they are the missing ones; None: nothing, or not one thing."""
    found = {other.removesuffix(name) for name in missing for other in others if other.endswith(f".{name}")}
    fitting = [
        prefix
        for prefix in found
        if all(other.startswith(prefix) for other in others)
        or (required and all(prefix + name in others for name in required))
    ]
    return fitting[0] if len(fitting) == 1 else None


@contextmanager
def damage_named(path: str, where: dict[str, Any]) -> Iterator[None]:
    """What a library raises on a damaged file, as one line that names the file and the mend.

    Args:
        path: folder or hub id.
        where: ``subfolder``, and a ``file`` that is there, default config.json; all beside it are looked at.
    """
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:  # of tokenizers' files it is no more than an Exception
        known = find_file(path, f"{where.get('subfolder', '')}/{where.get('file', 'config.json')}".lstrip("/"))
        files = sorted(known.parent.iterdir()) if known is not None else []
        for wrong in (damage(file) for file in files if file.suffix in READ):
            if wrong is not None:
                raise UserError(wrong) from error
        if type(error) in (Exception, RuntimeError, EOFError):
            raise UserError(f"model {path}: {one_line(error)}") from error
        raise


def damage(file: Path) -> str | None:
    """What is wrong with a file, and the mend; None where nothing is seen."""
    with file.open("rb") as opened:
        head = opened.read(len(LFS_POINTER))
    if head == LFS_POINTER:
        return f"{file} is a pointer of Git LFS, not the file itself; run git lfs pull there, or download it anew"
    broken = "is empty" if head == b"" else None
    if broken is None and file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            broken = f"is damaged ({one_line(error)})"
    if broken is None and file.suffix == ".json":
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            broken = f"is no JSON ({one_line(error)})"
    if broken is None and file.suffix == ".bin" and head.startswith(b"PK") and not zipfile.is_zipfile(file):
        broken = "breaks off"
    return f"{file} {broken}; download it anew" if broken is not None else None
