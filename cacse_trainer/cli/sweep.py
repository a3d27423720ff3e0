"""``cacse-trainer sweep``: one recipe with several seeds and a grid of its fields."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.output import tell
from cacse_trainer.errors import RunError, UserError
from cacse_trainer.pipeline.runner import SWEEP, plan, read_record, run_stages
from cacse_trainer.pipeline.stages import parse_change
from cacse_trainer.pipeline.sweep import parse_grid, slots, sweep_runs
from cacse_trainer.pipeline.sweep_report import write_sweep_report
from cacse_trainer.settings.command_line import hand_over, seed
from cacse_trainer.settings.recipes import read_recipe
from cacse_trainer.settings.resources import find_recipe

EPILOG = """examples:
  cacse-trainer sweep --config cacse/minilm --seeds 1 2 3 --output_dir runs/seeds --train_file mine.txt
  cacse-trainer sweep --config simcse/minilm --grid learning_rate=1e-5,3e-5 --grid contrastive_temperature=0.05,0.1 \\
      --output_dir runs/grid --train_file mine.txt --plan
  cacse-trainer sweep --config cacse/bert_base --seeds 1 2 3 4 --gpus 0 1 2 3 --output_dir runs/four \\
      --train_file mine.txt
  cacse-trainer sweep --command distill --config distill/cacse_bert --seeds 1 2 --output_dir runs/students \\
      --train_file mine.txt

Each run has a folder and a log in the output folder; sweep_report.html, .md and .json hold mean, standard deviation and
interval over the seeds of each point, the page also their curves overlaid; the table is in the card of the best run,
too. Repeat the command to go on after an interruption; with more seeds or values only the new runs are done.
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser(
        "sweep", "Train one recipe with several seeds and a grid of settings; mean and standard deviation.", EPILOG
    )
    add = made.add_argument
    add("--config", required=True, help="recipe: a YAML file or a name such as cacse/minilm")
    add("--output_dir", required=True, type=Path, help="each run has a folder in it")
    add("--seeds", nargs="+", type=seed, default=[42], help="default: 42")
    add("--grid", action="append", default=[], metavar="FIELD=V,V", help="values of a field; every combination is run")
    add("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of all runs, instead of the recipe's")
    add("--train_file", help="training text of all runs, where the recipe names none")
    add("--command", default="train", choices=["train", "distill"], help="what the recipe is for")
    add("--parallel", type=int, help="runs at once; default: one a GPU of --gpus, else 1")
    add("--gpus", nargs="+", help="numbers of the GPUs, one a run; default: all that are visible, by turns")
    add("--overwrite", action="store_true", help="do runs anew whose settings or inputs have changed")
    add("--plan", action="store_true", help="say what would be run, and run nothing")
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    settings = parser().parse_args(arguments)
    parallel = settings.parallel or len(settings.gpus or [1])
    if parallel < 1:
        raise UserError(f"parallel {parallel}: at least 1")
    recipe = read_recipe(find_recipe(settings.config))
    changes = dict(parse_change(text) for text in settings.set)
    if stray := next((name for name in changes if "." in name), None):
        raise UserError(f"--set {stray}: a sweep has no stages; give FIELD=VALUE")
    if settings.train_file is not None:
        changes["train_file"] = settings.train_file
    grid = parse_grid(settings.grid)
    if not any("train_file" in given for given in (recipe, changes, grid)):
        raise UserError(f"no training text: recipe {settings.config} names none; give --train_file FILE")
    hand_over(changes)
    runs = sweep_runs(
        settings.config,
        settings.command,
        settings.output_dir,
        seeds=settings.seeds,
        grid=grid,
        settings=changes,
    )
    stages = [one.stage for one in runs]
    if settings.plan:
        planned = plan(stages, read_record(settings.output_dir, SWEEP))
        lines = [
            f"{todo:<7} cacse-trainer {stage.command} {shlex.join(stage.flags(settings.output_dir))}"
            for stage, _, todo in planned
        ]
        tell("\n".join(lines), {"plan": {stage.name: todo for stage, _, todo in planned}})
        return
    failure: RunError | None = None
    environments = slots(parallel, settings.gpus or _visible_gpus())
    try:
        run_stages(settings.output_dir, stages, kind=SWEEP, replace=settings.overwrite, environments=environments)
    except RunError as error:  # what did succeed is reported all the same
        failure = error
    text, found = write_sweep_report(settings.output_dir, settings.config, runs)
    tell(text, found)
    if failure is not None:
        raise failure


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


if __name__ == "__main__":
    sys.exit(run(main))
