"""Trained models to plain encoder folders that transformers and sentence-transformers load.

What is written is the model's own answer (`SentenceModel.exports`). Each folder is written under a temporary name,
loaded again as any encoder is, its vectors compared with the trained model's, scored, and only then renamed into place.

A head that stays at inference (supervised SimCSE) goes to two places: the encoder's own pooler, as in the released
models, and sentence-transformers' Dense module. A prompt and an EOS are part of the tokenizer, so nothing that loads
the folder needs to know of them. A weighted sum of encoders is written with standard modules where it is one at each
token; else, with tokenizers of their own or different poolings, it brings its own module, which sentence-transformers
runs with ``trust_remote_code=True`` only. The card says what loads the folder.
"""

import copy
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cacse_trainer.encoding.embedder import Embed, embed_sentences, length_limit
from cacse_trainer.encoding.loading import load_encoder
from cacse_trainer.encoding.model_card import CardFacts, render_card
from cacse_trainer.encoding.sentence_transformers import write_json, write_modules
from cacse_trainer.errors import RunError
from cacse_trainer.export import ensemble_module
from cacse_trainer.models.base import Export, contract_of
from cacse_trainer.models.prompting import prompt_of
from cacse_trainer.models.tokenizer_bundle import tokenizers_of

logger = logging.getLogger(__name__)

MODULE = Path(ensemble_module.__file__)
ONE_FILE = "1TB"  # the folder's own module reads one file of weights
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

Score = Callable[[Embed, PreTrainedTokenizerBase, int], dict[str, float]]
"""``score(embed, tokenizer, max_seq_length) → Spearman ×100 by dev set``; how a folder is scored for its card."""


class ExportError(RunError):
    """The exported folder does not give the trained model's vectors."""


def clean_tokenizer(tokenizer: Any) -> Any:
    """A copy without the truncation and padding that training calls leave in a fast tokenizer's saved file."""
    tokenizer = copy.deepcopy(tokenizer)
    for one in tokenizers_of(tokenizer):
        if one.is_fast:
            one.backend_tokenizer.no_truncation()
            one.backend_tokenizer.no_padding()
    return tokenizer


def export(
    model: PreTrainedModel,
    tokenizer: Any,
    output_dir: str | Path,
    facts: CardFacts,
    score: Score | None = None,
    name: str | None = None,
) -> dict[str, dict[str, float]]:
    """Write what a trained model exports, each to a folder of its own under ``output_dir``, checked and scored.

    Args:
        model: what was trained; put into eval mode.
        tokenizer: its tokenizer, saved with its own length limit, or a `TokenizerBundle`.
        output_dir: parent folder; an older export of a name is replaced when the new one is whole.
        facts: for the cards, of the whole run.
        score: how a folder is scored for its card.
        name: of the folder, for a model that exports one.

    Returns:
        The scores, ×100 by folder and dev set.

    Raises:
        UserError: no encoder folder gives this model's vectors.
        ExportError: the reloaded folder's vectors differ from the trained model's.
    """
    model.eval()
    found = contract_of(model).exports(facts.title)
    return {
        name or one.name: _export(replace(one, name=name or one.name), tokenizer, Path(output_dir), facts, score)
        for one in found
    }


