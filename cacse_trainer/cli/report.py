"""``cacse-trainer report``: several training runs in one page."""

import sys
from collections.abc import Sequence
from pathlib import Path

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.output import tell
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.evaluation.tables import text_table
from cacse_trainer.files import write_text
from cacse_trainer.report.comparison import compare_runs

EPILOG = """examples:
  cacse-trainer report runs/mine runs/cacse
  cacse-trainer report runs/seeds/seed-1 runs/seeds/seed-2 runs/seeds/seed-3 --output seeds.html

The first run is what the others are compared with. One HTML file that loads nothing: scores side by side, with paired
95 % intervals where the runs keep their answers; the curves overlaid; the settings that differ.
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser("report", "Compare training runs in one page.", EPILOG)
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folders of train or distill, 2 or more")
    made.add_argument("--output", type=Path, default=Path("comparison.html"), help="default comparison.html")
    made.add_argument("--overwrite", action="store_true", help="replace an output that is there")
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    settings = parser().parse_args(arguments)
    output: Path = settings.output
    if len(settings.runs) < 2:
        raise UserError("report: give two runs or more; the page of one is report.html in its folder")
    if output.suffix != ".html" or output.is_dir():
        raise UserError(f"output {output}: give a name that ends in .html")
    if output.exists() and not settings.overwrite:
        raise UserError(f"output {output} is there already; choose another --output, or --overwrite")
    text, found = compare_runs(settings.runs, output.resolve().parent)
    with user_errors(f"output {output} cannot be written"):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, text)
    sets = list(dict.fromkeys(name for scores in found["scores"].values() for name in scores))
    rows = [
        [run, *("–" if scores.get(name) is None else f"{scores[name]:.2f}" for name in sets)]
        for run, scores in found["scores"].items()
    ]
    tell(f"{text_table(['run', *sets], rows)}\n{output}", {"output": str(output), **found})


if __name__ == "__main__":
    sys.exit(run(main))
