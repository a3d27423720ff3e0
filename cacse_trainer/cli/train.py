"""``cacse-trainer train``: settings → data → model → trainer → train → export.

cacse-trainer train --config quickstart
cacse-trainer train --config cacse/bert_base --train_file wiki1m.txt --output_dir runs/cacse
"""

import sys
from collections.abc import Sequence
from typing import Any

from cacse_trainer.cli.common import run
from cacse_trainer.errors import user_errors
from cacse_trainer.runs.build import (
    base_models,
    build_collator,
    build_model,
    check_columns,
    check_fit,
    check_weights,
)
from cacse_trainer.runs.methods import check_hard_negatives, check_used
from cacse_trainer.runs.run import TrainingRun
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.settings.recipes import RecipeParser, parse_run
from cacse_trainer.training.trainer import CacseTrainer

EPILOG = """examples:
  cacse-trainer train --config quickstart
  cacse-trainer train --config cacse/bert_base --train_file wiki1m.txt --output_dir runs/cacse
  cacse-trainer train --config cacse/minilm --train_file mine.txt --dev_file stsb=sts-dev.csv --max_steps 200
"""


SETTINGS = (ModelArguments, DataArguments, CacseTrainingArguments)
HELP: dict[str, Any] = {
    "prog": "cacse-trainer train",
    "description": "Train sentence encoders on raw text and export them.",
    "epilog": EPILOG,
}


def parser() -> RecipeParser:
    """The command's flags."""
    return RecipeParser(SETTINGS, **HELP)


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    parsed = parse_run(SETTINGS, arguments, **HELP)
    model_args, data_args, args = parsed.groups
    if (model_args.model is None) != (model_args.tower_a is None):  # else there is none, or too many: see build_model
        check_used(parsed)
    training = TrainingRun.begin(model_args, data_args, args, parsed.recipe, parsed.command, parsed.given())
    check_hard_negatives(parsed, len(training.data_facts.get("columns", [])) or None)
    model, tokenizer = build_model(model_args)
    check_weights(model)
    if args.export:
        model.check_exportable()
    check_columns(model, training.data_facts, training.train_dataset)
    for length in (data_args.max_seq_length, data_args.eval_max_seq_length):
        if length is not None:
            check_fit(model, tokenizer, length)
    with user_errors("settings", ImportError, RuntimeError):  # a logger or an optimizer that is not installed
        trainer = CacseTrainer(
            model=model,
            args=args,
            data_collator=build_collator(model, tokenizer, data_args),
            train_dataset=training.train_dataset,
            eval_dataset=training.dev_sets or None,
            processing_class=tokenizer,
            max_seq_length=data_args.max_seq_length,
            eval_max_seq_length=data_args.eval_max_seq_length,
        )
    training.execute(trainer, tokenizer, base_models(model_args))


if __name__ == "__main__":
    sys.exit(run(main))
