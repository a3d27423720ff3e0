"""A loaded encoder to a plain sentence-transformers folder, and the proof that a written folder gives its vectors."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.encoding.lineage import known_of
from cacse_trainer.encoding.loading import Loaded, load_encoder
from cacse_trainer.encoding.model_card import LOCAL_PATH, PLAIN_USAGE, CardFacts, render_card, usage_of
from cacse_trainer.encoding.sentence_transformers import (
    POOLING_FLAGS,
    Normalize,
    list_modules,
    write_layers,
    write_modules,
)
from cacse_trainer.errors import RunError, UserError, user_errors
from cacse_trainer.files import writing_folder
from cacse_trainer.models.base import CLS_WITH_MLP, Export, contract_of
from cacse_trainer.models.modeling_static import OURS, TOKENIZER, WEIGHTS
from cacse_trainer.models.pretrained import STATIC, runs_its_own_code
from cacse_trainer.models.tokenizer_bundle import tokenizers_of
from cacse_trainer.settings.resources import public_name

if TYPE_CHECKING:
    from cacse_trainer.encoding.encoder import SentenceEncoder

TOLERANCE = 1e-5
MERGED_TOLERANCE = 1e-4  # of the largest value, if that is above 1: adapter and weights are rounded together
PROBES = [
    "A man is playing a guitar.",
    "The committee postponed its decision until the end of the quarter.",
    "Rain!",
    "",
    "Although the trains were late again, nobody on the platform complained, because the evening was warm and the "
    "musicians under the clock had started another song.",
]


class ExportError(RunError):
    """The written folder does not give the vectors of what was to be written."""


def clean_tokenizer(tokenizer: Any) -> Any:
    """A copy without the truncation and padding that calls leave in a fast tokenizer's saved file; it pads as we do."""
    tokenizer = copy.deepcopy(tokenizer)
    for one in tokenizers_of(tokenizer):
        if one.padding_side != "right":
            one.padding_side = one.init_kwargs["padding_side"] = "right"
        if one.is_fast:
            one.backend_tokenizer.no_truncation()
            one.backend_tokenizer.no_padding()
    return tokenizer


def check_same(expected: np.ndarray, found: np.ndarray, folder: Path, merged: bool = False) -> float:
    """The largest difference of a written folder's vectors of the `PROBES` from the expected ones, (n, dim) each.

    Raises:
        ExportError: it is more than rounding, of a ``merged`` adapter or of none.
    """
    difference = float(np.abs(expected - found).max())
    allowed = MERGED_TOLERANCE * max(1.0, float(np.abs(expected).max())) if merged else TOLERANCE
    if not difference <= allowed:
        raise ExportError(f"{folder}: the reloaded vectors differ from the model's by {difference:.2e} > {allowed:.0e}")
    return difference


def save_encoder(encoder: "SentenceEncoder", folder: Path) -> None:
    """Write a loaded encoder as a plain sentence-transformers folder, loaded again and compared before it is there.

    Raises:
        UserError: see `SentenceEncoder.save_pretrained`.
        ExportError: the reloaded folder's vectors are others.
    """
    if encoder.compute != "float32":
        raise UserError(f"model {encoder.name}: was loaded in {encoder.compute}; load it in float32 to save it")
    written = written_form(encoder)
    expected = encoder.vectors(PROBES)
    remote = written is not None and runs_its_own_code(written.model)
    with user_errors(f"folder {folder} cannot be written"), writing_folder(folder) as staged:
        if written is None:
            _write_static(encoder, staged)
        else:
            _write(encoder, written, staged)
        found = load_encoder(str(staged), device=encoder.device, trust_remote_code=remote)
        check_same(expected, _embedder(found).vectors(PROBES), folder, written is not None and written.merged)
        card = CardFacts(
            title=folder.resolve().name,
            what=f"{public_name(encoder.name)} as it was loaded.",
            pooling=found.pooling,
            base_models=[public_name(encoder.name)],
            **known_of([encoder.name]),
            usage=usage_of(written, remote) if written is not None else PLAIN_USAGE.format(path=LOCAL_PATH),
        )
        (staged / "README.md").write_text(render_card(card), encoding="utf-8")


