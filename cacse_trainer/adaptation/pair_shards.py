"""Pairs that a model writes, of a corpus of any size, by shards: a csv file a block, put together at the end."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cacse_trainer.data.blocks import Filled, Part, file_of, fill, gathered
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.data.round_trip import Translate, write_pairs
from cacse_trainer.encoding.vectors.tables import hash_of_rows
from cacse_trainer.files import crc32_of, only_one, plain, writing

SUFFIX = ".csv"
GROWING = (f"[0-9]*{SUFFIX}.partial", f"[0-9]*{SUFFIX}.progress.json")
"""What `write_pairs` goes on with, within a block."""


def write_pairs_shard(
    corpus: Corpus,
    there: Translate,
    back: Translate,
    folder: Path,
    shard: tuple[int, int],
    *,
    settings: dict[str, Any],
    columns: tuple[str, str],
    show_progress_bar: bool = False,
) -> Filled:
    """Write the pairs of one shard's blocks of a corpus; see `write_pairs`, by which a block is gone on with.

    Args:
        corpus: of files; only the shard's own blocks are read. Blank rows are left out.
        there, back, settings, columns, show_progress_bar: as for `write_pairs`.
        folder: for all shards.
        shard: i and n, i from 1.

    Raises:
        UserError: see `data.blocks.fill`; or a corpus that has no blocks.
    """
    blocks = corpus.blocks()
    facts = {
        **settings,
        "columns": columns,
        "input": Path(corpus.name).name,
        "input_identity": corpus.identity(blocks),
        "column": corpus.column,
        "blocks": len(blocks),
    }

    def text_hash(block: int) -> str:
        return hash_of_rows(corpus.rows_of(blocks[block]))[1]

    def make(missing: list[int]) -> Iterator[tuple[int, Part]]:
        for block in missing:
            path = file_of(folder, SUFFIX, block)
            texts = [text for text in corpus.rows_of(blocks[block]) if text.strip()]
            how: dict[str, Any] = {"settings": settings, "columns": columns, "show_progress_bar": show_progress_bar}
            with only_one(path, wait=True):  # as by `writing_block`; it is staged, and gone on with, in its own way
                counts = write_pairs(texts, there, back, path, **how)
                part = {"rows": counts["rows"], "crc32": crc32_of(path), "rows_sha256": text_hash(block)}
            yield block, {**part, "counts": counts}

    return fill(folder, SUFFIX, plain(facts), shard, text_hash, make, GROWING)


def finish_pairs(folder: Path, output: Path) -> dict[str, int]:
    """Find all blocks of all shards there, and write their rows into one csv file, a piece at a time.

    Returns:
        The counts of `write_pairs`, of all blocks.

    Raises:
        UserError: see `data.blocks.gathered`.
    """
    _, parts = gathered(folder, SUFFIX, "pairs")
    with writing(output) as staged, staged.open("wb") as file:
        for number, name in enumerate(parts):
            with (folder / name).open("rb") as block:
                header = block.readline()
                if number == 0:
                    file.write(header)
                shutil.copyfileobj(block, file)
    names = ("rows", "empty", "unchanged")
    return {name: sum(part["counts"][name] for part in parts.values()) for name in names}
