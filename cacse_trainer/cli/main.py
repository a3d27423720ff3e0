"""``cacse-trainer``: one command, a subcommand for each job."""

import importlib
import sys
from collections.abc import Sequence

from cacse_trainer.cli.boundary import guarded, leaving_on_ctrl_c, write_any_text
from cacse_trainer.cli.output import output_mode
from cacse_trainer.errors import UserError
from cacse_trainer.settings.flags import check_words, help_of
from cacse_trainer.settings.resources import nearest
from cacse_trainer.version import __version__

COMMANDS = {
    "adapt": "from your own raw text to a better encoder, with a verdict told from held-out queries",
    "train": "train sentence encoders on raw text and export them",
    "pairs": "positive pairs by translating sentences there and back",
    "mine": "hard negatives for pairs, from a corpus",
    "distill": "train one encoder to give a frozen teacher's vectors, and export it",
    "evaluate": "score encoders on SentEval (similarity, transfer, probing) and MTEB",
    "encode": "a file of sentences to a file of vectors",
    "search": "the sentences of a corpus nearest to a query",
    "demo": "similarity, search and a map of a corpus in the browser, of one model or two",
    "grade": "pairs of your own text, graded in the browser into a dev set",
    "compare": "the differences of two evaluations, with intervals",
    "pipeline": "pairs, towers, joint training, student, evaluation and export in one go",
    "sweep": "several seeds and a grid of settings of one recipe",
    "report": "several training runs in one page: scores with intervals, curves, settings that differ",
    "models": "the field's released models: how each is read, and what was published of it",
    "doctor": "what this machine has and lacks, and what to do about it",
    "export": "turn a training checkpoint into plain encoder folders",
    "export-static": "turn an encoder into a table of token vectors, many times as fast",
    "import": "turn a checkpoint of the CACSE release, or a pair of TNCSE's, into a model folder",
    "completion": "a script that completes this program's commands and flags in your shell",
    "instruct": "teach a causal language model an encoder's similarity scores, and measure it",
}

GROUPS = {
    "train": ("adapt", "train", "distill", "pipeline", "sweep", "instruct", "pairs", "mine"),
    "measure": ("evaluate", "compare", "report", "grade", "models"),
    "use": ("encode", "search", "demo"),
    "share": ("export", "export-static", "import"),
    "help": ("doctor", "completion"),
}
"""The order in which the help tells of the commands."""

EXAMPLES = {
    "adapt": "adapt --text my_documents/ --output_dir runs/adapted",
    "train": "train --config cacse/bert_base --train_file wiki1m.txt --output_dir runs/cacse",
    "distill": "distill --config distill/cacse_bert --teacher runs/cacse/export --train_file wiki1m.txt",
    "pipeline": "pipeline --config pipeline/small",
    "sweep": "sweep --config simcse/minilm --seeds 1 2 3 --output_dir runs/seeds --train_file mine.txt",
    "instruct": "instruct --config instruct/llama2_7b_chat --encoder runs/cacse/export/ensemble",
    "pairs": "pairs --input wiki1m.txt --output_dir pairs_fr --there opus-mt-en-fr --back opus-mt-fr-en",
    "mine": "mine --model A --input pairs.csv --corpus sentences.txt --output triplets.jsonl",
    "evaluate": "evaluate --model runs/cacse/export/ensemble --suite sts",
    "compare": "compare results/simcse results/cacse",
    "grade": "grade --model START --input my_sentences.txt --output my_dev.tsv",
    "encode": "encode --model runs/cacse/export/ensemble --input sentences.txt --output vectors.npy",
    "search": 'search --model runs/cacse/export/ensemble --corpus sentences.txt --query "a man plays music"',
    "demo": "demo --model runs/cacse/export/ensemble",
    "export": "export --checkpoint runs/cacse/checkpoint-1200 --output_dir exported",
    "export-static": "export-static --model runs/cacse/export/ensemble --output_dir static",
    "import": "import --checkpoint pytorch_model.bin --tower_a bert-base-uncased --output_dir cacse_model",
    "report": "report runs/mine runs/cacse",
    "models": "models",
    "doctor": "doctor",
    "completion": "completion bash",
}
"""One call of each command."""

HEAD = """usage: cacse-trainer COMMAND [options]

Raw sentences go in at one end, a plain Hugging Face sentence encoder comes out at the other. To begin with:

  cacse-trainer train --config quickstart            CACSE on the shipped sample, offline, in minutes
"""
TAIL = """
cacse-trainer COMMAND --help tells a command's options, COMMAND --help all every one. All commands take --quiet (no
progress) and --json (the result as one JSON object on standard output). Exit codes: 0 done, 2 the input is wrong (one
line says what), 129, 130, 141 and 143 ended by SIGHUP, by Ctrl-C, by a reader that went away and by SIGTERM, 1 anything
else.
"""


def usage() -> str:
    """The help of the whole program: every command by group, with an example."""
    lines = [HEAD]
    width = max(map(len, COMMANDS)) + 2
    for group, names in GROUPS.items():
        lines.append(f"{group}:")
        for name in names:
            lines += [f"  {name:<{width}}{COMMANDS[name]}", f"  {'':<{width}}  cacse-trainer {EXAMPLES[name]}"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n" + TAIL


GO_ON = -1
"""What `_answer` returns where a command must be run."""
PLACE = "cacse_trainer.cli."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code, see `guarded`. Help and typos are answered without the libraries."""
    write_any_text()
    given = list(sys.argv[1:] if arguments is None else arguments)
    with output_mode(quiet=False, as_json="--json" in given):
        code = guarded(lambda: _answer(given))
    return guarded(lambda: _run(given[0], given[1:])) if code == GO_ON else code


def answer_module(words: Sequence[str]) -> int:
    """What `main` answers without the libraries, for ``python -m cacse_trainer.cli.COMMAND``.

    Args:
        words: of the command line, the interpreter's own first, as in ``sys.orig_argv``.

    Returns:
        The exit code, or `GO_ON` where the command must be run.
    """
    place = next((number for number, word in enumerate(words) if PLACE in word), None)
    if place is None:  # of another program that imports the package
        return GO_ON
    module = words[place].rpartition(PLACE)[2]
    name = next((command for command, file in MODULES.items() if file == module), module)
    if name not in COMMANDS:
        return GO_ON
    given = [name, *words[place + 1 :]]
    with output_mode(quiet=False, as_json="--json" in given):
        return guarded(lambda: _answer(given))


def _answer(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"cacse-trainer {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"no command {name!r}{nearest(name, list(COMMANDS))} (cacse-trainer --help)")
    asked = next((place for place, word in enumerate(rest) if word in ("-h", "--help")), None)
    if asked is None:
        check_words(name, rest)
        return GO_ON
    print(help_of(name, everything=rest[asked + 1 : asked + 2] == ["all"]), end="")
    return 0


def _run(name: str, arguments: Sequence[str]) -> int:
    with leaving_on_ctrl_c():
        from cacse_trainer.cli.common import run

        module = importlib.import_module(f"cacse_trainer.cli.{MODULES.get(name, name)}")
    return run(module.main, arguments)


MODULES = {
    "import": "import_reference",
    "export-static": "export_static",
}  # where the file cannot bear the command's name

if __name__ == "__main__":
    sys.exit(main())
