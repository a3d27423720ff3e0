"""Any encoder to a function of tensors: our own models, plain transformers encoders, sentence-transformers folders.

The pooling is the one that the user states, else the one that the folder states, else a guess that is logged.
"""

import hashlib
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

import cacse_trainer.models  # noqa: F401 - registers the model classes with AutoModel
from cacse_trainer.compute.pooling import POOLINGS
from cacse_trainer.data.tokens import no_room, shortest_limit
from cacse_trainer.encoding.embedder import Embed, length_limit
from cacse_trainer.encoding.released import OF_TRAINING_SCRIPTS, RAW, released
from cacse_trainer.encoding.sentence_transformers import Modules, read_modules, read_prompts, states_head
from cacse_trainer.errors import UserError, one_line, user_errors
from cacse_trainer.models.adapters import CONFIG_FILE as ADAPTER_CONFIG
from cacse_trainer.models.adapters import base_model_of, load_adapter, merge_adapter
from cacse_trainer.models.base import CLS_WITH_MLP, contract_of, pools_by_itself
from cacse_trainer.models.bidirectional import make_bidirectional, tell_of_environment
from cacse_trainer.models.modeling_static import LONGEST, POOLING, StaticTable, load_static_tokenizer
from cacse_trainer.models.pretrained import (
    find_file,
    is_decoder,
    list_of_modules,
    load_config,
    load_encoder_model,
    read_settings,
)
from cacse_trainer.models.prompting import prepare_tokenizer
from cacse_trainer.models.tokenizer_bundle import load_tokenizer_of, tokenizers_of
from cacse_trainer.settings.precision import accelerator
from cacse_trainer.settings.resources import nearest, resolve_resource

logger = logging.getLogger(__name__)

CHOICES = ("cls", RAW, CLS_WITH_MLP, "mean", "weighted_mean", "last_token", "avg_top2", "avg_first_last", "max")
"""The poolings that are offered; the other names of `POOLINGS` are taken too.

``cls`` is the first token as the model has it: through the head that its folder states (supervised SimCSE), raw where
there is none. ``cls_before_pooler`` is always raw, ``cls_with_mlp`` always through the head.
"""

SAMPLED_VALUES = 4096  # of each weight tensor, for the fingerprint


@dataclass
class Loaded:
    """An encoder that is ready to run.

    Args:
        name: as the user gave it.
        model: a `PreTrainedModel` or a `StaticTable`, in eval mode, on its device.
        tokenizer: with a padding token; a `TokenizerBundle` where the encoders have tokenizers of their own.
        embed: the function that an `Embedder` takes.
        pooling: what was stated or guessed.
        max_seq_length: in tokens.
        longest: that the model takes, in tokens.
        stated: what the folder says to sentence-transformers; ``embed`` runs its layers above the model.
        guessed: nobody stated the pooling.
        drawn: names of weights that the checkpoint lacks and no pooling in use reads, another each time.
        bidirectional_start_layer: from which layer on a plain decoder was made to see both directions.
        plain_tokenizer: the folder's own, without the prompt that the user, or the release, puts around every sentence;
            None of a static table.
    """

    name: str
    model: Any
    tokenizer: Any
    embed: Embed
    pooling: str
    max_seq_length: int
    longest: int
    stated: Modules
    guessed: bool = False
    drawn: Collection[str] = ()
    bidirectional_start_layer: int | None = None
    plain_tokenizer: Any = None


