"""What the commands share that work by shards: the flags ``--shard`` and ``--finish``, and what these refuse."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cacse_trainer.errors import UserError
from cacse_trainer.settings.command_line import shard_of


def add_shard_flags(add: Callable[..., Any], where: str = "the folder OUTPUT.shards", wrote: str = "OUTPUT") -> None:
    """``--shard`` and ``--finish``.

    Args:
        add: `add_argument` of a parser or a group.
        where: the files of the blocks lie.
        wrote: what a finish writes.
    """
    add("--shard", type=shard_of, metavar="I/N", help=f"only the I-th of N parts, a file a block in {where}")
    finish = f"with the output alone: find all shards there and equal, and write {wrote}"
    add("--finish", action="store_true", help=finish)


def folder_of(output: Path) -> Path:
    """Where the shards of an output lie that becomes one file."""
    return output.with_name(f"{output.name}.shards")


def check_finish(given: set[str], *more: str) -> None:
    """Refuse flags that do nothing with ``--finish``.

    Args:
        given: the names of all that were given.
        more: that it takes besides ``--output``.

    Raises:
        UserError: there is one.
    """
    others = sorted(given - {"", "finish", "output", "quiet", "json", "disable_tqdm", *more})
    if others:
        raise UserError(f"--{others[0]}: does nothing with --finish, which needs the output alone; leave it out")


def check_blocks(flag: str | None, given: set[str], **instead: str) -> None:
    """Refuse what does not go with a flag by which a corpus is worked on in blocks.

    Args:
        flag: such as ``shard``; None: it was not given.
        given: the names of all flags that were given.
        instead: of flags that do nothing with it, what to do.

    Raises:
        UserError: there is one, or torchrun has started several processes.
    """
    if flag is None:
        return
    for name, mend in instead.items():
        if name in given:
            raise UserError(f"--{name}: does nothing with --{flag}; {mend}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"--{flag}: torchrun has started several processes; start one a shard, without it")
