"""``cacse-trainer export-static``: an encoder → a table of token vectors."""

import sys
from collections.abc import Sequence
from pathlib import Path

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.encoders import add_running_flags, open_encoder
from cacse_trainer.cli.output import tell
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.export.static import DIMS, SIF, export_static
from cacse_trainer.settings.command_line import count
from cacse_trainer.settings.resources import resolve_resource

EPILOG = """examples:
  cacse-trainer export-static --model runs/cacse/export/ensemble --output_dir static
  cacse-trainer export-static --model A --output_dir static --text sentences.txt --words 5000 --dims 384
  cacse-trainer search --model static --corpus sentences.txt --query "a man plays music"

The folder loads with SentenceEncoder and every command here, with sentence-transformers and with model2vec. It knows
no order of words: measure what that costs on your own task before you use it.
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser("export-static", "Make a static table: a vector a token, and no transformer.", EPILOG)
    add = made.add_argument
    add("--model", help="folder, hub id or package:NAME/FOLDER; with --adapter: its base, by default")
    add("--output_dir", required=True, type=Path, help="becomes the folder of the table")
    add("--dims", type=count, default=DIMS, help=f"of its vectors, by principal components; default {DIMS}")
    weights = "a file of texts like those to be encoded: tokens are weighted by it. Default: by rank in the vocabulary"
    add("--text", help=weights)
    add("--text_column", help="of a text with several columns")
    add("--words", type=count, default=0, help="frequent words of the text that get a vector of their own; default 0")
    add("--sif", type=float, default=SIF, help=f"smaller: frequent tokens weigh less; default {SIF:g}")
    add_running_flags(made)
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    settings = parser().parse_args(arguments)
    text = Corpus(resolve_resource(settings.text), settings.text_column) if settings.text is not None else None
    found = export_static(
        open_encoder(settings, settings.model, settings.device),
        settings.output_dir,
        dims=settings.dims,
        text=text,
        words=settings.words,
        sif=settings.sif,
        show_progress_bar=not settings.disable_tqdm,
    )
    tell(
        f"{settings.output_dir}: {found['vocabulary']} tokens ({found['words']} of them words of the text), "
        f"{found['dims']} dimensions ({found['explained_variance']:.1%} of the variance), {found['megabytes']:.1f} MB",
        {"output_dir": str(settings.output_dir), **found},
    )


if __name__ == "__main__":
    sys.exit(run(main))
