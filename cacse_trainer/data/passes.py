"""A streamed text as one course of whole batches, pass after pass."""

import copy
from collections.abc import Iterator
from typing import Any

import datasets
import torch

from cacse_trainer.errors import UserError


class Passes(torch.utils.data.IterableDataset):
    """The rows of a stream without an end: each pass is shuffled anew, and its last incomplete batch dropped.

    Where a run stands in it follows from the batches that it has taken, whatever the passes' lengths: a resumed run
    skips as many. A pass that is an epoch of the trainer's would be counted as longer than it is, and would cut off the
    gradient accumulation of its last step.

    Args:
        stream: read anew on each pass, with ``set_epoch`` of the pass's number.
        batch: rows of a batch, over all processes.

    Raises:
        UserError: while it is read, where the stream has fewer rows than a batch.
    """

    def __init__(self, stream: datasets.IterableDataset, batch: int) -> None:
        super().__init__()
        self.stream, self.batch = stream, batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        stream = copy.deepcopy(self.stream)  # the number of its pass lies in memory that all workers share
        number, rows = 0, -1
        while rows != 0:  # a worker may have no part of the stream
            stream.set_epoch(number)
            whole, rest, rows = 0, [], 0
            for row in stream:
                rest.append(row)
                rows += 1
                if len(rest) == self.batch:
                    yield from rest
                    whole, rest = whole + 1, []
            if rows and not whole:
                raise UserError(
                    f"the stream has {rows} rows, fewer than one batch of {self.batch}, and incomplete batches are "
                    "dropped; give more text or a smaller per_device_train_batch_size"
                )
            number += 1
