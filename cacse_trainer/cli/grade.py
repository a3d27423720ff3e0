"""``cacse-trainer grade``: pairs of one's own text, graded by a person, become a dev file."""

import contextlib
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.encoders import add_running_flags, open_encoder
from cacse_trainer.cli.output import tell, tell_json
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.demo.grading import grade_in_terminal, serve_grading
from cacse_trainer.demo.serving import load_gradio
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.grading import Grading, check_output, plan_of, sample_pairs, some_sentences
from cacse_trainer.files import only_one
from cacse_trainer.settings.command_line import count, seed
from cacse_trainer.settings.resources import public_name, resolve_resource

EPILOG = """examples:
  cacse-trainer grade --model START --input my_sentences.txt --output my_dev.tsv
  cacse-trainer grade --output my_dev.tsv                                        (goes on where it was left)
  cacse-trainer grade --model START --input docs.csv --text_column body --output my_dev.tsv --plain
  cacse-trainer train --config simcse/minilm --train_file my_sentences.txt --dev_file mine=my_dev.tsv

In the browser: buttons, or the keys 0 to 5, u (undo) and s (skip). Each answer is written at once, into a file that
--dev_file reads at any time; my_dev.tsv.json beside it holds the pairs, so that the same command goes on later. Any
beginning of the pairs covers all degrees of likeness: 100 are a start, 200 to 500 a good dev set.
Needs pip install 'cacse-trainer[demo]'; --plain does not. Nothing leaves the machine.
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser(
        "grade", "Grade pairs of your own sentences in the browser, 0 to 5: the dev set of your domain.", EPILOG
    )
    add = made.add_argument
    add("--output", required=True, type=Path, help="dev file that is made or gone on with; a name that ends in .tsv")
    add("--input", help="your text: txt (one sentence a line), csv, tsv, jsonl or parquet file")
    add("--text_column", help="of an input with several")
    ranking = "encoder by whose cosines the pairs are spread, such as the start of the training to come"
    add("--model", help=f"{ranking}: folder, hub id or package:NAME/FOLDER")
    add("--pairs", type=count, default=300, help="to be graded; default 300")
    add("--seed", type=seed, default=0, help="of the choice; default 0")
    add("--plain", action="store_true", help="ask in the terminal, without a browser")
    add("--host", default="127.0.0.1", help="address to listen at; default 127.0.0.1: this machine only")
    add("--port", type=int, default=7860, help="default 7860; 0: a free one")
    add_running_flags(made)
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    made = parser()
    settings, given = made.parse_args(arguments), {name for name, _ in made.given(arguments)}
    if not settings.plain:
        load_gradio()  # before the model: what is missing is said at once
    begun = plan_of(settings.output).is_file()
    if not begun:
        check_output(settings.output)
        if settings.input is None or (settings.model is None and settings.adapter is None):
            raise UserError("command line: give --input and --model; without them a grading that was begun goes on")
        settings.output.parent.mkdir(parents=True, exist_ok=True)
    with only_one(settings.output):
        grading = Grading(settings.output) if begun else _begin(settings)
        if begun:
            _check_same(settings, given, grading.facts)
        if settings.plain:
            with contextlib.redirect_stdout(sys.stderr):  # the result alone is the output
                grade_in_terminal(grading)
            tell(_told(grading), {"output": str(settings.output), **grading.counts})
        else:
            _serve(grading, settings.host, settings.port)


def _begin(settings: Any) -> Grading:
    """Choose the pairs and write them down."""
    sentences = some_sentences(Corpus(resolve_resource(settings.input), settings.text_column), settings.seed)
    encoder = open_encoder(settings, settings.model, settings.device)
    vectors = encoder.encode(sentences, show_progress_bar=not settings.disable_tqdm)
    pairs = sample_pairs(sentences, vectors, settings.pairs, settings.seed)
    facts = {"input": public_name(settings.input), "model": public_name(encoder.name), "seed": settings.seed}
    facts["asked"] = settings.pairs
    return Grading.begin(settings.output, pairs, facts)


def _check_same(settings: Any, given: Collection[str], facts: Mapping[str, Any]) -> None:
    """Refuse another choice of pairs than the one that was begun."""
    wanted = {"input": public_name(settings.input or ""), "seed": settings.seed, "asked": settings.pairs}
    for flag, name in (("input", "input"), ("seed", "seed"), ("pairs", "asked")):
        if flag in given and wanted[name] != facts.get(name):
            raise UserError(
                f"command line: {settings.output} was begun with --{flag} {facts.get(name)}; "
                f"leave --{flag} out, or choose another --output"
            )


def _serve(grading: Grading, host: str, port: int) -> None:
    page, address = serve_grading(grading, host, port)
    print(f"{address}   ({grading.counts['left']} pairs left; Ctrl-C ends it, the same command goes on)")
    tell_json({"address": address, "output": str(grading.output), **grading.counts})
    sys.stdout.flush()
    try:
        page.block_thread()
    finally:
        page.close()
        print(_told(grading), file=sys.stderr)


def _told(grading: Grading) -> str:
    counts = grading.counts
    return f"{grading.output}: {counts['graded']} of {counts['pairs']} pairs graded, {counts['skipped']} skipped"


if __name__ == "__main__":
    sys.exit(run(main))
