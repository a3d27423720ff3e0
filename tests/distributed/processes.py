"""Several gloo processes that each call one function, started and ended without a hang."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _enter(rank: int, work: Callable, world: int, folder: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world)
    )
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    assert dist.get_world_size() == world
    work(rank, *arguments)
    # No destroy_process_group: gloo's destructor, called under the interpreter's lock, waits for a thread that may be
    # waiting for that lock (seen in one run of ten). Each process leaves at once, when all have done their work.
    Path(folder, f"done.{rank}").touch()
    while not all(Path(folder, f"done.{other}").exists() for other in range(world)):
        time.sleep(0.02)
    sys.stdout.flush()
    os._exit(0)


def run_processes(work: Callable, world: int, folder: str, *arguments: object) -> None:
    """work(rank, *arguments) on `world` processes of one gloo group; they meet in `folder`. A failure of one is raised.

    work must be a function of a module: the processes are spawned.
    """
    mp.spawn(_enter, (work, world, folder, arguments), nprocs=world)
