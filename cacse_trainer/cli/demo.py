"""``cacse-trainer demo``: try an encoder, or two side by side, in the browser."""

import sys
from collections.abc import Sequence
from pathlib import Path

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.encoders import add_running_flags, open_encoder
from cacse_trainer.cli.output import tell
from cacse_trainer.demo.page import Demo, serve
from cacse_trainer.demo.serving import load_gradio
from cacse_trainer.errors import UserError
from cacse_trainer.settings.resources import public_name, resolve_resource

EPILOG = """examples:
  cacse-trainer demo --model runs/cacse/export/ensemble
  cacse-trainer demo --model runs/cacse/export/tower_a --corpus sentences.txt --port 8000
  cacse-trainer demo --model before --model after --corpus docs.csv --text_column body     (side by side)

Needs pip install 'cacse-trainer[demo]'. Nothing leaves the machine; --host 0.0.0.0 lets others of your network in.
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser(
        "demo", "A page in the browser: similarity, search, two models side by side, an interactive map.", EPILOG
    )
    add = made.add_argument
    shown = "folder, hub id or package:NAME/FOLDER; a second one is shown beside"
    add("--model", action="append", required=True, help=shown)
    searched = "txt (one sentence a line), csv, tsv, jsonl or parquet file to search and map; the page takes one, too"
    add("--corpus", help=searched)
    add("--text_column", help="of a corpus with several columns")
    add("--host", default="127.0.0.1", help="address to listen at; default 127.0.0.1: this machine only")
    add("--port", type=int, default=7860, help="default 7860; 0: a free one")
    add_running_flags(made)
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    settings = parser().parse_args(arguments)
    if len(settings.model) > 2:
        raise UserError(f"demo: shows one model or two side by side, not {len(settings.model)}")
    load_gradio()  # before the models: what is missing is said at once
    names = [shown_name(model) for model in settings.model]
    if len(set(names)) < len(names):
        names = [f"{name} ({letter})" for name, letter in zip(names, "AB", strict=True)]
    encoders = {
        name: open_encoder(settings, model, settings.device) for name, model in zip(names, settings.model, strict=True)
    }
    corpus = resolve_resource(settings.corpus) if settings.corpus is not None else None
    demo = Demo(encoders, corpus, settings.text_column, show_progress_bar=not settings.disable_tqdm)
    page, address = serve(demo, settings.host, settings.port)
    tell(f"{address}   (Ctrl-C ends it)", {"address": address, "models": names})
    sys.stdout.flush()
    try:
        page.block_thread()
    finally:
        page.close()


def shown_name(model: str) -> str:
    """A hub id as it is, the last three parts of a folder: ``cacse/export/ensemble``."""
    return "/".join(Path(model).resolve().parts[-3:]) if Path(model).is_dir() else public_name(model)


if __name__ == "__main__":
    sys.exit(run(main))
