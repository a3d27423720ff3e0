"""Encoders of BERT's kind over the tokens of a batch alone: nothing is spent on padding, or on states nobody reads.

The rows are laid end to end. Linear layers, norms and dropout run once over all tokens. Where only the first token's
state is read (CLS pooling, CACSE), the last layer runs for the first tokens alone.

On a CPU (`PackedRows`) the rows are sorted by length, and attention goes by groups of rows of nearly equal length, each
padded to its own longest row. The first tokens' attention needs no keys and values there:
with one question q to a row's states x, the scores q·(W_k x + b_k) are (W_kᵀ q)·x + q·b_k and the result
Σ aᵢ (W_v xᵢ + b_v) is W_v (Σ aᵢ xᵢ) + b_v Σ aᵢ, so that a row is multiplied once and not each of its tokens.

Where bfloat16 is computed, oneDNN makes a kernel for each shape that it has not met, which costs more than a small
product: there the shapes are kept few. Groups have 32 rows (the rest 16, 8, …) and multiples of 16 tokens a row, and
tokens that nobody attends to, whose gradient is 0, fill up a multiple of 64.

On a GPU (`FlatRows`) attention goes by a kernel for rows of any lengths (`varlen`) where there is one for the precision
and the dropout, else by torch's scaled dot product attention over queries, keys and values that are padded for it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cacse_trainer.compute import varlen
from cacse_trainer.compute.bucketing import cheapest_groups, few_sizes, on_host
from cacse_trainer.compute.fast_paths import AHEAD, ATTENTION, dropped_sum
from cacse_trainer.compute.half import fusing, half_once, taken_apart, widened
from cacse_trainer.compute.int8 import project

GROUP_COST = 50
"""What a group of the attention costs besides its tokens, in tokens."""
FEW_LENGTHS, FEW_TOKENS = 16, 64
"""Where shapes are kept few: of what a row's length and the tokens' number are multiples."""
KINDS = {"bert": False, "roberta": True, "xlm-roberta": True, "camembert": True}
"""Kinds whose modules are run here, and whether their positions count from the padding's id."""


def can_pack(encoder: Any, inputs: Mapping[str, Tensor]) -> bool:
    """Whether `packed_rows` takes these inputs and `packed_states` this encoder: padding on the right.

    On a GPU the lengths must be known without asking it (`varlen.known_tokens`).
    """
    config, mask = encoder.config, inputs.get("attention_mask")
    return (
        mask is not None
        and config.model_type in KINDS
        and isinstance(encoder.encoder.layer[-1].attention.self.key, nn.Linear)  # no adapter: weights are read
        and isinstance(encoder.encoder.layer[-1].attention.self.value, nn.Linear)
        and config._attn_implementation in {"sdpa", ATTENTION, AHEAD}
        and not config.is_decoder
        and not any(getattr(part, "gradient_checkpointing", False) for part in encoder.modules())
        and (varlen.known_tokens(mask) is not None or (on_host(mask) and varlen.padded_on_the_right(mask)))
    )


class Group(NamedTuple):
    """Packed rows that attend together; ``mask``, (rows, 1, length), is added to the scores; None: equal lengths."""

    rows: int
    length: int
    mask: Tensor | None


