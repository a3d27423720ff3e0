"""``cacse-trainer models``: the field's released models, how each is read, and what was published of it.

cacse-trainer models --json
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.output import tell
from cacse_trainer.encoding.released import RELEASED, SETS, Released

EPILOG = """Each is read as the table says wherever an encoder is loaded, from the hub or from a folder of its name:

  cacse-trainer evaluate --model princeton-nlp/sup-simcse-bert-base-uncased --suite sts
  cacse-trainer evaluate --model TNCSE_BERT_CKPT/BERT_1 --model TNCSE_BERT_CKPT/BERT_2 --suite sts
  cacse-trainer evaluate --adapter SeanLee97/bellm-llama-7b-nli --suite sts

--pooling reads one otherwise. The figures are Spearman correlations ×100, as published.
"""
SHORT = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSB", "SICKR")


def parser() -> OneLineParser:
    """The command's flags."""
    return command_parser("models", "The field's released models: how they are read, what was published.", EPILOG)


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    parser().parse_args(arguments)
    rows = [(one.name, one.pooling, *figures_of(one)) for one in RELEASED]
    head = ("model", "pooling", *SHORT, "average")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    for index, one in reversed(list(enumerate(RELEASED, 1))):
        if more := how_read(one):
            lines.insert(index + 1, f"    {more}")
    facts = [{**asdict(one), "figures": dict(zip(SETS, one.figures, strict=False))} for one in RELEASED]
    tell("\n".join(line.rstrip() for line in lines), {"models": facts})


def figures_of(one: Released) -> list[str]:
    """The seven figures and their mean; a dash where none is published."""
    figures = [f"{figure:.2f}" for figure in one.figures] or ["–"] * len(SETS)
    return [*figures, f"{one.average:.2f}" if one.average is not None else "–"]


def how_read(one: Released) -> str:
    """What else a model is read with, in words."""
    said = [
        f"summed with {one.second}" if one.second else "",
        f"adapter of {one.base}" if one.base else "",
        f"prompt {one.prompt_template}" if one.prompt_template else "",
        f"cut at {one.max_seq_length} tokens" if one.max_seq_length else "",
        "closed by the EOS token" if one.append_eos else "",
        f"bidirectional from layer {one.bidirectional_start_layer}" if one.bidirectional_start_layer else "",
        f"read by cacse-trainer {one.weights}" if one.weights else "",
        one.note,
    ]
    return "; ".join(filter(None, said))


if __name__ == "__main__":
    sys.exit(run(main))
