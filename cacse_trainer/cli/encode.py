"""``cacse-trainer encode``: a file of sentences to a file of vectors."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.encoders import add_encoder_flags, chosen, keep_compute, open_encoder
from cacse_trainer.cli.output import tell
from cacse_trainer.cli.shards import add_shard_flags, check_blocks, check_finish
from cacse_trainer.compute.distributed import gather_objects, join_processes, world_size
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.corpus import SHARD_ROWS, begun_in, encode_corpus
from cacse_trainer.encoding.shards import encode_shard, finish, shards_begun_in
from cacse_trainer.encoding.vectors.precision import PRECISIONS
from cacse_trainer.errors import UserError
from cacse_trainer.settings.command_line import count
from cacse_trainer.settings.resources import resolve_resource

EPILOG = """examples:
  cacse-trainer encode --model runs/cacse/export/ensemble --input sentences.txt --output vectors.npy
  cacse-trainer encode --model A --input docs.csv --text_column body --output docs.parquet     (text, embedding)
  cacse-trainer encode --model A --input corpus.txt --output small.npy --precision int8 --truncate_dim 256
  cacse-trainer encode --model A --input corpus.txt --output v.npy --device cuda:0 cuda:1      (a process each)
  torchrun --nproc_per_node 8 -m cacse_trainer.cli.encode --model A --input corpus.txt --output v.npy
  cacse-trainer encode --model A --input corpus.jsonl --output v.parquet --shard 2/64          (1/64 to 64/64, anywhere)
  cacse-trainer encode --output v.parquet --finish                                             (when all have ended)
  cacse-trainer encode --model A --input corpus.jsonl --output v.parquet --engine ray          (on a Ray cluster)

Row i of the output belongs to row i of the input, blank rows too; a missing text (null, NaN) is refused with its place.
OUTPUT.json beside it says what made it. The vectors need not fit into memory: open them with numpy.load("vectors.npy",
mmap_mode="r"), or search them with cacse-trainer search --corpus corpus.txt --vectors vectors.npy. A broken run goes on
where it stopped: repeat the command.
Several machines need a folder for the output that all of them see.

With --shard i/n any scheduler starts the n commands, at any time; none waits for another one. Each reads its own blocks
only: spans of 1 MiB of txt, tsv, jsonl; groups of rows of parquet. Csv, whose quoted fields hold line breaks,
JSON arrays and compressed files are blocks as a whole: give a folder of several. A shard that broke off is repeated.
OUTPUT is a folder then, a file a block, .npy or .parquet (id, embedding). The vectors are the same bit for bit whatever
n is, on machines of one kind with as many threads. --finish finds all shards there and equal in model and settings, and
writes OUTPUT.json, by which search --vectors OUTPUT reads them; no file is put together with another one.
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser("encode", "Encode a file of sentences into a file of vectors.", EPILOG)
    add = made.add_argument
    add("--model", help="folder, hub id or package:NAME/FOLDER; with --adapter: its base, by default")
    kinds = "txt (one sentence a line), csv, tsv, jsonl or parquet file, a folder of such, or a hub data set"
    add("--input", help=kinds)
    add("--output", required=True, type=Path, help="a name that ends in .npy or .parquet; with --shard: of a folder")
    add_shard_flags(add, "the folder OUTPUT", "OUTPUT.json")
    add(
        "--with_text",
        action="store_true",
        help="with --shard, of .parquet: a column text, which it has without --shard",
    )
    add("--text_column", help="of an input with several columns")
    add(
        "--precision",
        default="float32",
        choices=PRECISIONS,
        help="float16, int8: two bytes, one byte a number; binary: a bit",
    )
    add("--prompt_name", help="put one of the model's own prompts before every sentence, such as query or document")
    add("--prompt", help="put this text before every sentence. Default: what the folder puts there by default")
    add("--no_normalize", action="store_true", help="keep the vectors' lengths; default: scaled to 1")
    add("--batch_size", type=count, help="rows a batch; default: by a budget of tokens, which is faster")
    add("--shard_rows", type=count, default=SHARD_ROWS, help=f"lost at most when a run breaks; default {SHARD_ROWS}")
    add("--engine", default="local", choices=["local", "ray"], help="ray: on a Ray cluster, the one of RAY_ADDRESS")
    add("--workers", type=count, help="of --engine ray: actors; default: one a GPU, else one a CPU of the cluster")
    add("--device", nargs="+", help="cpu, cuda:1, …; several: a process each. Default: a GPU where there is one")
    add("--overwrite", action="store_true", help="replace an output that is there, or shards of other settings")
    add("--disable_tqdm", action="store_true", help="no progress bar")
    add_encoder_flags(made)
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    own = parser()
    settings = own.parse_args(arguments)
    given = {name for name, _ in own.given(arguments)}
    if settings.finish:
        _finish(settings, given)
        return
    if settings.input is None:
        own.error("the following arguments are required: --input")
    _check(settings, given)
    corpus = Corpus(resolve_resource(settings.input), settings.text_column)
    join_processes(settings.device)
    devices = settings.device if settings.device and len(settings.device) > 1 else None
    if devices and world_size() > 1:
        raise UserError("device: torchrun has started the processes; give one device, or none")
    if not settings.overwrite:
        in_blocks = settings.shard is not None or settings.engine == "ray"
        begun = (shards_begun_in if in_blocks else begun_in)(settings.output)
        keep_compute(settings, gather_objects(begun)[0])  # all have read it before the first one writes
    # auto and int8 are measured, or refused, where they run
    on_cpu = devices and settings.compute not in ("auto", "int8")
    first = "cpu" if on_cpu else settings.device[0] if settings.device else None
    encoder = open_encoder(settings, settings.model, first)
    started = time.perf_counter()
    described = {**encoder.described(), **encoder.settings(), "dim": encoder.encode("a").shape[0]}
    how: dict[str, Any] = {
        **chosen(settings, "precision", "batch_size"),
        "normalize": not settings.no_normalize,
        "prompt": encoder.prompt_of(settings.prompt_name, settings.prompt),
        "devices": devices,
        "show_progress_bar": not settings.disable_tqdm,
    }
    try:
        if settings.engine == "ray":
            _encode_on_ray(encoder, corpus, settings, described, how)
            return
        if settings.shard is not None:
            told = encode_shard(
                encoder, corpus, settings.output, described, settings.shard, with_text=settings.with_text, **how
            )
            tell(
                f"{settings.output}: shard {'/'.join(map(str, settings.shard))}, {told['rows']} vectors in "
                f"{told['of_shard']} of {told['blocks']} blocks, {told['encoded']} of them encoded now   "
                f"({time.perf_counter() - started:.1f} s); when all shards are there: --finish",
                {"output": str(settings.output), "seconds": time.perf_counter() - started, **told},
            )
            return
        how |= chosen(settings, "shard_rows", "overwrite")
        facts = encode_corpus(encoder, corpus, settings.output, described, **how)
    finally:
        encoder.close()
    if facts is not None:
        tell(
            f"{settings.output}: {facts['rows']} vectors of {facts['dim']} dimensions, {facts['precision']}, "
            f"{settings.output.stat().st_size / 1e6:.1f} MB   ({time.perf_counter() - started:.1f} s)",
            {"output": str(settings.output), "seconds": time.perf_counter() - started, **facts},
        )


