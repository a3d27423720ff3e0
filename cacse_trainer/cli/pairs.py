"""``cacse-trainer pairs``: positive pairs that a model writes, by round-trip translation or as questions."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cacse_trainer.adaptation.pair_shards import finish_pairs, write_pairs_shard
from cacse_trainer.adaptation.questions import asking
from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.encoders import chosen
from cacse_trainer.cli.output import tell
from cacse_trainer.cli.shards import add_shard_flags, check_blocks, check_finish, folder_of
from cacse_trainer.data import load_sentences
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.data.round_trip import COLUMNS, Translate, write_pairs
from cacse_trainer.errors import UserError
from cacse_trainer.files import delete_folder
from cacse_trainer.models.translation import Translator
from cacse_trainer.settings.command_line import count
from cacse_trainer.settings.resources import resolve_resource

PAIRS = "pairs.csv"

EPILOG = """examples:
  cacse-trainer pairs --input wiki1m.txt --output_dir pairs_fr \\
      --there Helsinki-NLP/opus-mt-en-fr --back Helsinki-NLP/opus-mt-fr-en
  cacse-trainer train --config simcse/unsup_bert_base --train_file pairs_fr/pairs.csv
  cacse-trainer pairs --input passages.jsonl --output_dir asked --question_writer Qwen/Qwen2.5-0.5B-Instruct
  cacse-trainer pairs --input passages.jsonl --output_dir asked --question_writer B --shard 2/64   (of 64, anywhere)
  cacse-trainer pairs --output_dir asked --finish                                               (when all have ended)

A second call with the same settings goes on where the first one stopped.

With --question_writer a language model writes a search query for each passage: rows of (anchor: the query, positive:
the passage). With --shard i/n any scheduler starts the n commands; each reads its own blocks of the text only, as those
of encode, and writes a file a block; --finish puts them together.
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser(
        "pairs", "Let a model write positive pairs: sentences there and back in another language, or questions.", EPILOG
    )
    add = made.add_argument
    add("--input", help="text, one sentence a line (or any source that train_file takes)")
    add("--text_column", help="with --shard: of an input with several columns")
    add("--there", help="translation model into the other language: folder or hub id")
    add("--back", help="translation model back")
    add("--question_writer", help="instead: a causal language model, or the URL of an OpenAI-compatible server")
    add("--question_model", help="the model's name on that server")
    add("--question_prompt", help="a file with the prompt; {passage} stands for the passage")
    add("--output_dir", required=True, help=f"{PAIRS} is written there")
    add_shard_flags(add, f"OUTPUT_DIR/{PAIRS}.shards", f"OUTPUT_DIR/{PAIRS}")
    add("--batch_size", type=count, default=32, help="of translation")
    add("--num_beams", type=count, default=1, help="of beam search; 1 is greedy")
    add("--max_length", type=count, default=128, help="in tokens")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--overwrite", action="store_true", help="translate anew where the file is there already")
    add("--disable_tqdm", action="store_true", help="no progress bar")
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    own = parser()
    settings = own.parse_args(arguments)
    given = {name for name, _ in own.given(arguments)}
    output = Path(settings.output_dir) / PAIRS
    shards = folder_of(output)
    if output.is_file() and not settings.overwrite and settings.shard is None:  # a finish alone writes it
        raise UserError(f"{output} is there already; choose another --output_dir, or --overwrite")
    if settings.finish:
        check_finish(given, "output_dir", "overwrite")
        _told(output, finish_pairs(shards, output))
        delete_folder(shards)
        return
    if settings.input is None:
        own.error("the following arguments are required: --input")
    check_blocks("shard" if settings.shard is not None else None, given, overwrite=f"delete {shards} to begin anew")
    _check(settings, given)
    if settings.shard is not None:
        corpus = Corpus(resolve_resource(settings.input), settings.text_column)
        there, back, how = _writer(settings)
        filled = write_pairs_shard(corpus, there, back, shards, settings.shard, **how)
        rows = sum(part["rows"] for part in filled.parts.values())
        tell(
            f"{shards}: shard {'/'.join(map(str, settings.shard))}, {rows} pairs in {filled.of_shard} blocks, "
            f"{filled.made} of them written now; when all shards are there: --finish",
            {"output": str(output), "rows": rows, "of_shard": filled.of_shard, "made": filled.made},
        )
        return
    found = load_sentences(resolve_resource(settings.input))
    if "text" not in found.column_names:
        raise UserError(f"{settings.input} has the columns {', '.join(found.column_names)}; give one sentence a line")
    there, back, how = _writer(settings)
    _told(output, write_pairs(found["text"], there, back, output, **how))


def _check(settings: argparse.Namespace, given: set[str]) -> None:
    """Refuse flags that belong to the other way of writing."""
    if settings.question_writer is None:
        if missing := [f"--{name}" for name in ("there", "back") if getattr(settings, name) is None]:
            raise UserError(f"pairs: {', '.join(missing)} is missing; give --there and --back, or --question_writer")
        if others := sorted(given & {"question_model", "question_prompt"}):
            raise UserError(f"--{others[0]}: belongs to --question_writer; give that, too")
    elif others := sorted(given & {"there", "back", "batch_size", "num_beams", "max_length"}):
        raise UserError(f"--{others[0]}: belongs to translation; leave it out with --question_writer")
    if settings.shard is None and settings.text_column is not None:
        raise UserError("--text_column: belongs to --shard; without it the input has one column")


def _writer(settings: argparse.Namespace) -> tuple[Translate, Translate, dict[str, Any]]:
    """The two functions of `write_pairs`, and its other arguments."""
    shown = {"show_progress_bar": not settings.disable_tqdm}
    if settings.question_writer is not None:
        asked = (settings.question_writer, settings.question_model, settings.question_prompt, settings.device)
        queries, facts = asking(*asked)
        return queries, list, {"settings": facts, "columns": COLUMNS[::-1], **shown}
    common = chosen(settings, "batch_size", "num_beams", "max_length")
    there, back = (
        Translator(resolve_resource(path), settings.device, **common) for path in (settings.there, settings.back)
    )
    named = {"there": settings.there, "back": settings.back, **common}
    return there, back, {"settings": named, "columns": COLUMNS, **shown}


def _told(output: Path, counts: dict[str, int]) -> None:
    unchanged, empty = counts["unchanged"], counts["empty"]
    tell(
        f"{output}: {counts['rows']} pairs ({unchanged} came back unchanged, {empty} came back empty and were dropped)",
        {"output": str(output), **counts},
    )


if __name__ == "__main__":
    sys.exit(run(main))
