"""``cacse-trainer export``: a training checkpoint → plain encoder folders."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoModel

import cacse_trainer.models  # noqa: F401 - registers the model classes with AutoModel
from cacse_trainer.cli.build import dev_scores, export_model, load_tokenizer
from cacse_trainer.cli.common import load_dev_sets, run, user_errors
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.sts import score_pairs
from cacse_trainer.export.model_card import CardFacts


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    parser = argparse.ArgumentParser(
        prog="cacse-trainer export", description="Turn a training checkpoint into plain encoder folders."
    )
    parser.add_argument("--checkpoint", required=True, help="folder of a checkpoint, or of a finished run")
    parser.add_argument("--output_dir", required=True, help="where tower_a/, tower_b/, ensemble/ are written")
    parser.add_argument(
        "--dev_file",
        nargs="+",
        metavar="NAME=PATH",
        help="dev sets that the exported folders are scored on, for their cards",
    )
    settings = parser.parse_args(arguments)
    checkpoint = Path(settings.checkpoint)
    if not (checkpoint / "config.json").is_file():
        raise UserError(f"checkpoint {checkpoint}: no such folder, or no config.json in it")
    dev_sets = load_dev_sets(settings.dev_file) if settings.dev_file else {}
    with user_errors(f"checkpoint {checkpoint}"):
        model = AutoModel.from_pretrained(checkpoint)
    facts = CardFacts(title=checkpoint.resolve().name, what="")
    scores = export_model(
        model, load_tokenizer(str(checkpoint)), Path(settings.output_dir), facts, dev_scores(dev_sets, score_pairs)
    )
    for name, measured in scores.items():
        print(Path(settings.output_dir) / name, *(f"{dev} {score:.2f}" for dev, score in measured.items()))


if __name__ == "__main__":
    sys.exit(run(main))