def written_form(encoder: "SentenceEncoder") -> Export | None:
    """What AutoModel shall load, the pooling, and the head above it that is the model's; None: a static table.

    Raises:
        UserError: sentence-transformers has no form for it.
    """
    model = encoder.model
    if encoder.stated.static is not None:
        return None
    contract = contract_of(model)
    if contract.stated_pooling is not None:
        whole: Export = contract.exports(Path(encoder.name).name)[-1]  # of several towers their sum
        if encoder.pooling != contract.stated_pooling:
            whole = replace(whole, pooling=encoder.pooling, dense=None)
        if whole.own_module or whole.pooling not in POOLING_FLAGS:
            raise UserError(
                f"model {encoder.name}: sentence-transformers' own modules cannot express a {type(model).__name__} of "
                "this kind; copy its folder, or write one with cacse-trainer export"
            )
        return whole
    if encoder.bidirectional_start_layer is not None:
        raise UserError(
            f"model {encoder.name}: layers that see both directions are no part of a plain model; train it "
            "(bidirectional_start_layer) and export that"
        )
    pooling, dense = encoder.pooling.removesuffix(" + dense"), None
    if pooling == CLS_WITH_MLP:
        pooling = "cls"
        dense = None if encoder.layers_above else model.pooler.dense
    if pooling not in POOLING_FLAGS:
        raise UserError(
            f"model {encoder.name}: pooling {pooling} has no form that sentence-transformers loads; load it with one "
            f"of {', '.join(POOLING_FLAGS)} to save it"
        )
    return Export("encoder", encoder.name, "", model, encoder.embedder.embed, pooling, dense=dense)


def _write(encoder: "SentenceEncoder", written: Export, staged: Path) -> None:
    written.model.save_pretrained(staged)
    clean_tokenizer(encoder.tokenizer).save_pretrained(staged)
    write_modules(
        staged,
        pooling=str(written.pooling),
        hidden_size=written.model.config.hidden_size,
        max_seq_length=encoder.max_seq_length,
        dense=written.dense,
        layers=_layers(encoder),
        **_stated(encoder),
    )


def _write_static(encoder: "SentenceEncoder", staged: Path) -> None:
    save_file({OURS: encoder.model.weight.detach().cpu().contiguous()}, staged / WEIGHTS)
    clean_tokenizer(encoder.tokenizer).backend_tokenizer.save(str(staged / TOKENIZER))
    modules = {".": STATIC}
    write_layers(staged, modules, _layers(encoder))
    list_modules(staged, modules, encoder.max_seq_length, **_stated(encoder))


def _layers(encoder: "SentenceEncoder") -> list[nn.Module]:
    """What is above pooling and head: the folder's own layers, the first dimensions alone, length 1."""
    layers = list(encoder.layers_above)
    if encoder.truncate_dim is not None:  # no file of the library's says so: a layer that keeps them does
        width = encoder.embedder.vectors(["a"]).shape[1]
        kept = nn.Linear(width, min(width, encoder.truncate_dim), bias=False)
        kept.weight.data = torch.eye(*kept.weight.shape)
        layers.append(nn.Sequential(kept, nn.Identity()))
    return [*layers, Normalize()] if encoder.normalizes else layers


def _stated(encoder: "SentenceEncoder") -> dict[str, Any]:
    """The prompts, and what else is done to a text."""
    stated = encoder.stated
    return {"prompts": stated.prompts, "prompt": stated.prompt, "lower_case": stated.lower_case}


def _embedder(loaded: Loaded) -> Embedder:
    device = loaded.model.device
    return Embedder(loaded.embed, loaded.tokenizer, loaded.max_seq_length, device, prepare=loaded.stated.prepare)