def load_encoder(
    name: str | None,
    *,
    pooling: str | None = None,
    device: torch.device | str | None = None,
    adapter: str | None = None,
    max_seq_length: int | None = None,
    trust_remote_code: bool = False,
    prompt_template: str | None = None,
    append_eos: bool = False,
    bidirectional_start_layer: int | None = None,
) -> Loaded:
    """Load an encoder in float32.

    Args:
        name, device, adapter, max_seq_length, trust_remote_code: as for `SentenceEncoder`. The folder of an adapter
            stands for both; its weights are merged.
        pooling: one of `CHOICES`; layers that the folder has above its own pooling are then left out.
        prompt_template: of a plain decoder (a trained checkpoint knows it): text around every sentence, with ``{text}``
            once.
        append_eos: likewise; close every sentence with the EOS token.
        bidirectional_start_layer: likewise; layers from this one on (from 0) see both directions.

    Raises:
        UserError: nothing there, no tokenizer, an unknown pooling, or one that this model has not.
    """
    if pooling is not None and pooling not in POOLINGS and pooling != CLS_WITH_MLP:
        raise UserError(
            f"pooling {pooling!r} is unknown{nearest(pooling, CHOICES)}; choose one of {', '.join(CHOICES)}"
        )
    path, adapter, ours = _find_adapter(name, adapter)
    name = name or str(adapter or path)
    check_folder(name, path)
    if is_sentence_model(path):
        stated = Modules(prompts=read_prompts(path))
    else:
        if pooling == "cls" and states_head(path):
            pooling = CLS_WITH_MLP
        stated = read_modules(path, pooled_otherwise=pooling not in (None, CLS_WITH_MLP))
    speaks_for_itself = is_sentence_model(path) or (adapter is None and list_of_modules(path))
    release = None if speaks_for_itself else released(adapter or path)
    if release is not None:
        logger.info("model %s: is %s's %s; pooling %s", name, release.method, release.name, pooling or release.pooling)
        prompt_template = prompt_template or release.prompt_template
        append_eos = append_eos or release.append_eos
        if bidirectional_start_layer is None:
            bidirectional_start_layer = release.bidirectional_start_layer
    trusted = {"trust_remote_code": trust_remote_code}
    device = _existing(device) if device is not None else default_device()
    if stated.static is not None:
        asked = {"pooling": pooling, "adapter": adapter, "prompt_template": prompt_template, "append_eos": append_eos}
        return _load_static(name, path, stated, device, max_seq_length, [key for key, value in asked.items() if value])
    with user_errors(f"model {name}", KeyError, ImportError):
        config = load_config(path, **trusted)
        tell_of_environment(name, config.model_type, bidirectional_start_layer)
        more = {"base_model": ours} if ours is not None else {}
        model, drawn = load_encoder_model(path, config=config, dtype=torch.float32, **trusted, **more)
        tokenizer = load_tokenizer_of(path, model.config, **trusted)
    readers = [model] if len(tokenizers_of(tokenizer)) == 1 else [part.encoder for part in contract_of(model).parts()]
    for one, reader in zip(tokenizers_of(tokenizer), readers, strict=True):
        _check_tokenizer(name, one, reader)
        if reader is not model:  # a bundle cuts each encoder's text by its own tokenizer
            one.model_max_length = length_limit(one, reader.config)
    with user_errors(f"model {name}", RuntimeError):
        if adapter is not None:
            load_adapter(model, adapter, trainable=False)
            merge_adapter(model)
        if bidirectional_start_layer is not None and contract_of(model).stated_pooling is not None:
            trained = model.config.to_dict().get("bidirectional_start_layer")
            if trained != bidirectional_start_layer:
                told = f"bidirectional_start_layer {bidirectional_start_layer}"
                raise ValueError(f"{told}: it was trained with {trained}; leave it out")
        elif bidirectional_start_layer is not None:
            make_bidirectional(model, bidirectional_start_layer)
        plain = tokenizer
        tokenizer = prepare_tokenizer(tokenizer, prompt_template, append_eos)
    model = model.eval().to(device)
    contract = contract_of(model, stated.above, drawn)
    known = pooling or stated.pooling or contract.stated_pooling or (release.pooling if release is not None else None)
    chosen = known or _guess_pooling(name, config)
    with user_errors(f"model {name}"):
        embed = contract.embed_as(chosen if contract.stated_pooling is None else pooling)
    possible = length_limit(tokenizer, model.config)
    if release is not None and release.max_seq_length is not None:
        stated.max_seq_length = release.max_seq_length
    limit = max_seq_length if max_seq_length is not None else stated.length(possible)
    check_length(name, limit, possible, shortest_limit(tokenizer, stated.prepare))
    return Loaded(
        name,
        model,
        tokenizer,
        embed,
        _described(chosen, stated.above),
        limit,
        possible,
        stated,
        guessed=not known,
        drawn=drawn,
        bidirectional_start_layer=bidirectional_start_layer,
        plain_tokenizer=plain,
    )


def _load_static(
    name: str, path: str, stated: Modules, device: torch.device, max_seq_length: int | None, asked: list[str]
) -> Loaded:
    """A table without a transformer; ``asked`` is what the user wants of one."""
    if asked:
        raise UserError(f"model {name}: is a static table, which takes no {', '.join(asked)}; leave it out")
    model = StaticTable.from_folder(path, stated.static or "").to(device)
    tokenizer = load_static_tokenizer(path, stated.static or "")
    _check_tokenizer(name, tokenizer, model)
    above = nn.Sequential(*stated.above)
    limit = stated.length(LONGEST) if max_seq_length is None else max_seq_length
    check_length(name, limit, LONGEST, shortest_limit(tokenizer, stated.prepare))

    def embed(**inputs: Tensor) -> Tensor:
        return above(model.embed(**inputs))

    return Loaded(name, model, tokenizer, embed, _described(POOLING, stated.above), limit, LONGEST, stated)


