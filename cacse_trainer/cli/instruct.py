"""``cacse-trainer instruct``: teach a causal language model the similarity scores of a sentence encoder."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cacse_trainer.cli.common import run
from cacse_trainer.cli.output import tell
from cacse_trainer.evaluation.tables import text_table
from cacse_trainer.instruct.arguments import InstructSettings
from cacse_trainer.instruct.evaluation import HEADER, cells
from cacse_trainer.instruct.stages import check_ahead, check_order, going_on, make_stages, run_stage
from cacse_trainer.pipeline.runner import plan, read_record, run_stages, write_record
from cacse_trainer.settings.command_line import hand_over
from cacse_trainer.settings.recipes import RecipeParser, parse_run

DESCRIPTION = """Teach a causal language model what a sentence encoder knows, in four stages, each a folder of the
output folder:

  data      sentence pairs with the encoder's scores (or the gold ones) as instruction records in Alpaca form
  train     LoRA fine-tuning, the loss on the answers only; checkpoints, the adapter, training_report.json
  merge     the adapter merged into the base model: a plain folder for AutoModelForCausalLM
  evaluate  base and merged model through lm-evaluation-harness: table.md and results.json

A stage that is finished with the same settings and inputs is skipped, an interrupted one goes on from its last
checkpoint, one whose settings or inputs have changed is done anew, and so are those after it; with
--resume_with_changes an interrupted training goes on all the same."""

EPILOG = """examples:
  cacse-trainer instruct --config instruct/tiny
  cacse-trainer instruct --config instruct/tiny --plan
  cacse-trainer instruct --config instruct/llama2_7b_chat --encoder runs/cacse/export/ensemble
  cacse-trainer instruct --config instruct/llama2_7b_chat --scores gold --output_dir runs/instruct_gold
  cacse-trainer instruct --config instruct/tiny --stages evaluate --tasks my_task --include_path my_tasks
  cacse-trainer instruct --config instruct/tiny --pairs mine=pairs.tsv --gold_range 0 1 --stages data
"""


def parser() -> RecipeParser:
    """The command's flags."""
    settings = tuple(InstructSettings.__annotations__.values())
    return RecipeParser(settings, prog="cacse-trainer instruct", description=DESCRIPTION, epilog=EPILOG)


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    parsed = parse_run(parser(), arguments)
    settings = InstructSettings(*parsed.groups)
    chosen = settings.stages.stages
    hand_over(vars(settings.training))
    root = Path(str(settings.training.output_dir))
    if settings.stages.run_stage is not None:
        run_stage(settings.stages.run_stage, root, settings)
        return
    stages = make_stages(parsed.command[2:], settings)
    record = read_record(root)
    if settings.training.resume_with_changes:
        record = going_on(stages, record)
    todo = {stage.name: what for stage, _, what in plan(stages, record)}
    if settings.stages.plan:
        planned = {name: what if name in chosen else "not chosen" for name, what in todo.items()}
        tell("\n".join(f"{name:<9} {what}" for name, what in planned.items()), {"plan": planned})
        return
    check_order(stages, root, chosen)
    check_ahead([name for name in chosen if todo[name] != "skip"], settings)
    if settings.training.resume_with_changes:
        write_record(root, record)
    run_stages(root, stages, chosen)
    found = {stage.name: stage.left() for stage in stages if stage.is_finished()}
    lines = [line for name, left in found.items() for line in (f"{name:<9} {root / name}", *TOLD[name](left))]
    tell("\n".join(lines), {"output_dir": str(root), **found})


def _told_of_data(facts: dict[str, Any]) -> list[str]:
    counts = ", ".join(f"{count} {part}" for part, count in facts["records"].items())
    lines = [f"  records: {counts}; scores: {facts['scores']}"]
    for name, parts in facts["sets"].items():
        for part, told in parts.items():
            rho = told["spearman_with_gold"]
            agreement = "" if facts["scores"] == "gold" or rho is None else f", Spearman with gold {rho:.2f}"
            lines.append(f"  {name} {part}: {told['records']}, mean score {told['mean_score']:.2f}{agreement}")
    return lines


def _told_of_training(report: dict[str, Any]) -> list[str]:
    share = f"{report['trainable_parameters']} of {report['parameters']} parameters"
    lines = [f"  {report['steps']} steps on {report['records']} records, {share}"]
    if report["kept"] is not None and report["baseline"] is not None:
        lines.append(
            f"  validation loss {report['baseline']:.4f} before, {report['kept']:.4f} at step {report['kept_step']}"
        )
    return lines


def _told_of_merge(report: dict[str, Any]) -> list[str]:
    return [
        f"  {report['parameters']} parameters, {report['dtype']}; largest difference of a logit from base and adapter "
        f"{report['merge_difference']:.1e}"
    ]


def _told_of_evaluation(report: dict[str, Any]) -> list[str]:
    return [text_table(HEADER, [cells(row) for row in report["rows"]])]


TOLD = {"data": _told_of_data, "train": _told_of_training, "merge": _told_of_merge, "evaluate": _told_of_evaluation}

if __name__ == "__main__":
    sys.exit(run(main))
