"""``cacse-trainer train``: settings → data → model → trainer → train → export.

cacse-trainer train --config quickstart
cacse-trainer train --config cacse/bert_base --train_file wiki1m.txt --output_dir runs/cacse
"""

import sys
from collections.abc import Sequence

from cacse_trainer.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.cli.build import base_models, build_collator, build_model, check_columns, check_export, check_fit
from cacse_trainer.cli.common import run, user_errors
from cacse_trainer.cli.runs import TrainingRun
from cacse_trainer.recipes import parse_run
from cacse_trainer.trainer import CacseTrainer

EPILOG = """examples:
  cacse-trainer train --config quickstart
  cacse-trainer train --config cacse/bert_base --train_file wiki1m.txt --output_dir runs/cacse
  cacse-trainer train --config cacse/minilm --train_file mine.txt --dev_file stsb=sts-dev.csv --max_steps 200
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    model_args, data_args, args, recipe = parse_run(
        [ModelArguments, DataArguments, CacseTrainingArguments],
        arguments,
        prog="cacse-trainer train",
        description="Train sentence encoders on raw text and export them.",
        epilog=EPILOG,
    )
    training = TrainingRun.begin(model_args, data_args, args, recipe)
    model, tokenizer = build_model(model_args)
    if args.export:
        check_export(model)
    check_columns(model, training.data_facts.get("columns", []))
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