class _Moved(torch.autograd.Function):
    """Rows by number, (n, w) → (m, w), each taken once but for those whose gradient is 0: no sums in the backward pass.

    ``back`` are the numbers of the taken rows in the result, (n,), or None: the rows not in ``there`` have no gradient.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, there: Tensor, back: Tensor | None) -> Tensor:
        ctx.save_for_backward(there, back)
        ctx.count = len(states)
        return states.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        there, back = ctx.saved_tensors
        if back is not None:
            return gradients[0].index_select(0, back), None, None
        whole = gradients[0].new_zeros(ctx.count, gradients[0].shape[1])
        return whole.index_copy_(0, there, gradients[0]), None, None


class _Rows:
    """The tokens of padded rows laid end to end.

    Args:
        inputs: ``input_ids``, ``attention_mask`` and, where given, ``token_type_ids``, (N, L) each.
        heads: of the attention.

    Attributes:
        count: of the rows' tokens; more of the T tokens only fill up, at the end.
        tokens: (T,), each packed token's place in the flattened (N·L) inputs.
        places: (T,), its place in its row.
        starts: (N,), where each packed row begins, in their order.
    """

    count: int
    tokens: Tensor
    places: Tensor
    starts: Tensor

    def __init__(self, inputs: Mapping[str, Tensor], heads: int):
        self.inputs, self.heads = inputs, heads

    def unpack(self, states: Tensor) -> Tensor:
        """(T, H) → (N, L, H), 0 at padding that was cut off."""
        rows, length = self.inputs["attention_mask"].shape
        whole, count = states.new_zeros(rows * length, states.shape[1]), self.count
        return whole.index_copy(0, self.tokens[:count], states[:count]).unflatten(0, (rows, length))


class PackedRows(_Rows):
    """Rows on a CPU, the shortest one first.

    Args:
        inputs, heads: as above.
        few_shapes: let the shapes recur from batch to batch.

    Attributes:
        groups: of the attention; S is the sum of their rows · length, and the number of tokens that only fill up.
        order: (N,), the packed rows' numbers in the inputs.
    """

    def __init__(self, inputs: Mapping[str, Tensor], heads: int, few_shapes: bool = False):
        super().__init__(inputs, heads)
        mask = inputs["attention_mask"] != 0
        self.order = torch.argsort(mask.sum(dim=1), stable=True)
        lengths = mask.sum(dim=1)[self.order]
        self.count = int(lengths.sum())
        sizes = few_sizes(len(lengths)) if few_shapes else cheapest_groups(lengths.tolist(), GROUP_COST)
        self.groups = [_group(part, FEW_LENGTHS if few_shapes else 1) for part in lengths.split(sizes)]
        # The groups' rows are padded to `widths`: where each padded token comes from, and each token goes to.
        widths = torch.cat([torch.full((group.rows,), group.length) for group in self.groups])
        # What only fills up is a last row, in no group.
        self._filling = -self.count % FEW_TOKENS if few_shapes else 0
        lengths, widths = F.pad(lengths, (0, 1), value=self._filling), F.pad(widths, (0, 1), value=self._filling)
        self._sizes = [*(group.rows * group.length for group in self.groups), self._filling]
        starts = lengths.cumsum(0) - lengths
        self.starts = starts[:-1]
        row, places = _rows_and_places(lengths)
        self.places = places.where(row < len(self.order), 0)  # a table of positions may be shorter than the filling
        self.tokens = F.pad(self.order, (0, 1))[row] * mask.shape[1] + self.places
        padded_starts = widths.cumsum(0) - widths
        padded_row, padded_place = _rows_and_places(widths)
        self._from = starts[padded_row] + torch.minimum(padded_place, lengths[padded_row] - 1)  # (S,)
        self._to = padded_starts[row] + places  # (T,)
        # The same by heads: from (T, heads) to one block of (heads, width) a row.
        head = torch.arange(heads)

        def by_head(row: Tensor, place: Tensor) -> Tensor:
            return (heads * padded_starts[row, None] + head * widths[row, None] + place[:, None]).flatten()

        self._to_by_head = by_head(row, places)  # (T·heads,)
        self._from_by_head = torch.empty(len(padded_row) * heads, dtype=torch.long)
        self._from_by_head[by_head(padded_row, padded_place)] = (self._from[:, None] * heads + head).flatten()

    def spread(self, states: Tensor) -> list[Tensor]:
        """(T, H) → each group's (rows, length, H)."""
        whole = _Moved.apply(states, self._from, self._to)
        *parts, _ = whole.split(self._sizes)
        return [part.unflatten(0, group[:2]) for part, group in zip(parts, self.groups, strict=True)]

    def spread_by_head(self, states: Tensor) -> list[Tensor]:
        """(T, heads·d) → each group's (rows·heads, length, d)."""
        by_head = states.unflatten(1, (self.heads, -1)).flatten(0, 1)
        whole = _Moved.apply(by_head, self._from_by_head, self._to_by_head)
        *parts, _ = whole.split([size * self.heads for size in self._sizes])
        return [part.unflatten(0, (-1, group.length)) for part, group in zip(parts, self.groups, strict=True)]

    def gather_by_head(self, parts: list[Tensor]) -> Tensor:
        """The way back of `spread_by_head`, without the padding."""
        filling = parts[0].new_zeros(self._filling * self.heads, parts[0].shape[-1])
        whole = torch.cat([*(part.flatten(0, 1) for part in parts), filling])
        return _Moved.apply(whole, self._to_by_head, None).unflatten(0, (-1, self.heads)).flatten(1)

    def in_order(self, vectors: Tensor) -> Tensor:
        """(N, H) of the packed rows → in the order of the inputs."""
        return vectors[torch.argsort(self.order)]

    def as_packed(self, vectors: Tensor) -> Tensor:
        """The way back of `in_order`."""
        return vectors[self.order]

    def attend(self, module: Any, states: Tensor, first_only: bool) -> Tensor:
        """Of each token, or of each row's first alone: (T, H) → (T, H) or (N, H)."""
        return _attend_from_first(module, states, self) if first_only else _attend(module, states, self)

    def join(self, module: Any, states: Tensor, residual: Tensor) -> Tensor:
        """``LayerNorm(dropout(dense(states)) + residual)``: a layer's part that ends in it, without its own sum.

        By the module itself where it is another than transformers' own, or somebody listens to it.
        """
        if not taken_apart(module):
            joined: Tensor = module(states, residual)
            return joined
        if not (module.dropout.training and module.dropout.p) and fusing(module.dense, states):
            summed = module.dense.fused(states, plus=residual)
        else:
            summed = dropped_sum(module.dropout, module.dense(states), residual)
        normed: Tensor = module.LayerNorm(summed)
        return normed


