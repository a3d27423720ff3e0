"""``cacse-trainer compare``: the differences of two evaluations.

cacse-trainer compare results/simcse results/cacse
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.output import tell
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.compare import compare, comparison_rows
from cacse_trainer.evaluation.results import read_results
from cacse_trainer.evaluation.tables import text_table
from cacse_trainer.files import write_json
from cacse_trainer.settings.command_line import count, seed

EPILOG = """The interval on STS is a paired bootstrap: the pairs are drawn anew, the same ones for both models.
"clear" means that it lies on one side of 0: then the difference does not hang on which pairs happen to
be in the set. (Other training seeds are another source of chance, which it does not cover.)
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser("compare", "Differences of two evaluations by task, second - first.", EPILOG)
    made.add_argument("first", type=Path, help="results.json of the one model, or its folder")
    made.add_argument("second", type=Path, help="results.json of the other")
    made.add_argument("--draws", type=count, default=1000, help="of the bootstrap")
    made.add_argument("--confidence", type=float, default=0.95, help="of the interval")
    made.add_argument("--seed", type=seed, default=0, help="of the bootstrap")
    made.add_argument("--output", type=Path, help="write the differences as JSON, too")
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    settings = parser().parse_args(arguments)
    if not 0 < settings.confidence < 1:
        raise UserError("confidence must be between 0 and 1")
    rows = compare(
        settings.first, settings.second, draws=settings.draws, confidence=settings.confidence, seed=settings.seed
    )
    header = ["task", "first", "second", "difference", f"{100 * settings.confidence:g} % interval", ""]
    lines = []
    for label, path in (("first ", settings.first), ("second", settings.second)):
        found = read_results(path)
        lines.append(f"{label}  {found['model']}, pooling {found['pooling']}")
    differences = {row.name: {**dataclasses.asdict(row), "difference": row.difference} for row in rows}
    if settings.output is not None:
        settings.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(settings.output, differences)
    tell("\n".join([*lines, text_table(header, comparison_rows(rows))]), differences)


if __name__ == "__main__":
    sys.exit(run(main))
