"""A batch through the encoder in parts: rows of similar length together, and at most so many with a graph at once.

Length buckets: of a batch padded to its longest row most tokens are padding. The rows are sorted by length, cut into
groups, each group trimmed to its own longest row, encoded, and put back in order; the loss still sees
them all.

Gradient caching (Gao et al. 2021, arXiv 2101.06983): a batch too large for the memory is encoded in mini-batches of
which only the results are kept. The loss of the whole batch sends its gradient back to them; each mini-batch is then
encoded once more, under the random state of its first time, and the gradient goes on from there. What a step costs in
memory is one mini-batch, in time about one forward pass more.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PASS_COST = 200
"""What a pass costs besides its tokens, in tokens: weights read, cast and their gradients added (measured on a CPU)."""
FEW_ROWS = 32  # in a group at most, where groups are to recur
MOST_CUTS = 64  # places where a batch may be cut


def encode_in_buckets(
    encode: Callable[..., Tensor],
    inputs: dict[str, Tensor],
    buckets: int | None,
    mini_batch_size: int | None = None,
    trim: bool = True,
) -> Tensor:
    """``encode(**inputs)`` in several passes over groups of rows.

    Args:
        encode: (n, l) tensors by name → (n, …), row by row, blind to padding; no exchange between processes within.
        inputs: (N, L) tensors, among them ``attention_mask`` (without it, or padded on the left, nothing is sorted).
        buckets: number of passes, at least 1; None: by `cheapest_groups`, and 1 where a device would be asked for the
            lengths.
        mini_batch_size: rows in a pass at most, each pass encoded again for its gradient; None: no such bound. With
            fewer rows in all nothing is encoded twice.
        trim: sort by length and cut each group to its longest row; False where ``encode`` counts the padding.

    Returns:
        (N, …), in the order of the rows.
    """
    mask = inputs.get("attention_mask")
    rows, width = inputs["input_ids"].shape[:2]
    mini_batches = math.ceil(rows / mini_batch_size) if mini_batch_size else 1
    if buckets is None and mask is not None and not on_host(mask):
        buckets = 1
    sizes = [len(part) for part in torch.arange(rows).chunk(mini_batches)]
    order, lengths = None, None
    if mask is not None and trim and (buckets != 1 or mini_batches > 1) and bool(mask[:, 0].all()):
        order = torch.argsort(mask.sum(dim=1), stable=True)
        lengths = mask.sum(dim=1)[order].tolist()
        if buckets is None and mini_batches == 1:
            sizes = cheapest_groups(lengths)
        elif buckets is not None and buckets > mini_batches and rows >= 2 * buckets:
            sizes = [len(part) for part in torch.arange(rows).chunk(buckets)]
    if len(sizes) == 1:
        return encode(**inputs)
    cached = mini_batches > 1 and torch.is_grad_enabled()
    run = _encode_twice if cached else lambda encode, part: encode(**part)
    found, start = [], 0
    for size in sizes:
        chosen = slice(start, start + size) if order is None else order[start : start + size]
        longest = width if lengths is None else lengths[start + size - 1]
        found.append(run(encode, {name: tensor[chosen, :longest] for name, tensor in inputs.items()}))
        start += size
    whole = torch.cat(found)
    return whole if order is None else whole[torch.argsort(order)]


def on_host(tensor: Tensor) -> bool:
    """Whether its values are there without waiting for a device."""
    return tensor.device.type == "cpu"


def cheapest_groups(rows: Sequence[int], group_cost: int = PASS_COST) -> list[int]:
    """Rows of ascending lengths cut so that padded tokens and ``group_cost`` a group cost least: their sizes.

    >>> cheapest_groups([10] * 20 + [60] * 20)    # 40·60 + 200 tokens in one, 20·10 + 20·60 + 400 in two
    [20, 20]
    """
    changes = [i for i in range(1, len(rows)) if rows[i] != rows[i - 1]]  # equal lengths stay together
    points = [0, *changes[:: math.ceil(len(changes) / MOST_CUTS) or 1], len(rows)]
    best: list[tuple[float, int]] = [(0.0, 0)]  # the least cost of the rows before each point, and its last cut
    for j in range(1, len(points)):
        end = points[j]
        best.append(min((best[i][0] + (end - points[i]) * rows[end - 1] + group_cost, i) for i in range(j)))
    sizes, j = [], len(points) - 1
    while j > 0:
        sizes.append(points[j] - points[best[j][1]])
        j = best[j][1]
    return sizes[::-1]


def _encode_twice(encode: Callable[..., Tensor], part: dict[str, Tensor]) -> Tensor:
    """``encode(**part)`` whose inner tensors are not kept but computed again, alike, when the gradient comes."""
    # Autocast's copies of the weights would sum the mini-batches' gradients in half precision: new copies each time.
    torch.clear_autocast_cache()
    # Given by position: the devices whose random state is restored are found from them.
    return checkpoint(
        lambda *tensors: encode(**dict(zip(part, tensors, strict=True))), *part.values(), use_reentrant=False
    )


def few_sizes(rows: int) -> list[int]:
    """Of groups that recur: 32, 32, …, and the rest in powers of two, the largest last, as the longest rows are.

    >>> few_sizes(75)
    [1, 2, 8, 32, 32]
    """
    rest = [1 << bit for bit in range(FEW_ROWS.bit_length() - 1) if rows & 1 << bit]
    return [*rest, *[FEW_ROWS] * (rows // FEW_ROWS)]
