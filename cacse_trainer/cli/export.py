"""``cacse-trainer export``: a training checkpoint → plain encoder folders."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModel, PreTrainedModel

import cacse_trainer.models  # noqa: F401 - registers the model classes with AutoModel
from cacse_trainer.arguments import EncoderChoice
from cacse_trainer.cli.build import dev_scores, export_model, load_encoders, load_tokenizer, public_name
from cacse_trainer.cli.common import OneLineParser, load_dev_sets, run, user_errors
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.sts import score_pairs
from cacse_trainer.export.model_card import CardFacts


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    parser = OneLineParser(
        prog="cacse-trainer export",
        description="Turn a training checkpoint, or a weighted list of encoders, into folders that load.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="folder of a checkpoint, or of a finished run")
    source.add_argument(
        "--encoders",
        nargs="+",
        type=EncoderChoice,
        metavar="path=…,pooling=…,weight=…",
        help="instead: encoders whose weighted sum is written as one ensemble; tokenizers may differ",
    )
    parser.add_argument("--output_dir", required=True, help="where tower_a/, tower_b/, ensemble/ are written")
    parser.add_argument(
        "--dev_file",
        nargs="+",
        metavar="NAME=PATH",
        help="dev sets that the exported folders are scored on, for their cards",
    )
    settings = parser.parse_args(arguments)
    dev_sets = load_dev_sets(settings.dev_file) if settings.dev_file else {}
    if settings.encoders:
        model: PreTrainedModel
        model, tokenizer = load_encoders(settings.encoders)
        facts = CardFacts(
            title=Path(settings.output_dir).resolve().name,
            what="",
            base_models=[public_name(choice.path) for choice in settings.encoders],
        )
    else:
        model, tokenizer = load_checkpoint(Path(settings.checkpoint))
        facts = CardFacts(title=Path(settings.checkpoint).resolve().name, what="")
    scores = export_model(model, tokenizer, Path(settings.output_dir), facts, dev_scores(dev_sets, score_pairs))
    for name, measured in scores.items():
        print(Path(settings.output_dir) / name, *(f"{dev} {score:.2f}" for dev, score in measured.items()))


def load_checkpoint(folder: Path) -> tuple[PreTrainedModel, Any]:
    """A checkpoint's model and tokenizer.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"checkpoint {folder}: no such folder, or no config.json in it")
    with user_errors(f"checkpoint {folder}"):
        return AutoModel.from_pretrained(folder), load_tokenizer(str(folder))


if __name__ == "__main__":
    sys.exit(run(main))
