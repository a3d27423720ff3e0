"""A corpus of any size to vectors by many processes that know nothing of each other: shard i of n, and a finish.

The corpus is cut into blocks that depend on its files alone (`FileSource.blocks`); shard i of n takes i, i + n, … A
block is encoded by itself, so that its vectors are the same whatever n is, and is a file of its own in the folder
``OUTPUT``: ``000000.npy``, or ``000000.parquet`` with the columns ``id`` (`ID_ROWS` times the block's number, and the
row in it), ``text`` if asked, and ``embedding``. A shard's record ``_shard_I_of_N.json`` holds what the vectors
depend on, and of each block the rows, a checksum of the file and a hash of the text; by it a broken shard goes on.
`finish` finds that all blocks are there and equal in model and settings, and writes ``OUTPUT.json`` beside the
folder, with the files in their order. No file is put together with another one.
"""

import logging
from collections import deque
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from cacse_trainer.data.corpus import Corpus
from cacse_trainer.data.sources import FileSource
from cacse_trainer.encoding.base import BaseEncoder, Device
from cacse_trainer.encoding.corpus import FORMATS, SHARD_ROWS, is_about_vectors
from cacse_trainer.encoding.vectors.exact import no_rows
from cacse_trainer.encoding.vectors.tables import RowsHash, hash_of_rows, write_parquet, write_table
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.files import (
    check_entries,
    crc32_of,
    foreign,
    only_one,
    plain,
    read_object,
    refuse_foreign,
    write_json,
    writing,
)

logger = logging.getLogger(__name__)

RECORDS = "_shard_*_of_*.json"
ID_ROWS = 2**32
SHOWN = 5
Part = dict[str, Any]
"""Of a block's file: ``rows``, ``crc32``, ``rows_sha256``."""


def encode_shard(
    encoder: BaseEncoder,
    corpus: Corpus,
    output: Path,
    facts: dict[str, Any],
    shard: tuple[int, int],
    *,
    with_text: bool = False,
    normalize: bool = True,
    precision: str = "float32",
    batch_size: int | None = None,
    prompt: str | None = None,
    devices: list[Device] | None = None,
    show_progress_bar: bool = False,
) -> dict[str, Any]:
    """Encode the blocks of one shard that are not there yet.

    Args:
        encoder: with its ``truncate_dim``.
        corpus: of files; only the shard's own blocks are read.
        output: a folder, made where there is none, for all shards; its name ends in ``.npy`` or ``.parquet``.
        facts: of the encoder, its ``dim`` among them.
        shard: i and n, i from 1; n may be another one when a broken run goes on.
        with_text: the texts beside the vectors; of parquet.
        normalize, precision, batch_size, prompt: as for `BaseEncoder.encode_stream`.
        devices: several: a process each.
        show_progress_bar: on standard error.

    Returns:
        The facts, the shard's ``rows``, how many blocks are ``of_shard``, and how many of these were ``encoded`` now.

    Raises:
        UserError: wrong endings, no such shard, a corpus without blocks, an output that is a file, holds files of
            others or shards of other settings, or another process that encodes this shard.
    """
    number, count = shard
    if not 1 <= number <= count:
        raise UserError(f"shard {number}/{count}: give i/n with i from 1 to n, such as 2/8")
    if output.suffix not in FORMATS:
        raise UserError(f"output {output}: give a name that ends in {' or '.join(FORMATS)}")
    if with_text and output.suffix != ".parquet":
        raise UserError(f"with_text: {output.suffix} holds numbers only; give an output that ends in .parquet")
    blocks = corpus.blocks()
    facts = plain(
        {
            **facts,
            "input": Path(corpus.name).name,
            "input_identity": corpus.identity(blocks),
            "column": corpus.column,
            "blocks": len(blocks),
            "with_text": with_text,
            "block_rows": SHARD_ROWS,  # at once; the batches depend on it, and by them a vector's last bits
            "normalize": normalize,
            "precision": precision,
            "batch_size": batch_size,
            "tokens_per_batch": encoder.tokens_per_batch,
            **encoder.prompt_facts(prompt),
        }
    )
    mine = range(number - 1, len(blocks), count)
    record = output / f"_shard_{number}_of_{count}.json"
    if output.exists() and not output.is_dir():
        raise UserError(f"output {output}: is a file, and shards need a folder; choose another name")
    with user_errors(f"output {output}: cannot be written"):
        output.mkdir(parents=True, exist_ok=True)
    with only_one(record):
        refuse_foreign(output, foreign(output, (f"[0-9]*{output.suffix}", RECORDS)))
        parts = _there(output, facts, corpus, blocks, mine)
        if parts:
            logger.info("shard %d/%d goes on: %d of %d blocks are there", number, count, len(parts), len(mine))
        missing = [block for block in mine if _file(output, block) not in parts]
        write_json(record, {"facts": facts, "parts": parts})
        waiting: deque[tuple[int, list[str]]] = deque()
        with tqdm(desc=f"Encoding shard {number}/{count}", unit=" sentences", disable=not show_progress_bar) as bar:
            tables = encoder.encode_stream(
                _texts(corpus, blocks, missing, waiting),
                None,
                normalize=normalize,
                precision=precision,
                batch_size=batch_size,
                prompt=prompt,
                device=devices,
                advance=bar.update,
            )
            empty = no_rows(precision, facts["dim"])
            done = ((*waiting.popleft(), table if len(table) else empty) for table in tables)
            for block, found in groupby(done, lambda row: row[0]):
                name = _file(output, block)
                parts[name] = _write(output / name, block, ((text, table) for _, text, table in found), with_text)
                write_json(record, {"facts": facts, "parts": parts})
    rows = sum(part["rows"] for part in parts.values())
    return {**facts, "rows": rows, "of_shard": len(mine), "encoded": len(missing)}