class FlatRows(_Rows):
    """Rows on a GPU, in the order of the inputs; the GPU is asked for nothing.

    Args:
        inputs, heads: as for `PackedRows`.
        count: T, the tokens in all.
    """

    def __init__(self, inputs: Mapping[str, Tensor], heads: int, count: int):
        super().__init__(inputs, heads)
        self.count = count
        mask = inputs["attention_mask"] != 0
        rows, width = mask.shape
        lengths = mask.sum(dim=1)
        ends = lengths.cumsum(0)
        self.starts = ends - lengths
        row, self.places = _rows_and_places(lengths, count)
        self.tokens = row * width + self.places
        self._bounds = varlen.Bounds(F.pad(ends, (1, 0)).int(), width)
        self._first_bounds = varlen.Bounds(torch.arange(rows + 1, dtype=torch.int32, device=mask.device), 1)
        # Where each place of the padded inputs is taken from: padding from its row's last token, and has no gradient.
        places = torch.arange(width, device=mask.device)
        self._from = (self.starts[:, None] + torch.minimum(places, lengths[:, None] - 1)).flatten()  # (N·L,)
        self._mask = mask[:, None, None]  # (N, 1, 1, L)

    def in_order(self, vectors: Tensor) -> Tensor:
        """(N, H), which are in order."""
        return vectors

    as_packed = in_order

    def attend(self, module: Any, states: Tensor, first_only: bool) -> Tensor:
        """As `PackedRows.attend`; its dropout is that of the probabilities, as in the encoder's own attention."""
        half = half_once(states)
        asking = half[self.starts] if first_only else half  # (M, H)
        projected = module.query(asking), module.key(half), module.value(half)
        query, key, value = (part.unflatten(1, (self.heads, -1)) for part in projected)
        dropout = module.dropout.p if module.dropout.training else 0.0
        kernel = varlen.kernel_for(query, dropout)
        if kernel is None:
            return self._attend_padded(projected, first_only, dropout, module.scaling)
        bounds = self._first_bounds if first_only else self._bounds
        return kernel(query, key, value, bounds, self._bounds, dropout, module.scaling).flatten(1)

    def join(self, module: Any, states: Tensor, residual: Tensor) -> Tensor:
        """As `PackedRows.join`, by the module itself."""
        joined: Tensor = module(states, residual)
        return joined

    def _attend_padded(
        self, projected: tuple[Tensor, Tensor, Tensor], first_only: bool, dropout: float, scaling: float
    ) -> Tensor:
        """Queries (M, heads·d), keys and values (T, heads·d) → (M, heads·d)."""
        length = self._mask.shape[-1]

        def padded(part: Tensor) -> Tensor:
            return _Moved.apply(part, self._from, self.tokens).unflatten(0, (-1, length))  # (N, L, heads·d)

        query = projected[0][:, None] if first_only else padded(projected[0])
        parts = (query, padded(projected[1]), padded(projected[2]))
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)  # (N, heads, ·, d)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask, dropout_p=dropout, scale=scaling)
        flat = found.transpose(1, 2).flatten(2).flatten(0, 1)  # (N·L, heads·d), or (N, heads·d)
        return flat if first_only else _Moved.apply(flat, self.tokens, None)


def packed_rows(inputs: Mapping[str, Tensor], heads: int) -> PackedRows | FlatRows:
    """The rows of (N, L) inputs that `can_pack`, as their device takes them."""
    count = varlen.known_tokens(inputs["attention_mask"])
    if count is not None:
        return FlatRows(inputs, heads, count)
    return PackedRows(inputs, heads, few_shapes=torch.is_autocast_enabled("cpu"))


