"""A corpus of any size to vectors by many processes that know nothing of each other: shard i of n, and a finish.

The corpus is cut into blocks that depend on its files alone (`FileSource.blocks`). They are shared out, recorded and
gone on with by `data.blocks`. A block is encoded by itself, so that its vectors are the same whatever n is, and is a
file of its own in the folder ``OUTPUT``: ``000000.npy``, or ``000000.parquet`` with the columns ``id`` (`ID_ROWS` times
the block's number, and the row in it), ``text`` if asked, and ``embedding``.
`finish` finds that all blocks are there and equal in model and settings, and writes ``OUTPUT.json`` beside the
folder, with the files in their order. No file is put together with another one.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from cacse_trainer.data.blocks import Part, file_of, fill, gathered, records, writing_block
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.data.sources import FileSource
from cacse_trainer.encoding.base import BaseEncoder, Device
from cacse_trainer.encoding.corpus import FORMATS, SHARD_ROWS, is_about_vectors
from cacse_trainer.encoding.vectors.exact import no_rows
from cacse_trainer.encoding.vectors.tables import RowsHash, hash_of_rows, write_parquet, write_table
from cacse_trainer.errors import UserError
from cacse_trainer.files import crc32_of, plain, refuse_foreign, write_json

ID_ROWS = 2**32


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
    engine: Callable[[list[int]], Iterator[tuple[int, Part]]] | None = None,
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
        engine: calls `encode_blocks` elsewhere for the blocks of these numbers; default: here.

    Returns:
        The facts, the shard's ``rows``, how many blocks are ``of_shard``, and how many of these were ``encoded`` now.

    Raises:
        UserError: wrong endings, no such shard, a corpus without blocks, an output that is a file, holds files of
            others or shards of other settings, or another process that encodes this shard.
    """
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

    def encoded(missing: list[int]) -> Iterator[tuple[int, Part]]:
        words = f"Encoding shard {'/'.join(map(str, shard))}"
        with tqdm(desc=words, unit=" sentences", disable=not show_progress_bar) as bar:
            how: dict[str, Any] = {
                "with_text": with_text,
                "normalize": normalize,
                "precision": precision,
                "batch_size": batch_size,
            }
            how |= {"prompt": prompt, "devices": devices, "advance": bar.update}
            yield from encode_blocks(encoder, corpus, output, blocks, missing, dim=facts["dim"], **how)

    def text_hash(block: int) -> str:
        return hash_of_rows(corpus.rows_of(blocks[block]))[1]

    filled = fill(output, output.suffix, facts, shard, text_hash, engine or encoded)
    rows = sum(part["rows"] for part in filled.parts.values())
    return {**facts, "rows": rows, "of_shard": filled.of_shard, "encoded": filled.made}


def shards_begun_in(output: Path) -> str | None:
    """What the shards of a folder computed in, as the first record says; None: there is none yet."""
    found: list[str | None] = [told["facts"].get("dtype") for told in records(output).values()]
    return found[0] if found else None


def encode_blocks(
    encoder: BaseEncoder,
    corpus: Corpus,
    output: Path,
    blocks: list[FileSource],
    wanted: list[int],
    *,
    dim: int,
    with_text: bool = False,
    normalize: bool = True,
    precision: str = "float32",
    batch_size: int | None = None,
    prompt: str | None = None,
    devices: list[Device] | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Iterator[tuple[int, Part]]:
    """Encode blocks of a corpus, each into its file; arguments as for `encode_shard`.

    Yields:
        Each block's number, and what is recorded of its file.
    """
    waiting: deque[tuple[int, list[str]]] = deque()
    tables = encoder.encode_stream(
        _texts(corpus, blocks, wanted, waiting),
        None,
        normalize=normalize,
        precision=precision,
        batch_size=batch_size,
        prompt=prompt,
        device=devices,
        advance=advance,
    )
    empty = no_rows(precision, dim)
    done = ((*waiting.popleft(), table if len(table) else empty) for table in tables)
    for block, found in groupby(done, lambda row: row[0]):
        path = file_of(output, output.suffix, block)
        yield block, _write(path, block, ((text, table) for _, text, table in found), with_text)


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

    with writing_block(path) as staged:
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
    facts, parts = gathered(output, output.suffix, "encode")
    rows = sum(part["rows"] for part in parts.values())
    if rows == 0:
        raise UserError(f"output {output}: {facts['input']} is empty; there is nothing to encode")
    about = output.with_name(f"{output.name}.json")
    told = {**facts, "rows": rows, "parts": [{"file": name, **part} for name, part in parts.items()]}
    refuse_foreign(about, [about] if about.exists() and not is_about_vectors(about) else [])
    write_json(about, told)
    return told
