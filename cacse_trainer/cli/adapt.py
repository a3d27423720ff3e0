"""``cacse-trainer adapt``: from one's own raw text to a better encoder, with a verdict."""

import sys
from collections.abc import Sequence

from cacse_trainer.adaptation.outcome import AdaptResult
from cacse_trainer.adaptation.report import ended_early, forms_table
from cacse_trainer.adaptation.run import adapt
from cacse_trainer.cli.common import run
from cacse_trainer.cli.output import tell
from cacse_trainer.evaluation.tables import text_table
from cacse_trainer.settings.adaptation import AdaptArguments
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.settings.recipes import RecipeParser, parse_run

DEFAULT_RECIPE = "adapt/english_small"
SHOWN = 100
"""Characters of a text that ``--check`` shows."""

EPILOG = """examples:
  cacse-trainer adapt --text my_documents/
  cacse-trainer adapt --text articles.jsonl --config adapt/multilingual --budget 60 --output_dir runs/articles
  cacse-trainer adapt --text my_documents/ --check                          (rows and minutes; nothing is kept)
  cacse-trainer adapt --text my_documents/ --dev_queries my_queries.csv     (queries of your own choose and judge)

A second call with the same settings goes on where the first one stopped.
"""


def parser() -> RecipeParser:
    """The command's flags."""
    settings = (AdaptArguments, ModelArguments, DataArguments, CacseTrainingArguments)
    what = "Adapt an encoder to your own raw text: rows from its structure, chosen and judged by held-out queries."
    return RecipeParser(settings, prog="cacse-trainer adapt", description=what, epilog=EPILOG)


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    made = parser()
    recipe = [] if made.parse_args(arguments).config else ["--config", DEFAULT_RECIPE]
    parsed = parse_run(made, [*recipe, *arguments])
    settings, model_args, data_args, args = parsed.groups
    result = adapt(settings, model_args, data_args, args, parsed)
    tell_check(result) if result.verdict is None else tell_adaptation(result)


def tell_check(result: AdaptResult) -> None:
    """Sample rows, counts and minutes."""
    facts, plan = result.facts, result.facts["plan"]
    documents = facts["documents"]
    repeated = documents["exact"] + documents["near"]
    counted = f"{documents['documents']} documents of {documents['files']} files, {repeated} of them repetitions"
    lines = [f"{counted}, {documents['empty']} without text"]
    if skipped := ", ".join(f"{count} {ending}" for ending, count in documents["skipped"].items()):
        lines.append(f"not read: {skipped}")
    for kind, rows in facts["samples"].items():
        count = f"{plan['counts'][kind]} rows, such as" if rows else "a model will write them"
        lines.append(f"\n{kind}: {count}")
        lines += [f"  {anchor[:SHOWN]}\n    → {positive[:SHOWN]}" for anchor, positive in rows]
    minutes = "" if plan["minutes"] is None else f", {plan['minutes']:.0f} minutes in all here"
    lines.append(f"\n{plan['steps']} steps{minutes}; nothing was trained (--check)")
    tell("\n".join(lines), {"checked": True, **facts})


def tell_adaptation(result: AdaptResult) -> None:
    """The table of the verdict, the verdict, and what to use."""
    facts = result.facts
    head, rows = forms_table(facts["forms"])
    lines = [
        text_table(head, rows),
        *filter(None, [ended_early(facts)]),
        facts["verdict"]["sentence"],
        f"use: {result.recommended}",
        f"report: {result.folder / 'report.html'}",
    ]
    tell("\n".join(lines), facts)


if __name__ == "__main__":
    sys.exit(run(main))