def _there(
    output: Path, facts: dict[str, Any], corpus: Corpus, blocks: list[FileSource], mine: range
) -> dict[str, Part]:
    """Of a shard's blocks those whose files are whole and were made of the text as it is."""
    found: dict[str, Part] = {}
    for record, told in _records(output).items():
        if differing := _differing(told["facts"], facts):
            raise UserError(
                f"output {output}: holds shards of other settings ({', '.join(differing)}; by {record.name}); repeat "
                "those to go on, choose another name, or delete the folder to begin anew"
            )
        for block in mine:
            name = _file(output, block)
            part = told["parts"].get(name)
            if name in found or part is None or not _is_whole(output / name, part):
                continue
            if hash_of_rows(corpus.rows_of(blocks[block]))[1] == part["rows_sha256"]:
                found[name] = part
    return found


def _records(output: Path) -> dict[Path, dict[str, Any]]:
    mend = "delete it, and start its shard again"
    found = {path: read_object(path, mend, facts=dict, parts=dict) for path in sorted(output.glob(RECORDS))}
    for path, told in found.items():
        check_entries(told["facts"], str(path), mend, input=str, blocks=int, dim=int, precision=str)
        for part in told["parts"].values():
            check_entries(part, str(path), mend, rows=int, crc32=int, rows_sha256=str)
    return found


def _differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Names of the facts that differ; a model's folder may lie elsewhere on another machine."""
    names = dict.fromkeys([*first, *second])
    return [name for name in names if name != "model" and first.get(name) != second.get(name)]


def _is_whole(path: Path, part: Part) -> bool:
    return path.is_file() and crc32_of(path) == part["crc32"]


def _file(output: Path, block: int) -> str:
    return f"{block:06d}{output.suffix}"


