"""Attention over rows laid end to end on a GPU, and what the host knows of a batch there without waiting for it.

A GPU's kernel for rows of any lengths reads where each row begins and ends from the device, so no padding is there
from the embeddings to the last layer. Two are known: flash-attention's, where its package is installed, and torch's
own, which has no dropout; both compute in half precision alone.

How many tokens a batch has decides the shapes of all that follows, and only the device knows it once the batch is
there. So the lengths are counted where the batch is made, and kept beside its mask.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary
from transformers.utils import is_flash_attn_2_available

from cacse_trainer.errors import one_line

logger = logging.getLogger(__name__)
HALF = frozenset({torch.bfloat16, torch.float16})
LARGEST_HEAD = 256  # that the kernels take; widths of heads are multiples of 8
LEAST_CAPABILITY = (8, 0)  # of the GPU

_LENGTHS: WeakIdKeyDictionary = WeakIdKeyDictionary()  # by mask; beside it, since a tensor that moves loses what it has


class Bounds(NamedTuple):
    """Rows laid end to end: ``at`` (N + 1,), int32, where each begins, and the end; none is longer than ``longest``."""

    at: Tensor
    longest: int


Kernel = Callable[[Tensor, Tensor, Tensor, Bounds, Bounds, float, float], Tensor]
"""Queries (M, heads, d), keys and values (T, heads, d), the bounds of the queries' rows and of the keys', dropout and
scaling → ``dropout(softmax(q kᵀ·scaling)) v`` row by row, (M, heads, d)."""


LENGTHS = "_lengths_of_rows"
"""By the name of a batch's mask its rows' tokens, numbers that stay on the host; see `CountedRows`."""


@dataclass(frozen=True)
class CountedRows:
    """A collator whose batches also say how long their rows are, where they are padded on the right.

    The device of a training would have to be waited for before it told. Goes to worker processes.

    Args:
        collator: of which they are.

    Returns:
        On a call the batch with `LENGTHS`, for each mask (…, L) without an empty row an array (…).
    """

    collator: Callable[..., Mapping[str, Any]]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = self.collator(rows)
        masks = {name: mask for name, mask in batch.items() if name.endswith("attention_mask")}
        counted = {
            name: (mask != 0).sum(dim=-1).numpy()
            for name, mask in masks.items()
            if isinstance(mask, Tensor) and mask.device.type == "cpu" and padded_on_the_right(mask)
        }
        return {**batch, LENGTHS: counted}


def padded_on_the_right(mask: Tensor) -> bool:
    """Whether each row of a mask (…, L) is some tokens and then padding; a device is waited for."""
    return mask.shape[-1] > 0 and bool(mask[..., 0].all()) and bool((mask[..., 1:] <= mask[..., :-1]).all())


def remember_lengths(mask: Tensor, lengths: np.ndarray) -> None:
    """Keep the tokens of each row of a mask (…, L), padded on the right, as long as the mask is there."""
    if mask.is_contiguous() and mask._base is None and mask.shape[:-1] == lengths.shape:
        _LENGTHS[mask] = lengths.reshape(-1)


def known_tokens(mask: Tensor) -> int | None:
    """How many tokens the rows of this mask (N, L) hold, at least one each; None: only the device knows.

    It may be a view of the mask that was remembered, with its views of sentences flattened or of some rows.
    """
    whole = mask if mask._base is None else mask._base
    lengths, width = _LENGTHS.get(whole), mask.shape[-1]
    if lengths is None or mask.dim() != 2 or width != whole.shape[-1] or not mask.is_contiguous():
        return None
    first = (mask.storage_offset() - whole.storage_offset()) // width
    return int(lengths[first : first + len(mask)].sum())


def kernel_for(query: Tensor, dropout: float) -> Kernel | None:
    """The kernel for such queries (M, heads, d) and this dropout; None: there is none here."""
    width = query.shape[-1]
    if query.device.type != "cuda" or query.dtype not in HALF or width % 8 or width > LARGEST_HEAD:
        return None
    if torch.version.hip is not None or torch.cuda.get_device_capability(query.device) < LEAST_CAPABILITY:
        return None
    if not torch.backends.cuda.flash_sdp_enabled():  # torch's own switch
        return None
    if flash_attention() is not None:
        return _by_flash_attention
    return _by_torch if dropout == 0 and torch.backends.cuda.is_flash_attention_available() else None


@functools.cache
def flash_attention() -> Callable[..., Tensor] | None:
    """flash-attention's function; None: it is not installed, older than 2.4.1, or built for another PyTorch (told)."""
    if not is_flash_attn_2_available():
        return None
    try:
        from flash_attn import flash_attn_varlen_func  # an extra of few machines
    except ImportError as error:
        logger.warning("flash-attn is installed and cannot be loaded (%s); attention goes without it", one_line(error))
        return None
    function: Callable[..., Tensor] = flash_attn_varlen_func
    return function if "deterministic" in inspect.signature(function).parameters else None


def _by_flash_attention(
    query: Tensor, key: Tensor, value: Tensor, asked: Bounds, given: Bounds, dropout: float, scaling: float
) -> Tensor:
    function = flash_attention()
    assert function is not None  # what chose this kernel has looked
    bounds = asked.at, given.at, asked.longest, given.longest
    deterministic = torch.are_deterministic_algorithms_enabled()
    return function(query, key, value, *bounds, dropout_p=dropout, softmax_scale=scaling, deterministic=deterministic)


def _by_torch(
    query: Tensor, key: Tensor, value: Tensor, asked: Bounds, given: Bounds, dropout: float, scaling: float
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # imports torch's compiler, for seconds

    found = varlen_attn(query, key, value, asked.at, given.at, asked.longest, given.longest, scale=scaling)
    assert isinstance(found, Tensor)  # without auxiliary outputs
    return found