def _guess_pooling(name: str, config: Any) -> str:
    """Nothing is stated: a decoder's last token, the first of what SimCSE's scripts trained, else the mean. Told."""
    of_simcse = next((kind for kind in config.architectures or [] if kind in OF_TRAINING_SCRIPTS), None)
    guess = "last_token" if is_decoder(config) else RAW if of_simcse is not None else "mean"
    logger.warning(
        "model %s states no pooling: GUESSED %s%s (state another with pooling, --pooling: %s)",
        name,
        guess,
        f", as it is a {of_simcse}; supervised SimCSE: cacse-trainer import --head use" if of_simcse else "",
        ", ".join(CHOICES),
    )
    return guess


def _described(pooling: str, above: list[nn.Module]) -> str:
    """The pooling's name, with what the folder puts above it."""
    if not above or pooling == CLS_WITH_MLP:
        return pooling
    return CLS_WITH_MLP if pooling == "cls" else f"{pooling} + dense"


def default_device() -> torch.device:
    """A GPU, or what else torch computes on, where there is one; else the CPU."""
    kind = accelerator()
    return torch.device(kind, torch.accelerator.current_device_index()) if kind is not None else torch.device("cpu")


def _existing(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {device}: {str(error).splitlines()[0]}; give cpu, or leave it out") from error
    return found


def _check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Refuse a tokenizer without a vocabulary (transformers makes one up) or of another model."""
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


def _find_adapter(name: str | None, adapter: str | None) -> tuple[str, str | None, str | None]:
    """The model to load, the adapter to merge into it, and the base model of a trained checkpoint.

    A checkpoint of ours that holds an adapter is a model by itself; of any other adapter the base is what the user
    names, or what the adapter's own config does.
    """
    path = resolve_resource(name) if name is not None else None
    if path is not None and not Path(path).is_dir():
        check_folder(str(name), path)
        _check_hub(str(name), path)
    if path is not None and adapter is None:
        if find_file(path, "config.json") is not None or find_file(path, ADAPTER_CONFIG) is None:
            return path, None, None
        path, adapter = None, path
    if adapter is None:
        raise UserError("no model: give a folder or hub id, or an adapter that names its base model")
    adapter = resolve_resource(adapter)
    if Path(adapter).exists() and not (Path(adapter) / ADAPTER_CONFIG).is_file():
        raise UserError(f"adapter {adapter}: no {ADAPTER_CONFIG} in it")
    if is_sentence_model(adapter):
        return adapter, None, path
    if path is None:
        with user_errors(f"adapter {adapter}"):
            path = base_model_of(adapter)
        release = released(adapter)
        if path is None and release is not None:
            path = release.base
    if path is None:
        raise UserError(f"adapter {adapter}: names no base model, or is not there; give the base as model (--model)")
    return path, adapter, None


def is_sentence_model(path: str) -> bool:
    """Whether a sentence model is there; what its files say to sentence-transformers is then not needed."""
    return pools_by_itself((read_settings(path, "config.json", model_type=str | None) or {}).get("model_type"))


def states_pooling(name: str) -> bool:
    """Whether it is known how a model is read: its folder says so, or it is `released`, or a training's own checkpoint.

    Raises:
        UserError: it cannot be read.
    """
    with user_errors(f"model {name}", KeyError, RuntimeError):
        path = resolve_resource(name)
        return is_sentence_model(path) or read_modules(path).pooling is not None


def fingerprint(model: nn.Module, drawn: Collection[str] = ()) -> str:
    """A hash of the names, shapes and a sample of the values of all weights: two trained models never share it.

    Args:
        model: whose weights.
        drawn: names of weights that are left out, since loading draws them at random.
    """
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        if key in drawn:
            continue
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // SAMPLED_VALUES)].float().cpu().contiguous()
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def check_folder(name: str, path: str) -> None:
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
    raise UserError(f"model {name}: no config.json in it{hint}")


def _check_hub(name: str, path: str) -> None:
    """Ask for one file: without network each of the others would be waited for in turn, and taken for missing."""
    try:
        cached_file(path, "config.json")
    except OSError as error:
        if error.__cause__ is None:  # reached, and there is no such file: it may be an adapter
            return
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        if isinstance(error.__cause__, ValueError) or not cached_file(
            path, ADAPTER_CONFIG, local_files_only=True, **quiet
        ):
            raise UserError(f"model {name}: {one_line(error)}") from error


def check_length(name: str, asked: int, possible: int, shortest: int) -> None:
    """Refuse a length limit beyond what the model takes, or below the `shortest_limit`.

    Raises:
        UserError: with both numbers.
    """
    if asked < shortest:
        raise UserError(f"model {name}: {no_room(asked, shortest)}")
    if asked > possible:
        raise UserError(f"model {name}: max_seq_length {asked} is beyond the {possible} tokens that it takes")
