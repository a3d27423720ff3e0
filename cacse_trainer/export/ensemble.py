"""A weighted sum of encoders to a folder.

A sum at each token with one tokenizer is written with standard sentence-transformers modules (it loads after
``import cacse_trainer``). Anything more, tokenizers of their own or different poolings, brings its own module, which
sentence-transformers runs with ``trust_remote_code=True`` only; the card says so.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer

from cacse_trainer.encoding.embedder import Embedder, length_limit
from cacse_trainer.encoding.model_card import CardFacts
from cacse_trainer.export import ensemble_module
from cacse_trainer.export.encoders import Encoder, clean_tokenizer, export_encoder, prove
from cacse_trainer.files import write_json, writing_folder
from cacse_trainer.models.modeling_ensemble import EnsembleModel
from cacse_trainer.models.tokenizer_bundle import TokenizerBundle

MODULE = Path(ensemble_module.__file__)
MAX_SHARD_SIZE = "1TB"  # one file: the folder's own module reads one


def export_ensemble(
    model: EnsembleModel,
    tokenizer: Any,
    output_dir: str | Path,
    facts: CardFacts,
    dev_sets: Mapping[str, Dataset] | None = None,
    name: str = "ensemble",
) -> dict[str, dict[str, float]]:
    """Export an ensemble to ``output_dir/name``; returns its scores by name.

    Args:
        model: the ensemble.
        tokenizer: the encoders' common one, or a `TokenizerBundle`.
        output_dir, facts, dev_sets: as for `export_encoder`.

    Raises:
        ExportError: the reloaded folder's vectors differ by more than 1e-5.
    """
    model.eval()
    config, folder = model.config, Path(output_dir)
    parts = " + ".join(
        f"{weight:g}·{pooling}(encoder {i})"
        for i, (weight, pooling) in enumerate(zip(config.weights, config.poolings, strict=True))
    )
    facts = replace(facts, what=facts.what or f"An ensemble: the vector is {parts}.", ensemble=True)
    if config.sums_tokens:
        encoder = Encoder(name, model, model.embed, facts, pooling=config.poolings[0])
        return {name: export_encoder(encoder, tokenizer, folder, dev_sets)}
    facts = replace(facts, own_module=True)
    encoder = Encoder(name, model, model.embed, facts, pooling=", ".join(config.poolings))
    with writing_folder(folder / name) as staged:
        limit = length_limit(tokenizer, config)
        model.save_pretrained(staged, max_shard_size=MAX_SHARD_SIZE)
        clean = (
            TokenizerBundle([clean_tokenizer(one) for one in tokenizer.tokenizers]) if config.own_tokenizers else None
        )
        (clean or clean_tokenizer(tokenizer)).save_pretrained(staged)
        shutil.copyfile(MODULE, staged / MODULE.name)
        kind = f"{MODULE.stem}.{ensemble_module.WeightedEncoders.__name__}"
        write_json(staged / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
        write_json(staged / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False})
        write_json(staged / "config_sentence_transformers.json", {"similarity_fn_name": "cosine", "prompts": {}})
        reloaded = AutoModel.from_pretrained(staged, dtype=torch.float32).eval().to(model.device)
        again: Any = (
            TokenizerBundle.from_pretrained(staged, len(model.encoders))
            if config.own_tokenizers
            else AutoTokenizer.from_pretrained(staged)
        )
        embedder = Embedder(reloaded.embed, again, limit, model.device)
        return {name: prove(encoder, staged, tokenizer, embedder, dev_sets)}
