"""What several processes share: rows gathered with their gradient, and objects gathered without one.

Every function is the identity on one process, so callers need no branch.
"""

import contextlib
import datetime
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

logger = logging.getLogger(__name__)

_working_alone = False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process counts as the only one: for work that the first process does while the others wait."""
    global _working_alone
    before, _working_alone = _working_alone, True
    try:
        yield
    finally:
        _working_alone = before


def is_distributed() -> bool:
    """True when this process is one of several that talk to each other."""
    return not _working_alone and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if is_distributed() else 0


def launched_alone() -> str | None:
    """What to tell where ``accelerate launch`` was asked for several processes and has started this one only.

    It does so with ``--cpu``, and wherever it finds no GPU, unless MPI starts them. Of several it leaves the address to
    meet at in the environment, and only torchrun and MPI say there how many there are.
    """
    environment = os.environ
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment
    counted = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    if not by_accelerate or any(name in environment for name in counted):
        return None
    return (
        "accelerate launch was asked for several processes and has started one: without a GPU it needs MPI for more; "
        "start them with torchrun --nproc_per_node N -m cacse_trainer.cli.… (bash run_unsup_example.sh --nproc N)"
    )


def join_processes(devices: Sequence[str] | None) -> None:
    """Join the other processes when torchrun started several; each takes the GPU of its number."""
    if (told := launched_alone()) is not None:
        logger.warning("%s", told)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    on_gpu = torch.cuda.is_available() and (not devices or list(devices) == ["cuda"])
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # the others wait while one process fits classifiers or merges files
    dist.init_process_group("cuda:nccl,cpu:gloo" if on_gpu else "gloo", timeout=datetime.timedelta(hours=12))


class _GatherRows(torch.autograd.Function):
    """all_gather whose backward sums what every process sent back for this process's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """(n, …) on each of W processes → (W·n, …) on all of them, in the order of the ranks, with gradient.

    Every process then computes the loss of the global batch, so the gradient that reaches the local rows is W times
    the one-process gradient; DistributedDataParallel averages over W, which makes it the one-process gradient exactly.
    All processes must pass the same n (training drops the last incomplete batch).
    """
    return _GatherRows.apply(rows) if is_distributed() else rows


def barrier() -> None:
    """Wait for the other processes."""
    if is_distributed():
        dist.barrier()


def any_process(value: bool, device: torch.device) -> bool:
    """Whether the value is true on any process; the same answer on every one. ``device``: the processes' own."""
    if not is_distributed():
        return value
    flag = torch.tensor([int(value)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def shared_rows(rows: Tensor, negatives: str) -> Tensor:
    """The rows that a row is compared with: those of all processes with ``negatives`` ``global``, else its own's."""
    return gather_rows(rows) if negatives == "global" else rows


def gather_objects(value: Any) -> list[Any]:
    """One picklable object a process → the list of all of them, in the order of the ranks, on every process."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
