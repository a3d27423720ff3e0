"""Trained models to plain encoder folders that transformers and sentence-transformers load.

What is written is the model's own answer (`SentenceModel.exports`). Each folder is written under a temporary name,
loaded again as any encoder is, its vectors compared with the trained model's, scored, and only then renamed into place.

A head that stays at inference (supervised SimCSE) goes to two places: the encoder's own pooler, as in the released
models, and sentence-transformers' Dense module. A prompt and an EOS are part of the tokenizer, so nothing that loads
the folder needs to know of them. A weighted sum of encoders is written with standard modules where it is one at each
token; else, with tokenizers of their own or different poolings, it brings its own module, which sentence-transformers
runs with ``trust_remote_code=True`` only. A model that pools by itself (an average of layers) is read by
sentence-transformers once this package is imported. The card says what loads the folder.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cacse_trainer.encoding.embedder import Embedder, length_limit
from cacse_trainer.encoding.loading import load_encoder
from cacse_trainer.encoding.model_card import CardFacts, render_card, usage_of
from cacse_trainer.encoding.saving import PROBES, check_same, clean_tokenizer
from cacse_trainer.encoding.sentence_transformers import list_modules, list_own_pooling, write_modules, write_prompts
from cacse_trainer.evaluation.dev_sets import DevSet, as_dev_sets, scores_by_set
from cacse_trainer.export import ensemble_module
from cacse_trainer.files import writing_folder
from cacse_trainer.models.base import Export, contract_of
from cacse_trainer.models.pretrained import runs_its_own_code
from cacse_trainer.models.prompting import prompt_of

logger = logging.getLogger(__name__)

MODULE = Path(ensemble_module.__file__)
ONE_FILE = "1TB"  # the folder's own module reads one file of weights


def export(
    model: PreTrainedModel,
    tokenizer: Any,
    output_dir: str | Path,
    facts: CardFacts,
    dev_sets: Mapping[str, Any] | None = None,
    name: str | None = None,
    prompts: Mapping[str, str] | None = None,
) -> dict[str, dict[str, float]]:
    """Write what a trained model exports, each to a folder of its own under ``output_dir``, checked and scored.

    Args:
        model: what was trained; put into eval mode.
        tokenizer: its tokenizer, saved with its own length limit, or a `TokenizerBundle`.
        output_dir: parent folder; an older export of a name is replaced when the new one is whole.
        facts: for the cards, of the whole run.
        dev_sets: by name, on which a folder is scored for its card; see `as_dev_set`.
        name: of the folder, for a model that exports one.
        prompts: what belongs before queries and documents, see `search_prompts`.

    Returns:
        The scores ×100 by which the dev sets judge (Spearman, nDCG@10), by folder and set.

    Raises:
        UserError: no encoder folder gives this model's vectors.
        ExportError: the reloaded folder's vectors differ from the trained model's.
    """
    model.eval()
    found = [replace(one, name=name or one.name) for one in contract_of(model).exports(facts.title)]
    sets = as_dev_sets(dev_sets or {})
    sources = facts.sources or list(model.config.sources)
    facts = replace(facts, metrics={name: one.metric for name, one in sets.items()}, sources=sources)
    plain = [one.name for one in found if not (one.needs_package or one.own_module)]
    found = [replace(one, what=one.what + describe_needs(one, plain)) for one in found]
    return {one.name: _export(one, tokenizer, Path(output_dir), facts, sets, prompts or {}) for one in found}


def _export(
    encoder: Export,
    tokenizer: Any,
    output_dir: Path,
    facts: CardFacts,
    dev_sets: Mapping[str, DevSet],
    prompts: Mapping[str, str],
) -> dict[str, float]:
    """One of `export`'s folders; its scores."""
    limit = length_limit(tokenizer, encoder.model.config)
    remote = runs_its_own_code(encoder.model)
    shards: Any = {"max_shard_size": ONE_FILE} if encoder.own_module else {}
    with writing_folder(output_dir / encoder.name) as staged:
        encoder.model.save_pretrained(staged, **shards)
        clean_tokenizer(tokenizer).save_pretrained(staged)
        if encoder.own_module:
            shutil.copyfile(MODULE, staged / MODULE.name)
            kind = f"{MODULE.stem}.{ensemble_module.WeightedEncoders.__name__}"
            list_modules(staged, {"": kind}, limit, prompts)
        elif encoder.pooling is not None:
            own: Any = {"pooling": encoder.pooling, "hidden_size": encoder.model.config.hidden_size}
            write_modules(staged, **own, max_seq_length=limit, dense=encoder.dense, prompts=prompts)
        elif encoder.needs_package:
            list_own_pooling(staged, limit)
        if encoder.pooling is None and not encoder.own_module and prompts:
            write_prompts(staged, prompts)
        # code that came with the model already runs here
        loaded = load_encoder(str(staged), device=encoder.model.device, trust_remote_code=remote)
        searching: Any = {"query_prompt": loaded.stated.query_prompt, "document_prompt": loaded.stated.document_prompt}
        reloaded = Embedder(loaded.embed, loaded.tokenizer, limit, encoder.model.device, **searching)
        trained = replace(reloaded, embed=encoder.embed, tokenizer=tokenizer).vectors(PROBES)
        difference = check_same(trained, reloaded.vectors(PROBES), output_dir / encoder.name, encoder.merged)
        scores = scores_by_set(reloaded, dev_sets)
        card = replace(
            facts,
            title=encoder.title,
            what=encoder.what + describe_prompt(tokenizer) + describe_sides(prompts),
            pooling=loaded.pooling,  # which tells of a head, too
            usage=usage_of(encoder, remote),
            scores=scores,
        )
        (staged / "README.md").write_text(render_card(card), encoding="utf-8")
    logger.info("exported %s (largest difference from the trained vectors %.1e)", output_dir / encoder.name, difference)
    return scores


def describe_needs(encoder: Export, plain: Sequence[str]) -> str:
    """What the card says of a folder that does not load by itself, and which ones beside it do; else nothing."""
    if not (encoder.needs_package or encoder.own_module):
        return ""
    needs = f"`{type(encoder.model).__module__.partition('.')[0]}`, imported before it"
    if encoder.own_module:
        needs = "`trust_remote_code=True`, which runs the module in this folder, or `cacse_trainer.SentenceEncoder`"
    names = " and ".join(f"`{name}`" for name in plain)
    without = (
        f"Single encoders, which need nothing: {names}, beside it." if plain else "A distilled student needs nothing."
    )
    return f" **To be loaded it needs {needs}.** {without}"


def describe_sides(prompts: Mapping[str, str]) -> str:
    """What the card says of the prompts before queries and documents; else nothing."""
    sides = (f'`{text}` before what is a {name} (`prompt_name="{name}"`)' for name, text in prompts.items() if text)
    return f" Trained to be given {' and '.join(sides)}." if prompts else ""


def describe_prompt(tokenizer: Any) -> str:
    """What the card says of a tokenizer that carries a prompt or an EOS; else nothing."""
    template, eos = prompt_of(tokenizer)
    around = f"the prompt `{template}` around every text" if template is not None else ""
    closing = "an EOS token at its end" if eos else ""
    put = " and ".join(filter(None, (around, closing)))
    return f" Its tokenizer puts {put}: give it the texts as they are." if put else ""
