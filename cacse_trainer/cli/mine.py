"""``cacse-trainer mine``: hard negatives for a file of pairs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cacse_trainer.adaptation.miner import RANK_RANGE, RELATIVE_MARGIN, SAMPLINGS, Mined
from cacse_trainer.adaptation.mining import finish_mining, mine_hard_negatives
from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.encoders import add_running_flags, chosen, open_encoder
from cacse_trainer.cli.output import tell
from cacse_trainer.cli.shards import add_shard_flags, check_blocks, check_finish, folder_of
from cacse_trainer.data import load_sentences
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.data.writers import check_output, write_rows
from cacse_trainer.encoding.vectors.precision import PRECISIONS
from cacse_trainer.errors import UserError
from cacse_trainer.files import delete_folder
from cacse_trainer.settings.command_line import count, seed
from cacse_trainer.settings.resources import resolve_resource

SAMPLE_ROWS, SHOWN = 3, 100

EPILOG = """examples:
  cacse-trainer mine --model A --input pairs.csv --output triplets.jsonl           (among the pairs' own positives)
  cacse-trainer mine --model A --input pairs.csv --corpus sentences.txt --output triplets.csv --negatives 4
  cacse-trainer mine --model A --input pairs.csv --output triplets.jsonl --cross_encoder B --scores
  cacse-trainer mine --model A --input pairs.jsonl --corpus docs.txt --vectors docs.npy --output t.jsonl --shard 2/8
  cacse-trainer mine --output t.jsonl --finish                                       (when 1/8 to 8/8 have ended)

Never a negative: the positive, what says the same but for white space and case, another positive of an equal anchor,
and the anchor. A text above the limits is more likely a positive that nobody has marked. Rows without enough negatives
are dropped and counted. The corpus is encoded to the disk and compared in blocks: it need not fit into memory.

With --shard i/n any scheduler starts the n commands, each on its own blocks; a repeated one goes on. Give them the
corpus's vectors (encode --shard i/n, with --prompt for a --document_prompt), else each one encodes it anew.
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser("mine", "Find hard negatives for pairs: near the anchor, and not the positive.", EPILOG)
    add = made.add_argument_group("rows in and out").add_argument
    add("--model", help="encoder that ranks: folder, hub id or package:NAME/FOLDER")
    add("--input", help="pairs: csv, tsv, jsonl or parquet file, or a hub data set")
    add("--text_columns", nargs=2, metavar=("ANCHOR", "POSITIVE"), help="of an input with other names")
    add("--corpus", help="texts to choose from, one a row; default: the pairs' own positives")
    add("--text_column", help="of a corpus with several columns")
    kept = "the corpus's, from cacse-trainer encode; default: encoded here"
    add("--vectors", type=Path, help=kept)
    add("--output", required=True, type=Path, help="a name that ends in .jsonl, .csv, .tsv or .parquet")
    add("--overwrite", action="store_true", help="replace an output that is there")
    add_shard_flags(add)
    add = made.add_argument_group("which negatives").add_argument
    add("--negatives", type=count, default=1, help="a row; default 1 (column hard_negative), else negative_1 …")
    ranks = f"ranks from 1 that may be taken; default {RANK_RANGE[0]} {RANK_RANGE[1]}"
    add("--rank_range", type=count, nargs=2, default=RANK_RANGE, metavar=("FIRST", "LAST"), help=ranks)
    add("--ceiling", type=float, help="a negative's cosine is at most this")
    add("--margin", type=float, help="and so far below the positive's")
    share = f"and below it by this share of it; default {RELATIVE_MARGIN}; 0: not above it"
    add("--relative_margin", type=float, default=RELATIVE_MARGIN, help=share)
    add("--sampling", default="top", choices=SAMPLINGS, help="top: the best-ranked; random: any that may be taken")
    add("--seed", type=seed, default=0, help="of --sampling random")
    rescored = "folder or hub id of a classifier with one label: texts that it scores above the positive are left out"
    add("--cross_encoder", help=rescored)
    add("--cross_margin", type=float, default=0.0, help="so far below the positive's logit; default 0")
    add("--scores", action="store_true", help="a column scores: the positive's and each negative's")
    add = made.add_argument_group("how").add_argument
    add("--query_prompt", default="", help="put before every anchor, such as 'query: '")
    add("--document_prompt", default="", help="put before every positive and text of the corpus")
    add("--index", default="exact", help="exact; faiss (ivf), or flat, ivf, hnsw, a faiss factory string")
    add("--search_effort", type=count, help="cells (ivf, default 32), candidates (hnsw, default 128) looked at")
    add("--precision", default="float32", choices=PRECISIONS, help="of the corpus's vectors on the disk")
    add("--folder", type=Path, help="where those lie meanwhile; default: the system's temporary folder")
    add("--batch_size", type=count, help="rows a batch; default: by a budget of tokens, which is faster")
    add_running_flags(made)
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    own = parser()
    settings = own.parse_args(arguments)
    given = {name for name, _ in own.given(arguments)}
    check_output(settings.output, settings.overwrite or settings.shard is not None)  # a finish alone writes it
    shards = folder_of(settings.output)
    if settings.finish:
        check_finish(given, "overwrite")
        _finish(settings, finish_mining(shards))
        delete_folder(shards)
        return
    if settings.input is None:
        own.error("the following arguments are required: --input")
    if settings.vectors is not None and settings.corpus is None:
        raise UserError("--vectors: belong to a --corpus; give that, too")
    if settings.vectors is not None and "precision" in given:
        raise UserError("--precision: does nothing with --vectors, which are read as they are; leave it out")
    check_blocks("shard" if settings.shard is not None else None, given, overwrite=f"delete {shards} to begin anew")
    pairs = load_sentences(resolve_resource(settings.input), settings.text_columns)
    corpus = None
    if settings.corpus is not None:
        corpus = Corpus(resolve_resource(settings.corpus), settings.text_column)
    cross_encoder = resolve_resource(settings.cross_encoder) if settings.cross_encoder is not None else None
    mined = mine_hard_negatives(
        open_encoder(settings, settings.model, settings.device),
        pairs,
        corpus,
        **chosen(settings, "negatives", "ceiling", "margin", "relative_margin", "sampling", "seed", "cross_margin"),
        **chosen(settings, "query_prompt", "document_prompt", "index", "search_effort", "precision", "scores"),
        **chosen(settings, "batch_size", "folder", "vectors", "shard"),
        output=shards,
        rank_range=tuple(settings.rank_range),
        cross_encoder=cross_encoder,
        show_progress_bar=not settings.disable_tqdm,
    )
    if settings.shard is not None:
        counts = mined.counts
        tell(
            f"{shards}: shard {'/'.join(map(str, settings.shard))}, {counts['mined']} of {counts['rows']} rows in "
            f"{counts['of_shard']} of {counts['blocks']} blocks, {counts['made']} of them mined now; when all shards "
            "are there: --finish",
            {"output": str(settings.output), **counts},
        )
        return
    write_rows(mined.rows, settings.output)
    tell(described(settings.output, mined), {"output": str(settings.output), **mined.counts})


def _finish(settings: argparse.Namespace, mined: Mined) -> None:
    write_rows(mined.rows, settings.output)
    counts = mined.counts
    words = f"{settings.output}: {counts['mined']} of {counts['rows']} rows ({counts['dropped']} dropped)"
    tell(words, {"output": str(settings.output), **counts})


def described(output: Path, mined: Mined) -> str:
    """The counts, and a few rows."""
    counts = mined.counts
    lines = [
        f"{output}: {counts['mined']} of {counts['rows']} rows ({counts['dropped']} dropped: not enough negatives)",
        f"  corpus            {counts['corpus']} distinct texts ({counts['corpus_repeated']} repeated, "
        f"{counts['corpus_blank']} blank)",
        f"  left out          {counts['above_limit']} texts by the positive's score, {counts['by_cross_encoder']} by "
        "the cross-encoder",
    ]
    if len(mined.rows):
        positive, negative = counts["positive_score"], counts["negative_score"]
        lines.append(f"  mean score        positive {positive:.3f}, negative {negative:.3f}")
    for row in mined.rows.select(range(min(SAMPLE_ROWS, len(mined.rows)))):
        lines += ["", *(f"  {name:<17} {_shown(value)}" for name, value in row.items())]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if not isinstance(value, str):
        return " ".join(f"{number:.3f}" for number in value)
    text = " ".join(value.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


if __name__ == "__main__":
    sys.exit(run(main))