def packed_states(
    encoder: Any, rows: PackedRows | FlatRows, first_only: bool, first: Tensor | None = None
) -> list[Tensor]:
    """The embedding output and each layer's, (T, H) each; with ``first_only`` the last is (N, H), of the first tokens.

    The last one is in the packed rows' order as well. ``first``, (N, H) in the order of the inputs, take the place of
    the first tokens' embeddings.
    """
    states = [_embedded(encoder, rows)]
    if first is not None:
        states = [states[0].index_copy(0, rows.starts, rows.as_packed(first).to(states[0].dtype))]
    layers = encoder.encoder.layer
    for layer in layers:
        last = first_only and layer is layers[-1]
        own = states[-1][rows.starts] if last else states[-1]
        attention = rows.join(layer.attention.output, rows.attend(layer.attention.self, states[-1], last), own)
        states.append(rows.join(layer.output, widened(layer.intermediate, attention), attention))
    return states


def _embedded(encoder: Any, rows: _Rows) -> Tensor:
    ids, places = rows.inputs["input_ids"], rows.places
    if KINDS[encoder.config.model_type]:  # the padding's id is not counted, even where a text holds it and it is read
        counted = (ids != encoder.config.pad_token_id).long()
        places = (counted.cumsum(dim=1) * counted + encoder.config.pad_token_id).flatten()[rows.tokens]
    given = {"input_ids": ids, "token_type_ids": rows.inputs.get("token_type_ids", torch.zeros_like(ids))}
    packed = {name: tensor.flatten()[rows.tokens][None] for name, tensor in given.items()}  # (1, T) each
    return encoder.embeddings(**packed, position_ids=places[None])[0]


def _rows_and_places(lengths: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Of each token of rows laid end to end its row's number and its place there: lengths (N,) → (T,), (T,).

    A device is asked for T where it is not given as ``count``.
    """
    row = torch.repeat_interleave(lengths, output_size=count)
    return row, torch.arange(len(row), device=lengths.device) - (lengths.cumsum(0) - lengths)[row]


def _group(lengths: Tensor, multiple: int = 1) -> Group:
    """Rows of these ascending lengths as a group, as long as the longest, or the next ``multiple``."""
    longest = -(-int(lengths[-1]) // multiple) * multiple
    if lengths[0] == longest:
        return Group(len(lengths), longest, None)
    padding = torch.arange(longest) >= lengths[:, None]
    return Group(len(lengths), longest, torch.zeros(padding.shape).masked_fill(padding, -1e30)[:, None])  # in any dtype


def _attend(module: Any, states: Tensor, rows: PackedRows) -> Tensor:
    """``dropout(softmax(q kᵀ·scaling + mask)) v`` by heads and groups: (T, H) → (T, H)."""
    half = half_once(states)
    projected = [rows.spread_by_head(part) for part in project((module.query, module.key, module.value), half)]
    found = []
    for group, q, k, v in zip(rows.groups, *projected, strict=True):
        mask = q.new_zeros(1) if group.mask is None else group.mask.to(q.dtype).repeat_interleave(rows.heads, dim=0)
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=module.scaling)  # (rows · heads, l, l)
        found.append(torch.bmm(module.dropout(scores.softmax(dim=-1)), v))
    return rows.gather_by_head(found)


def _attend_from_first(module: Any, states: Tensor, rows: PackedRows) -> Tensor:
    """The same for each row's first token alone, without keys and values: (T, H) → (N, H)."""
    half = half_once(states)

    def by_head(part: Tensor) -> Tensor:  # (heads · d, …) → (heads, d, …)
        return part.unflatten(0, (rows.heads, -1))

    query = by_head((module.query(half[rows.starts]) * module.scaling).T)  # (heads, d, N)
    asked = torch.bmm(query.transpose(1, 2), by_head(module.key.weight)).transpose(0, 1)  # (N, heads, H)
    biases = torch.bmm(query.transpose(1, 2), by_head(module.key.bias)[:, :, None]).transpose(0, 1)  # (N, heads, 1)
    sizes = [group.rows for group in rows.groups]
    mixed, shares = [], []
    parts = zip(rows.groups, asked.split(sizes), biases.split(sizes), rows.spread(half), strict=True)
    for group, question, bias, tokens in parts:
        scores = torch.bmm(question, tokens.transpose(1, 2)) + bias  # (rows, heads, l)
        if group.mask is not None:
            scores = scores + group.mask.to(scores.dtype)
        weights = module.dropout(scores.softmax(dim=-1))
        mixed.append(torch.bmm(weights, tokens))
        shares.append(weights.sum(dim=-1))
    by_value = torch.bmm(by_head(module.value.weight), torch.cat(mixed).permute(1, 2, 0))  # (heads, d, N)
    value_bias = by_head(module.value.bias)[:, :, None] * torch.cat(shares).T[:, None]
    return (by_value + value_bias).flatten(0, 1).T