def _texts(
    corpus: Corpus, blocks: list[FileSource], wanted: list[int], waiting: deque[tuple[int, list[str]]]
) -> Iterator[list[str]]:
    """The texts of the blocks, some of one block at a time; an empty block is an empty list."""
    for block in wanted:
        rows = corpus.rows_of(blocks[block])
        texts = list(islice(rows, SHARD_ROWS))
        while True:
            waiting.append((block, texts))
            yield texts
            if not (texts := list(islice(rows, SHARD_ROWS))):
                break


def _write(path: Path, block: int, found: Iterator[tuple[list[str], np.ndarray]], with_text: bool) -> Part:
    """A block's file, and what is recorded of it."""
    hashed = RowsHash()

    def columns() -> Iterator[tuple[dict[str, pa.Array], np.ndarray]]:
        for texts, table in found:
            first = block * ID_ROWS + hashed.count
            own: dict[str, pa.Array] = {"id": pa.array(range(first, first + len(texts)), pa.int64())}
            if with_text:
                own["text"] = pa.array(texts, pa.string())
            for _ in hashed.over(texts):
                pass
            yield own, table

    with writing(path) as staged:
        if path.suffix == ".npy":
            write_table(staged, (table for _, table in columns()))
        else:
            write_parquet(staged, columns())
        crc32 = crc32_of(staged)
    return {"rows": hashed.count, "crc32": crc32, "rows_sha256": hashed.hexdigest()}


def finish(output: Path) -> dict[str, Any]:
    """Find all blocks there, whole, and equal in model and settings; write ``OUTPUT.json``, by which they are read.

    Args:
        output: as for `encode_shard`; neither the encoder nor the corpus is needed.

    Returns:
        What ``OUTPUT.json`` holds: the facts, the number of ``rows``, and ``parts``, the ``file``, ``rows``, ``crc32``
        and ``rows_sha256`` of each block in order.

    Raises:
        UserError: no shards, ones of other settings, a block that is missing or damaged, files of others, or a corpus
            without rows.
    """
    records = _records(output) if output.is_dir() else {}
    if not records:
        raise UserError(f"output {output}: holds no shards; start encode --shard 1/n to n/n with this output first")
    first = next(iter(records))
    facts = records[first]["facts"]
    for record, told in records.items():
        if differing := _differing(told["facts"], facts):
            raise UserError(
                f"output {output}: {record.name} and {first.name} differ in {', '.join(differing)}; delete the "
                "one that is wrong, and start its shard again as the others were"
            )
    told_of = [(name, part) for told in records.values() for name, part in told["parts"].items()]
    parts: dict[str, Part] = {}
    for name, part in told_of:
        if name not in parts and _is_whole(output / name, part):
            parts[name] = part
    names = [_file(output, block) for block in range(facts["blocks"])]
    missing = [block for block, name in enumerate(names) if name not in parts]
    if missing:
        shown = ", ".join(names[block] for block in missing[:SHOWN]) + (", …" if len(missing) > SHOWN else "")
        count = max(int(record.stem.split("_")[-1]) for record in records)
        shards = ", ".join(f"{number}/{count}" for number in sorted({block % count + 1 for block in missing})[:SHOWN])
        raise UserError(
            f"output {output}: {len(missing)} of {len(names)} blocks are missing or damaged ({shown}); start --shard "
            f"{shards} again, or --shard 1/1, which fills all gaps"
        )
    strange = [path for path in foreign(output, (RECORDS,)) if path.name not in parts]
    if strange:
        raise UserError(f"output {output}: holds {strange[0].name}, which belongs to no shard; move it away")
    rows = sum(part["rows"] for part in parts.values())
    if rows == 0:
        raise UserError(f"output {output}: {facts['input']} is empty; there is nothing to encode")
    about = output.with_name(f"{output.name}.json")
    told = {**facts, "rows": rows, "parts": [{"file": name, **parts[name]} for name in names]}
    refuse_foreign(about, [about] if about.exists() and not is_about_vectors(about) else [])
    write_json(about, told)
    return told
