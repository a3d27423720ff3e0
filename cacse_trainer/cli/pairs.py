"""``cacse-trainer pairs``: positive pairs by round-trip translation."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.output import tell
from cacse_trainer.data import load_sentences
from cacse_trainer.data.round_trip import write_pairs
from cacse_trainer.errors import UserError
from cacse_trainer.models.translation import Translator
from cacse_trainer.settings.command_line import count
from cacse_trainer.settings.resources import resolve_resource

PAIRS = "pairs.csv"

EPILOG = """examples:
  cacse-trainer pairs --input wiki1m.txt --output_dir pairs_fr \\
      --there Helsinki-NLP/opus-mt-en-fr --back Helsinki-NLP/opus-mt-fr-en
  cacse-trainer train --config simcse/unsup_bert_base --train_file pairs_fr/pairs.csv

A second call with the same settings goes on where the first one stopped.
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser(
        "pairs", "Translate each sentence into another language and back: a file of (anchor, positive) rows.", EPILOG
    )
    add = made.add_argument
    add("--input", required=True, help="text, one sentence a line (or any source that train_file takes)")
    add("--there", required=True, help="translation model into the other language: folder or hub id")
    add("--back", required=True, help="translation model back")
    add("--output_dir", required=True, help=f"{PAIRS} is written there")
    add("--batch_size", type=count, default=32)
    add("--num_beams", type=count, default=1, help="of beam search; 1 is greedy")
    add("--max_length", type=count, default=128, help="in tokens")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--overwrite", action="store_true", help="translate anew where the file is there already")
    add("--disable_tqdm", action="store_true", help="no progress bar")
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    settings = parser().parse_args(arguments)
    output = Path(settings.output_dir) / PAIRS
    if output.is_file() and not settings.overwrite:
        raise UserError(f"{output} is there already; choose another --output_dir, or --overwrite")
    rows = load_sentences(resolve_resource(settings.input))
    if "text" not in rows.column_names:
        raise UserError(f"{settings.input} has the columns {', '.join(rows.column_names)}; give one sentence a line")
    common = {"batch_size": settings.batch_size, "num_beams": settings.num_beams, "max_length": settings.max_length}
    there, back = (
        Translator(resolve_resource(path), settings.device, **common) for path in (settings.there, settings.back)
    )
    counts = write_pairs(
        rows["text"],
        there,
        back,
        output,
        settings={"there": settings.there, "back": settings.back, **common},
        show_progress_bar=not settings.disable_tqdm,
    )
    unchanged, empty = counts["unchanged"], counts["empty"]
    tell(
        f"{output}: {counts['rows']} pairs ({unchanged} came back unchanged, {empty} came back empty and were dropped)",
        {"output": str(output), **counts},
    )


if __name__ == "__main__":
    sys.exit(run(main))
