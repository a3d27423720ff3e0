"""``cacse-trainer``: one command, a subcommand for each job."""

import importlib
import sys
from collections.abc import Sequence

from cacse_trainer.version import __version__

COMMANDS = {
    "train": "train sentence encoders on raw text and export them",
    "pairs": "positive pairs by translating sentences there and back",
    "distill": "train one encoder to give a frozen teacher's vectors, and export it",
    "evaluate": "score encoders on SentEval (similarity, transfer, probing) and MTEB",
    "compare": "the differences of two evaluations, with intervals",
    "pipeline": "pairs, towers, joint training, student, evaluation and export in one go",
    "export": "turn a training checkpoint into plain encoder folders",
    "import": "turn a checkpoint of the CACSE release into a model folder",
}

USAGE = """usage: cacse-trainer COMMAND [options]

Train sentence encoders on your own text, evaluate them, export plain Hugging Face encoders.

commands:
{commands}

  cacse-trainer COMMAND --help tells the options of one.

examples:
  cacse-trainer train --config quickstart
  cacse-trainer train --config cacse/bert_base --train_file wiki1m.txt --output_dir runs/cacse
  cacse-trainer distill --config distill/cacse_bert --teacher runs/cacse/export --train_file wiki1m.txt
  cacse-trainer evaluate --model runs/cacse/export/ensemble --suite sts --data_dir SentEval/data
  cacse-trainer export --checkpoint runs/cacse/checkpoint-1200 --output_dir exported
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print(USAGE.format(commands="\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())))
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"cacse-trainer {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        from cacse_trainer.recipes import nearest

        print(f"error: no command {name!r}{nearest(name, list(COMMANDS))} (cacse-trainer --help)", file=sys.stderr)
        return 2
    from cacse_trainer.cli.common import run

    module = importlib.import_module(f"cacse_trainer.cli.{MODULES.get(name, name)}")
    return run(module.main, arguments[1:])


MODULES = {"import": "import_reference"}  # where the file cannot bear the command's name

if __name__ == "__main__":
    sys.exit(main())
