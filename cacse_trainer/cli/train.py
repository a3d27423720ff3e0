"""``cacse-trainer train``: sentence encoders trained on raw text, and exported."""

import sys
from collections.abc import Sequence

from cacse_trainer.cli.common import run
from cacse_trainer.cli.output import tell
from cacse_trainer.compute.distributed import rank
from cacse_trainer.report.training import verdict_line
from cacse_trainer.runs.choosing import choose
from cacse_trainer.runs.run import RunResult
from cacse_trainer.runs.train import train
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.settings.recipes import RecipeParser, parse_run

EPILOG = """examples:
  cacse-trainer train --train_file mine.csv               (looks at the text, chooses the rest and says what and why)
  cacse-trainer train --config quickstart
  cacse-trainer train --config cacse/bert_base --train_file wiki1m.txt --output_dir runs/cacse
  cacse-trainer train --config cacse/minilm --train_file mine.txt --dev_file stsb=sts-dev.csv --max_steps 200
"""


def parser() -> RecipeParser:
    """The command's flags."""
    settings = (ModelArguments, DataArguments, CacseTrainingArguments)
    what = "Train sentence encoders on raw text and export them."
    return RecipeParser(settings, prog="cacse-trainer train", description=what, epilog=EPILOG)


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments; without a recipe the text says what they leave open."""
    made = parser()
    if made.parse_args(arguments).config is None:
        arguments = [*arguments, *choose(made, arguments)]
    parsed = parse_run(made, arguments)
    model_args, data_args, args = parsed.groups
    tell_run(train(model_args, data_args, args, parsed))


def tell_run(result: RunResult) -> None:
    """What `train` and `distill` have left, once for all processes.

    Raises:
        UserError, HubError: the export could not be pushed.
    """
    if rank() > 0:
        return
    if "scored" in result.summary:
        lines = [f"{name}: {score:.2f}" for name, score in result.summary["scores"].items()]
        what = f"scored {result.summary['scored']} (pooling {result.summary['pooling']}); nothing was trained"
        tell("\n".join([what, *lines]), result.summary)
        return
    if result.steps is None:
        tell("settings, text, dev sets and models are fine; nothing was trained (--check)", {"checked": True})
        return
    summary, lines = result.summary, [f"trained {result.steps} steps"]
    if summary.get("best") is not None:
        line = f"{summary['metric']}: best {summary['best']:.2f} at step {summary['best_step']}"
        if summary["baseline"] is not None:
            gain = summary["best"] - summary["baseline"]
            line = f"{line}, baseline {summary['baseline']:.2f} ({gain:+.2f})"
        lines.append(line)
    if "verdict" in summary:
        lines.append(verdict_line(summary["verdict"]))
    for name, scores in result.exported.items():
        measured = ", ".join(f"{dev} {score:.2f}" for dev, score in scores.items())
        lines.append(f"  {result.folder / 'export' / name}" + (f"   {measured}" if measured else ""))
    lines.append(f"report: {result.report}")
    told = {name: value for name, value in summary.items() if name not in ("curve", "teacher", "moved")}
    facts = {"output_dir": str(result.folder), "steps": result.steps, **told, "exported": result.exported}
    tell("\n".join(lines), facts)
    if result.pushed is not None:
        print(f"pushed: {result.pushed}")
    if result.push_error is not None:
        raise result.push_error


if __name__ == "__main__":
    sys.exit(run(main))
