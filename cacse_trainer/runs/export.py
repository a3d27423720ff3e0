"""A training checkpoint, or encoders to be summed → exported folders; their cards say what the run's report says."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from cacse_trainer.encoding.model_card import RECORDED, CardFacts
from cacse_trainer.encoding.sentence_transformers import read_prompts
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.evaluation.dev_sets import DevSet
from cacse_trainer.export.encoders import export
from cacse_trainer.files import check_entries, read_object
from cacse_trainer.models.pretrained import load_encoder_model
from cacse_trainer.runs.build import load_encoders, load_tokenizer
from cacse_trainer.runs.folder import REPORT
from cacse_trainer.runs.preparation import load_dev_sets
from cacse_trainer.settings.distillation import EncoderChoice
from cacse_trainer.settings.resources import public_name

logger = logging.getLogger(__name__)


def export_checkpoint(
    checkpoint: Path,
    output_dir: Path,
    dev_sets: dict[str, DevSet],
    license: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, dict[str, float]]:
    """Write what a checkpoint's model exports into ``output_dir``.

    Args:
        checkpoint: folder of a checkpoint or of a finished run; of an adapter's checkpoint with the name of its base.
        output_dir: the exported folders are written there.
        dev_sets: what they are scored on, for their cards; see `recorded_dev_sets`.
        license: for the cards.
        trust_remote_code: run the model code that comes with an adapter's base.

    Returns:
        The names of the folders, and their scores.

    Raises:
        UserError: there is no checkpoint, it or its run's report cannot be read, or ``output_dir`` not be written.
    """
    if not (checkpoint / "config.json").is_file():
        raise UserError(f"checkpoint {checkpoint}: no such folder, or no config.json in it")
    with user_errors(f"checkpoint {checkpoint}"):
        model, _ = load_encoder_model(checkpoint, dtype=torch.float32, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(str(checkpoint), trust_remote_code)
    card = _recorded(checkpoint).get("card") or {}
    recorded = {name: card[name] for name in RECORDED if name in card}
    facts = CardFacts(title=checkpoint.resolve().name, what="", license=license, **recorded)
    return _export(model, tokenizer, output_dir, facts, dev_sets, read_prompts(str(checkpoint)))


def export_sum(
    choices: Sequence[EncoderChoice], output_dir: Path, dev_sets: dict[str, DevSet], license: str | None = None
) -> dict[str, dict[str, float]]:
    """Write the weighted sum of encoders as one ensemble; see `export_checkpoint`."""
    model, tokenizer = load_encoders(choices)
    bases = [public_name(choice.path) for choice in choices]
    facts = CardFacts(title=output_dir.resolve().name, what="", license=license, base_models=bases)
    return _export(model, tokenizer, output_dir, facts, dev_sets)


def _export(
    model: PreTrainedModel,
    tokenizer: Any,
    output_dir: Path,
    facts: CardFacts,
    dev_sets: dict[str, DevSet],
    prompts: Mapping[str, str] | None = None,
) -> dict[str, dict[str, float]]:
    with user_errors(f"output_dir {output_dir} cannot be written"):
        output_dir.mkdir(parents=True, exist_ok=True)
    return export(model, tokenizer, output_dir, facts, dev_sets, prompts=prompts)


def recorded_dev_sets(checkpoint: Path) -> dict[str, DevSet]:
    """The dev sets of a checkpoint's run; none, with a warning, where they have moved.

    Raises:
        UserError: the run's report cannot be read.
    """
    dev_files = (_recorded(checkpoint).get("settings") or {}).get("dev_file")
    try:
        return load_dev_sets(dev_files) if dev_files else {}
    except UserError as error:
        logger.warning("the run's dev sets cannot be scored again (%s); name them with --dev_file", error)
        return {}


def _recorded(checkpoint: Path) -> dict[str, Any]:
    """The report of a checkpoint's run, in its folder or beside it; empty where there is none."""
    for folder in (checkpoint, checkpoint.resolve().parent):
        path = folder / REPORT
        if path.is_file():
            mend = "move it away to export without what it says of the run"
            report = read_object(path, mend, card=dict | None, settings=dict | None)
            card, settings = report.get("card") or {}, report.get("settings") or {}
            kinds = {kind.name: kind.type for kind in fields(CardFacts) if kind.name in card}
            check_entries(card, f"{path}: card", mend, **kinds)
            check_entries(settings, f"{path}: settings", mend, dev_file=list[str] | None)
            return report
    return {}
