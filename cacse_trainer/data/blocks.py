"""Work on the blocks of a corpus by many processes that know nothing of each other: shard i of n, and a finish.

A folder holds a file a block, ``000000.SUFFIX`` and so on, and a record a shard, ``_shard_I_of_N.json``: what the files
depend on, and of each block its rows, a checksum of its file and a hash of the text that it was made of. Shard i of n
takes the blocks i, i + n, … By the records a broken shard goes on, also with another n, and `gathered` finds that all
blocks are there and alike.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.files import (
    check_entries,
    crc32_of,
    foreign,
    only_one,
    read_object,
    refuse_foreign,
    write_json,
    writing,
)

logger = logging.getLogger(__name__)

RECORDS = "_shard_*_of_*.json"
SHOWN = 5
Part = dict[str, Any]
"""Of a block's file: ``rows``, ``crc32``, ``rows_sha256``."""


class Filled(NamedTuple):
    """Of a shard: its blocks' files, how many blocks it has, and how many of them were made now."""

    parts: dict[str, Part]
    of_shard: int
    made: int


def fill(
    folder: Path,
    suffix: str,
    facts: dict[str, Any],
    shard: tuple[int, int],
    text_hash: Callable[[int], str],
    make: Callable[[list[int]], Iterable[tuple[int, Part]]],
    others: tuple[str, ...] = (),
) -> Filled:
    """Make the files of a shard's blocks that are not there yet.

    Args:
        folder: made where there is none, for all shards.
        suffix: of the files.
        facts: what they depend on, among it the ``input`` and the number of ``blocks``.
        shard: i and n, i from 1; n may be another one when a broken run goes on.
        text_hash: of a block, by its number, as in ``rows_sha256``.
        make: writes the files of the blocks of these numbers, at `file_of` by `writing_block`, and tells of each when
            it is whole.
        others: patterns of further files that ``make`` leaves while it works.

    Raises:
        UserError: no such shard, a folder that is a file, holds files of others or shards of other settings, or another
            process that works on this shard.
    """
    number, count = shard
    if not 1 <= number <= count:
        raise UserError(f"shard {number}/{count}: give i/n with i from 1 to n, such as 2/8")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output {folder}: is a file, and shards need a folder; choose another name")
    with user_errors(f"output {folder}: cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
    mine = range(number - 1, facts["blocks"], count)
    record = folder / f"_shard_{number}_of_{count}.json"
    with only_one(record):
        refuse_foreign(folder, foreign(folder, (f"[0-9]*{suffix}", RECORDS, *others)))
        parts = _there(folder, suffix, facts, text_hash, mine)
        if parts:
            logger.info("shard %d/%d goes on: %d of %d blocks are there", number, count, len(parts), len(mine))
        missing = [block for block in mine if file_of(folder, suffix, block).name not in parts]
        write_json(record, {"facts": facts, "parts": parts})
        for block, part in make(missing):
            parts[file_of(folder, suffix, block).name] = part
            write_json(record, {"facts": facts, "parts": parts})
    return Filled(parts, len(mine), len(missing))


def gathered(folder: Path, suffix: str, command: str) -> tuple[dict[str, Any], dict[str, Part]]:
    """Find all blocks there, whole, and made with equal settings.

    Args:
        folder, suffix: as for `fill`.
        command: that messages name, such as ``encode``.

    Returns:
        The facts, and of each block's file in order what is recorded of it.

    Raises:
        UserError: no shards, ones of other settings, a block that is missing or damaged, or files of others.
    """
    found = records(folder) if folder.is_dir() else {}
    if not found:
        raise UserError(f"output {folder}: holds no shards; start {command} --shard 1/n to n/n with this output first")
    first = next(iter(found))
    facts = found[first]["facts"]
    for record, told in found.items():
        if differing := _differing(told["facts"], facts):
            raise UserError(
                f"output {folder}: {record.name} and {first.name} differ in {', '.join(differing)}; delete the "
                "one that is wrong, and start its shard again as the others were"
            )
    told_of = [(name, part) for told in found.values() for name, part in told["parts"].items()]
    parts: dict[str, Part] = {}
    for name, part in told_of:
        if name not in parts and _is_whole(folder / name, part):
            parts[name] = part
    names = [file_of(folder, suffix, block).name for block in range(facts["blocks"])]
    missing = [block for block, name in enumerate(names) if name not in parts]
    if missing:
        shown = ", ".join(names[block] for block in missing[:SHOWN]) + (", …" if len(missing) > SHOWN else "")
        count = max(int(record.stem.split("_")[-1]) for record in found)
        shards = ", ".join(f"{number}/{count}" for number in sorted({block % count + 1 for block in missing})[:SHOWN])
        raise UserError(
            f"output {folder}: {len(missing)} of {len(names)} blocks are missing or damaged ({shown}); start --shard "
            f"{shards} again, or --shard 1/1, which fills all gaps"
        )
    strange = [path for path in foreign(folder, (RECORDS,)) if path.name not in parts]
    if strange:
        raise UserError(f"output {folder}: holds {strange[0].name}, which belongs to no shard; move it away")
    return facts, {name: parts[name] for name in names}


def file_of(folder: Path, suffix: str, block: int) -> Path:
    """The file of a block."""
    return folder / f"{block:06d}{suffix}"


@contextlib.contextmanager
def writing_block(path: Path) -> Iterator[Path]:
    """As `writing`, by one process at a time, the others wait: shards of another n have the same block."""
    with only_one(path, wait=True), writing(path) as staged:
        yield staged


def records(folder: Path) -> dict[Path, dict[str, Any]]:
    """What the shards of a folder have recorded: ``facts`` and ``parts``.

    Raises:
        UserError: a record is damaged.
    """
    mend = "delete it, and start its shard again"
    found = {path: read_object(path, mend, facts=dict, parts=dict) for path in sorted(folder.glob(RECORDS))}
    for path, told in found.items():
        check_entries(told["facts"], str(path), mend, input=str, blocks=int)
        for part in told["parts"].values():
            check_entries(part, str(path), mend, rows=int, crc32=int, rows_sha256=str)
    return found


def _there(
    folder: Path, suffix: str, facts: dict[str, Any], text_hash: Callable[[int], str], mine: range
) -> dict[str, Part]:
    """Of a shard's blocks those whose files are whole and were made of the text as it is."""
    found: dict[str, Part] = {}
    for record, told in records(folder).items():
        if differing := _differing(told["facts"], facts):
            raise UserError(
                f"output {folder}: holds shards of other settings ({', '.join(differing)}; by {record.name}); repeat "
                "those to go on, choose another name, or delete the folder to begin anew"
            )
        for block in mine:
            path = file_of(folder, suffix, block)
            part = told["parts"].get(path.name)
            if path.name in found or part is None or not _is_whole(path, part):
                continue
            if text_hash(block) == part["rows_sha256"]:
                found[path.name] = part
    return found


def _differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Names of the facts that differ; a model's folder may lie elsewhere on another machine."""
    names = dict.fromkeys([*first, *second])
    return [name for name in names if name != "model" and first.get(name) != second.get(name)]


def _is_whole(path: Path, part: Part) -> bool:
    return path.is_file() and crc32_of(path) == part["crc32"]
