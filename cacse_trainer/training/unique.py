"""Batches whose rows share no sentence: a sentence of another row is then never a row's own, in any column."""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np
from datasets import Dataset, Value
from torch.utils.data import Sampler

from cacse_trainer.data.collator import text_id
from cacse_trainer.errors import UserError
from cacse_trainer.training.resumable import EpochOrder

READ_AT_ONCE = 10_000


class UniqueOrder(EpochOrder):
    """The order of an `EpochOrder`, rearranged so that each batch after the other holds no sentence in two rows.

    Every epoch has as many batches as there are whole ones in the data. A row whose sentence is in a batch already
    waits for the next one; rows that still wait at the end of an epoch are left out of it, and others fill their
    places.

    Args:
        order: of the rows.
        texts: (rows, columns), numbers of their sentences, see `text_id`.
        size: rows of a batch, over all processes.

    Raises:
        UserError: while it is read, where not even one batch can be made.
    """

    def __init__(self, order: EpochOrder, texts: np.ndarray, size: int) -> None:
        super().__init__(order.sampler, order.seed)
        self.texts, self.size = texts, size

    def __iter__(self) -> Iterator[int]:
        return unique_batches(list(super().__iter__()), self.texts, self.size)

    def __len__(self) -> int:
        return len(self.texts) // self.size * self.size


def unique_order(sampler: Sampler[int] | None, dataset: Dataset, size: int) -> UniqueOrder:
    """The `UniqueOrder` of a training text.

    Args:
        sampler: of the trainer.
        dataset: rows of raw text; every column of strings counts.
        size: rows of a batch, over all processes.

    Raises:
        UserError: the rows have an order that must stay.
    """
    if not isinstance(sampler, EpochOrder):
        raise UserError("unique_batches makes an order of its own: leave train_sampling_strategy at random")
    columns = [name for name, kind in dataset.features.items() if kind in (Value("string"), Value("large_string"))]
    numbers = np.empty((len(dataset), len(columns)), dtype=np.int64)
    for start in range(0, len(dataset), READ_AT_ONCE):
        block = dataset[start : start + READ_AT_ONCE]
        for place, name in enumerate(columns):
            numbers[start : start + READ_AT_ONCE, place] = [text_id(text) for text in block[name]]
    return UniqueOrder(sampler, numbers, size)


def unique_batches(order: Sequence[int], texts: np.ndarray, size: int) -> Iterator[int]:
    """Rows in this order, as nearly as batches of ``size`` rows without a common sentence let it be.

    Args:
        order: numbers of rows.
        texts: (rows, columns), numbers of their sentences.
        size: of a batch.

    Returns:
        The rows of each batch, one batch after the other, as many as there are whole ones in ``order``.

    Raises:
        UserError: there are no ``size`` rows without a common sentence.

    >>> list(unique_batches([0, 1, 2, 3], np.array([[7], [7], [8], [8]]), 2))
    [0, 2, 1, 3]
    """
    fresh, again = iter(order), cycle(order)
    ready: deque[int] = deque()
    waiting: dict[int, deque[int]] = defaultdict(deque)  # rows by the sentence that kept them out of a batch

    def draw() -> int | None:
        """The next row to try: one that had to wait, one that is new, else one whose sentence is not in the batch."""
        if not ready and (row := next(fresh, None)) is not None:
            return row
        if not ready:
            ready.extend([rows.popleft() for text, rows in waiting.items() if rows and text not in used])
        return ready.popleft() if ready else None

    for _ in range(len(order) // size):
        batch: list[int] = []
        used: dict[int, None] = {}
        while len(batch) < size and (row := draw()) is not None:
            own = texts[row].tolist()
            clash = next((text for text in own if text in used), None)
            if clash is None:
                batch.append(row)
                used.update(dict.fromkeys(own))
            else:
                waiting[clash].append(row)
        for _ in range(len(order)):  # rows that had their turn in this epoch
            if len(batch) == size:
                break
            row = next(again)
            own = texts[row].tolist()
            if used.keys().isdisjoint(own):
                batch.append(row)
                used.update(dict.fromkeys(own))
        if len(batch) < size:
            raise UserError(
                f"unique_batches: no batch of {size} rows without a common sentence can be made, {len(batch)} is the "
                "most that was found; give a smaller per_device_train_batch_size, or drop repeated rows"
            )
        yield from batch
        ready.extend([waiting[text].popleft() for text in used if waiting.get(text)])
