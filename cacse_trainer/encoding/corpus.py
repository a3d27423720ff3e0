"""A corpus of any size to a file of vectors: in shards that are written whole, so that a broken run goes on.

The shards lie in ``OUTPUT.partial/`` until all are there; then they become one ``.npy`` (open it with
``numpy.load(path, mmap_mode="r")``) or ``.parquet`` file (columns ``text``, ``embedding``). A shard's name holds a hash
of what its vectors depend on (model, settings, text) and its checksum, so that no other one is ever taken for it. On
several processes each takes as many of the missing shards, neighbours, and reads only the parts of the files
(`Corpus.parts`) that hold their rows; the first one has read all of them once before, for the hash. Row i of the output
belongs to row i of the input, blank ones too.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from cacse_trainer.compute.distributed import alone, barrier, gather_objects, rank, world_size
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.data.sources import Source
from cacse_trainer.encoding.base import BaseEncoder, Device
from cacse_trainer.encoding.vectors.tables import RowsHash, write_parquet, write_table
from cacse_trainer.errors import UserError
from cacse_trainer.files import (
    crc32_of,
    delete_folder,
    foreign,
    only_one,
    put_in_place,
    read_object,
    refuse_foreign,
    sha256_of,
    write_json,
    writing,
)

logger = logging.getLogger(__name__)

SHARD_ROWS = 16_384
FACTS = "facts.json"
SHARDS = "shard_*.npy"
REPEAT = "repeat the command with --overwrite to begin anew"
FORMATS = (".npy", ".parquet")
OF_VECTORS = {"input", "rows", "column", "dim", "normalize", "precision"}
"""In every ``OUTPUT.json``."""


def encode_corpus(
    encoder: BaseEncoder,
    corpus: Corpus,
    output: Path,
    facts: dict[str, Any],
    *,
    shard_rows: int = SHARD_ROWS,
    normalize: bool = True,
    precision: str = "float32",
    batch_size: int | None = None,
    prompt: str | None = None,
    devices: list[Device] | None = None,
    overwrite: bool = False,
    show_progress_bar: bool = False,
) -> dict[str, Any] | None:
    """Encode all rows of a corpus into a file.

    Args:
        encoder: with its ``truncate_dim``.
        corpus: read once to count its rows, and once more by the processes together.
        output: ``.npy`` or ``.parquet``; beside it ``OUTPUT.json`` says what made it.
        facts: of the encoder, for that file, its ``dim`` among them; a run with other ones is not gone on with.
        shard_rows: rows that are lost at most, a process, when the run breaks.
        normalize, precision, batch_size, prompt: as for `BaseEncoder.encode`.
        devices: several: a process each (without torchrun).
        overwrite: replace an output that is there, and forget shards of other settings.
        show_progress_bar: on standard error, with the rate and the time left.

    Returns:
        What ``OUTPUT.json`` holds, on the first process; None on the others.

    Raises:
        UserError: wrong endings, an empty corpus, an output that is there, shards of other settings, files of others in
            the place of those or of ``OUTPUT.json``, or another process that writes the output.
    """
    if output.suffix not in FORMATS:
        raise UserError(f"output {output}: give a name that ends in {' or '.join(FORMATS)}")
    if shard_rows < 1:
        raise UserError(f"shard_rows {shard_rows}: at least 1")
    parts = corpus.parts() if world_size() > 1 else corpus.sources  # a message of a whole file knows the line's number
    how = {"shard_rows": shard_rows, "normalize": normalize, "precision": precision, **encoder.prompt_facts(prompt)}
    with ExitStack() as held:
        told: Any = None
        if rank() == 0:
            try:
                told = _begin(held, output, corpus, parts, facts, how, overwrite)
            except UserError as error:  # the others would wait for ever
                told = error
        told = gather_objects(told)[0]
        if isinstance(told, UserError):
            raise told
        facts, missing, counts = told
        key, folder = _key(facts), _folder(output)
        processes = world_size()
        mine = np.array_split(np.array(missing, dtype=int), processes)[rank()].tolist()  # neighbours share their blocks
        rows = sum(min(shard_rows, facts["rows"] - shard * shard_rows) for shard in missing)
        bar = tqdm(total=rows, desc="Encoding", unit=" sentences", disable=not show_progress_bar or rank() > 0)
        with bar, alone():
            tables = encoder.encode_stream(
                _rows_of(corpus, list(zip(parts, counts, strict=True)), mine, shard_rows),
                shard_rows,
                normalize=normalize,
                precision=precision,
                batch_size=batch_size,
                prompt=prompt,
                device=devices,
                advance=lambda count: bar.update(min(count * processes, rows - bar.n)),
            )
            for shard, table in zip(mine, tables, strict=True):
                _write_shard(folder, shard, key, table)
        barrier()
        return _merge(folder, corpus, output, facts) if rank() == 0 else None


def begun_in(output: Path) -> str | None:
    """What a run that broke off before its output was whole computed in, as its facts say; None: there is none."""
    path = _folder(output) / FACTS
    found: str | None = read_object(path, REPEAT).get("dtype") if path.is_file() else None
    return found


def _begin(
    held: ExitStack,
    output: Path,
    corpus: Corpus,
    parts: Sequence[Source],
    facts: dict[str, Any],
    how: dict[str, Any],
    overwrite: bool,
) -> tuple[dict[str, Any], list[int], list[int]]:
    """What is encoded, the shards that are not there yet, and the rows of each part of the corpus.

    ``held`` keeps the output to this run.
    """
    folder, about = _folder(output), _about(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        held.enter_context(only_one(output))
        found = [path for path in (output, about) if path.exists()]
        if found and not overwrite and not (found == [output] and _put_there(folder, output)):
            raise UserError(f"output {found[0]} is there already; choose another name, or --overwrite")
        refuse_foreign(about, [about] if about in found and not is_about_vectors(about) else [])
        if output.is_dir():
            raise UserError(f"output {output} is a folder; choose another name")
        refuse_foreign(folder, foreign(folder, (FACTS, SHARDS)))
        hashed, counts = RowsHash(), []
        for part in parts:
            before = hashed.count
            for strings in corpus.strings_of(part):
                hashed.add(strings)
            counts.append(hashed.count - before)
        rows = hashed.count
        if rows == 0:
            raise UserError(f"{corpus.name}: is empty; there is nothing to encode")
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"output {output}: cannot be written ({error.strerror})") from error
    facts = {
        **facts,
        "input": Path(corpus.name).name,
        "input_sha256": sha256_of(Path(corpus.name)) if Path(corpus.name).is_file() else None,
        "rows_sha256": hashed.hexdigest(),
        "column": corpus.column,
        "rows": rows,
        **how,
    }
    path = folder / FACTS
    if overwrite or not path.is_file():
        write_json(path, facts)
    else:
        former = read_object(path, REPEAT)
        differing = [name for name in facts if former.get(name) != facts[name]]
        if differing:
            raise UserError(
                f"{folder}: holds shards of other settings ({', '.join(differing)}); "
                "repeat those to go on, or --overwrite to begin anew"
            )
    key = _key(facts)
    for shard in folder.glob(SHARDS):
        if shard.name.split(".")[1:-1] != [key, f"{crc32_of(shard):08x}"]:  # another one's, or damaged
            shard.unlink()
    shards = range(-(-rows // how["shard_rows"]))
    missing = [shard for shard in shards if not _shard(folder, shard, key)]
    if len(missing) < len(shards):
        logger.info("going on: %d of %d shards are there", len(shards) - len(missing), len(shards))
    return facts, missing, counts


def _put_there(folder: Path, output: Path) -> bool:
    """Whether an output without ``OUTPUT.json`` is what a run put there that broke off before it wrote that."""
    try:
        crc32 = json.loads((folder / FACTS).read_text(encoding="utf-8"))["crc32"]
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return bool(output.is_file() and crc32 == crc32_of(output))


def is_about_vectors(about: Path) -> bool:
    """Whether a file that is there is an ``OUTPUT.json``."""
    try:
        found = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and set(found) >= OF_VECTORS


def _about(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


def _folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def _key(facts: dict[str, Any]) -> str:
    return hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:16]


def _rows_of(corpus: Corpus, parts: list[tuple[Source, int]], shards: list[int], shard_rows: int) -> Iterator[str]:
    """The sentences of some shards; of the parts, given with their rows, only those are read that hold some of them."""
    wanted, first = set(shards), 0
    for part, rows in parts:
        numbers = range(first, first + rows)
        first += rows
        if wanted.isdisjoint(range(numbers.start // shard_rows, (numbers.stop - 1) // shard_rows + 1)):
            continue
        for i, sentence in zip(numbers, corpus.rows_of(part), strict=True):
            if i // shard_rows in wanted:
                yield sentence


def _write_shard(folder: Path, number: int, key: str, table: np.ndarray) -> None:
    staged = folder / f".{number:06d}.partial"
    write_table(staged, [table], len(table))
    put_in_place(staged, folder / f"shard_{number:06d}.{key}.{crc32_of(staged):08x}.npy")


def _shard(folder: Path, number: int, key: str) -> Path | None:
    return next(folder.glob(f"shard_{number:06d}.{key}.*.npy"), None)


def _merge(folder: Path, corpus: Corpus, output: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """All shards as one file, moved to its place when it is whole."""
    key, about, partial = _key(facts), _about(output), dict(facts)
    shards = [_shard(folder, number, key) for number in range(-(-facts["rows"] // facts.pop("shard_rows")))]
    tables = (np.load(shard) for shard in shards if shard is not None)
    with writing(output) as staged:
        if output.suffix == ".npy":
            write_table(staged, tables, facts["rows"])
        else:
            sentences = iter(corpus)
            write_parquet(
                staged,
                (({"text": pa.array(islice(sentences, len(table)), pa.string())}, table) for table in tables),
            )
        facts["crc32"] = crc32_of(staged)
        write_json(folder / FACTS, {**partial, "crc32": facts["crc32"]})  # by it a run that breaks off here is known
        about.unlink(missing_ok=True)  # it must never speak of other vectors
    write_json(about, facts)
    delete_folder(folder)
    return facts
