"""``cacse-trainer distill``: a frozen teacher's vectors into one encoder."""

import sys
from collections.abc import Sequence

from cacse_trainer.cli.common import run
from cacse_trainer.cli.train import tell_run
from cacse_trainer.runs.distill import distill
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments
from cacse_trainer.settings.distillation import DistillationArguments
from cacse_trainer.settings.recipes import RecipeParser, parse_run

EPILOG = """examples:
  cacse-trainer distill --config distill/quickstart
  cacse-trainer distill --config distill/cacse_bert --teacher runs/cacse/export --train_file wiki1m.txt
  cacse-trainer distill --config distill/cacse_bert --teachers path=a,weight=0.25 path=b,pooling=mean,weight=0.75 …
  cacse-trainer distill --config distill/rank_minilm --teachers path=a path=b --train_file wiki1m.txt
"""


def parser() -> RecipeParser:
    """The command's flags."""
    settings = (DistillationArguments, DataArguments, CacseTrainingArguments)
    what = "Train one encoder to give a frozen teacher's vectors, or to rank as teachers do, and export it."
    return RecipeParser(settings, prog="cacse-trainer distill", description=what, epilog=EPILOG)


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    parsed = parse_run(parser(), arguments)
    settings, data_args, args = parsed.groups
    tell_run(distill(settings, data_args, args, parsed))


if __name__ == "__main__":
    sys.exit(run(main))