def _export(
    encoder: Export, tokenizer: Any, output_dir: Path, facts: CardFacts, score: Score | None
) -> dict[str, float]:
    """One of `export`'s folders; its scores."""
    if encoder.pooling == "weighted_mean" and tokenizer.padding_side != "right":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.padding_side = "right"  # sentence-transformers counts positions from the row's first column
    staged = empty_stage(encoder.name, output_dir)
    limit = length_limit(tokenizer, encoder.model.config)
    shards: Any = {"max_shard_size": ONE_FILE} if encoder.own_module else {}
    encoder.model.save_pretrained(staged, **shards)
    clean_tokenizer(tokenizer).save_pretrained(staged)
    if encoder.own_module:
        write_own_module(staged, limit)
    elif encoder.pooling is not None:
        width = encoder.model.config.hidden_size
        write_modules(staged, pooling=encoder.pooling, hidden_size=width, max_seq_length=limit, dense=encoder.dense)
    remote = is_remote(encoder.model)  # its code already runs here
    reloaded = load_encoder(str(staged), device=encoder.model.device, trust_remote_code=remote)
    facts = replace(
        facts,
        title=encoder.title,
        what=encoder.what + describe_prompt(tokenizer),
        pooling=encoder.pooling or reloaded.pooling,
        ensemble=encoder.needs_package,
        own_module=encoder.own_module,
        own_class="" if encoder.pooling is not None else type(encoder.model).__module__,
        remote_code=remote,
    )
    return place(encoder, facts, staged, tokenizer, reloaded.embed, reloaded.tokenizer, limit, score)


def describe_prompt(tokenizer: Any) -> str:
    """What the card says of a tokenizer that carries a prompt or an EOS; else nothing."""
    template, eos = prompt_of(tokenizer)
    around = f"the prompt `{template}` around every text" if template is not None else ""
    closing = "an EOS token at its end" if eos else ""
    put = " and ".join(filter(None, (around, closing)))
    return f" Its tokenizer puts {put}: give it the texts as they are." if put else ""


def write_own_module(folder: Path, max_seq_length: int) -> None:
    """The files that make sentence-transformers run the folder's own module, `ensemble_module`."""
    shutil.copyfile(MODULE, folder / MODULE.name)
    kind = f"{MODULE.stem}.{ensemble_module.WeightedEncoders.__name__}"
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine", "prompts": {}})


def is_remote(model: PreTrainedModel) -> bool:
    """Whether the model's class came with its checkpoint."""
    return type(model).__module__.startswith("transformers_modules.")


def empty_stage(name: str, output_dir: Path) -> Path:
    """The temporary folder that an export of this name is written to."""
    staged = output_dir / f".{name}.partial"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    return staged


def place(
    encoder: Export,
    facts: CardFacts,
    staged: Path,
    tokenizer: Any,
    reloaded: Embed,
    reloaded_tokenizer: Any,
    limit: int,
    score: Score | None,
) -> dict[str, float]:
    """Compare a written folder with the trained model, score it, write its card, rename it; returns the scores.

    Args:
        encoder: what was written, with the trained model's ``embed``.
        facts: for its card; the scores are filled in.
        staged: where.
        tokenizer: the trained model's.
        reloaded, reloaded_tokenizer: ``embed`` and tokenizer of the written folder.
        limit: length limit in tokens.
        score: how the folder is scored for its card.

    Raises:
        ExportError: the reloaded folder's vectors differ by more than 1e-5.
    """
    final = staged.with_name(encoder.name)
    device = encoder.model.device
    trained = embed_sentences(encoder.embed, tokenizer, PROBES, max_seq_length=limit, device=device)
    exported = embed_sentences(reloaded, reloaded_tokenizer, PROBES, max_seq_length=limit, device=device)
    difference = float(np.abs(trained - exported).max())
    allowed = MERGED_TOLERANCE * max(1.0, float(np.abs(trained).max())) if encoder.merged else TOLERANCE
    if not difference <= allowed:
        shutil.rmtree(staged, ignore_errors=True)
        raise ExportError(
            f"{final}: the reloaded vectors differ from the trained ones by {difference:.2e} > {allowed:.0e}"
        )
    scores = score(reloaded, reloaded_tokenizer, limit) if score is not None else {}
    (staged / "README.md").write_text(render_card(replace(facts, scores=scores)), encoding="utf-8")
    replace_folder(staged, final)
    logger.info("exported %s (largest difference from the trained vectors %.1e)", final, difference)
    return scores


def replace_folder(staged: Path, final: Path) -> None:
    """Rename ``staged`` to ``final``; an older ``final`` is only removed once the new one is in its place."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(staged, final)
    shutil.rmtree(old, ignore_errors=True)