def _encode_on_ray(
    encoder: BaseEncoder, corpus: Corpus, settings: argparse.Namespace, described: dict[str, Any], how: dict[str, Any]
) -> None:
    from cacse_trainer.integrations.ray import encode_on_ray

    started = time.perf_counter()
    devices = how.pop("devices")
    if devices:
        raise UserError("device: --engine ray starts an actor a device; give one kind of device, or none")
    device = settings.device[0] if settings.device else None
    more = {"workers": settings.workers, "device": device, "with_text": settings.with_text}
    _tell_finished(settings.output, encode_on_ray(encoder, corpus, settings.output, described, **how, **more), started)


def _check(settings: argparse.Namespace, given: set[str]) -> None:
    """Refuse an output among the texts, and flags that do nothing with ``--shard``, or without it."""
    folder = Path(resolve_resource(settings.input)).expanduser()
    if folder.is_dir() and settings.output.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"output {settings.output}: lies in the input's folder, among the texts; choose a place outside"
        )
    on_ray = settings.engine == "ray"
    if settings.shard is None and settings.with_text and not on_ray:
        raise UserError("--with_text: belongs to --shard and --engine ray; a .parquet of a whole run has its texts")
    if on_ray and settings.shard is not None:
        raise UserError("--engine ray: deals out the blocks by itself; leave out --shard")
    if settings.workers is not None and not on_ray:
        raise UserError("--workers: belongs to --engine ray; give that, too")
    check_blocks(
        "engine ray" if on_ray else "shard" if settings.shard is not None else None,
        given,
        overwrite="delete the output's folder to begin anew",
        shard_rows="what is lost at most when a shard breaks is a block",
    )


def _finish(settings: argparse.Namespace, given: set[str]) -> None:
    check_finish(given)
    _tell_finished(settings.output, finish(settings.output))


def _tell_finished(output: Path, facts: dict[str, Any], started: float | None = None) -> None:
    taken = {} if started is None else {"seconds": time.perf_counter() - started}
    words = f"   ({taken['seconds']:.1f} s)" if taken else ""
    tell(
        f"{output}: {facts['rows']} vectors of {facts['dim']} dimensions, {facts['precision']}, in "
        f"{facts['blocks']} files{words}",
        {"output": str(output), **taken, **{name: value for name, value in facts.items() if name != "parts"}},
    )


if __name__ == "__main__":
    sys.exit(run(main))
