"""How a model computes its loss in training: what costs time and memory, and changes nothing else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from cacse_trainer.compute.bucketing import encode_in_buckets
from cacse_trainer.compute.encoder_tools import known_inputs
from cacse_trainer.compute.packing import can_pack
from cacse_trainer.compute.reading import pool_packed, pool_padded
from cacse_trainer.compute.varlen import known_tokens
from cacse_trainer.models.outputs import Layers, layers_of


@dataclass(frozen=True)
class ComputeSettings:
    """How a model computes its loss in training; but for ``negatives`` the loss is the same whatever is chosen.

    Args:
        length_buckets: groups of rows of similar length that the encoder runs over, one after the other; 1 is one
            padded pass, None no padding at all (`packing`) or, where that is not to be had, as many as pay for the
            lengths on a CPU, and one elsewhere.
        mini_batch_size: sentences that are encoded at once, with gradient caching (`encode_in_buckets`); None: all.
        negatives: whose rows a row is compared with: those of all processes (``global``), or of its own (``local``).
        fast_paths: take the cheaper ways of `fast_paths`.
    """

    length_buckets: int | None = 1
    mini_batch_size: int | None = None
    negatives: str = "global"
    fast_paths: bool = False

    def in_parts(self, encode: Callable[..., Tensor], inputs: dict[str, Tensor], trim: bool = True) -> Tensor:
        """`encode_in_buckets` with these settings."""
        return encode_in_buckets(encode, inputs, self.length_buckets, self.mini_batch_size, trim)

    def packed_or(
        self, encoder: Any, inputs: dict[str, Tensor], packed: Callable[..., Tensor], padded: Callable[..., Tensor]
    ) -> Tensor:
        """By ``packed``, which leaves the padding out, where that is asked for and `can_pack`; else by ``padded``."""
        if self.length_buckets is None and can_pack(encoder, inputs):
            # sorted, mini-batches on a device would ask it for the lengths
            trim = known_tokens(inputs["attention_mask"]) is None
            return encode_in_buckets(packed, inputs, 1, self.mini_batch_size, trim)
        return self.in_parts(padded, inputs)

    def pooled(
        self,
        encoder: Any,
        pooling: str,
        rows: Mapping[str, Tensor | None],
        asked: dict[str, Any],
        batch: int | None = None,
    ) -> tuple[Tensor, Layers]:
        """Of (N, L) rows the encoder's pooled states (N, H) and, in one padded pass then, `layers_of` as asked."""
        inputs = known_inputs(encoder, rows)
        if asked:
            output, vectors = pool_padded(encoder, pooling, inputs, **asked)
            return vectors, layers_of(output, asked, batch)
        packed = partial(pool_packed, encoder, pooling)
        return self.packed_or(encoder, inputs, packed, lambda **one: pool_padded(encoder, pooling, one)[1]), {}
