"""``cacse-trainer pipeline``: the whole recipe, stage by stage, and one report."""

import shlex
import sys
from collections.abc import Sequence

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.output import tell
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.tables import text_table
from cacse_trainer.pipeline.report import SCORE_HEAD, stage_scores, write_pipeline_report
from cacse_trainer.pipeline.runner import plan, read_record, run_stages
from cacse_trainer.pipeline.stages import parse_change, read_stages
from cacse_trainer.settings.resources import find_recipe, nearest

EPILOG = """examples:
  cacse-trainer pipeline --config pipeline/small
  cacse-trainer pipeline --config pipeline/small --plan
  cacse-trainer pipeline --config pipeline/cacse_bert --set common.train_file=wiki1m.txt --output_dir runs/bert
  cacse-trainer pipeline --config pipeline/small --set joint.learning_rate=1e-5      (the later stages follow)

Finished stages are skipped while their settings and inputs are the same; an interrupted one goes on where it stopped.
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser(
        "pipeline", "Towers, joint training, student, evaluation and export in one go, with one report.", EPILOG
    )
    made.add_argument("--config", required=True, help="pipeline recipe: a YAML file or a name such as pipeline/small")
    made.add_argument("--output_dir", help="instead of the recipe's; each stage has a folder in it")
    made.add_argument(
        "--set", nargs="+", default=[], metavar="STAGE.FIELD=VALUE", help="settings of a stage, or common.FIELD=VALUE"
    )
    made.add_argument("--only", nargs="+", metavar="STAGE", help="run these stages only")
    made.add_argument("--plan", action="store_true", help="say what would be done, and do nothing")
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    made = parser()
    settings = made.parse_args(arguments)
    changes = dict(parse_change(text) for text in settings.set)
    recipe = find_recipe(settings.config)
    root, stages = read_stages(recipe, settings.output_dir, changes)
    names = [stage.name for stage in stages]
    for name in settings.only or []:
        if name not in names:
            raise UserError(f"--only {name}: the stages are {', '.join(names)}{nearest(name, names)}")
    if settings.plan:
        planned, width = plan(stages, read_record(root)), max(map(len, names))
        lines = [
            f"{stage.name:<{width}} {todo:<7} cacse-trainer {stage.command} {' '.join(stage.flags(root))}"
            for stage, _, todo in planned
        ]
        tell("\n".join(lines), {"plan": {stage.name: todo for stage, _, todo in planned}})
        return
    command = shlex.join(made.command(arguments))
    record = run_stages(root, stages, settings.only)
    paths = write_pipeline_report(root, stages, record, settings.config, command)
    scores = [row for stage in stages for row in stage_scores(stage)]
    tell(
        "\n".join([text_table(SCORE_HEAD, scores), *(f"report: {path}" for path in paths)]),
        {
            "output_dir": str(root),
            "stages": record,
            "scores": [dict(zip(SCORE_HEAD, row, strict=True)) for row in scores],
            "report": str(paths[-1]),
        },
    )


if __name__ == "__main__":
    sys.exit(run(main))
