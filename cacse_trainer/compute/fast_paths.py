"""Cheaper ways to the same result for training on a CPU, where other work than matrix products takes half of a step.

- Dropout by 16-bit random lanes, four a draw: torch's own Bernoulli draw costs five times as much as they do; with the
  sum that follows it in one.
- Attention in training as plain matrix products: torch's fused kernels have no dropout on a CPU, and their backward
  pass is several times slower on sentences.
- The gradient of the token embeddings stays sparse until all passes over parts of a batch are summed; a dense one
  a pass would fill and add the whole table each time.
- An attention's input is cast to autocast's dtype once for its three projections.
- Linear layers that are frozen, or evaluated, keep a copy of their weights in autocast's dtype (`half`).
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cacse_trainer.compute.half import HalfLinear, half_once

ATTENTION = "cacse_cpu_training"
AHEAD = "cacse_sdpa_ahead"
"""Torch's scaled dot product attention under a mask that is made whatever it holds."""
LEVELS = 2**16
PLAIN_ATTENTION = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"})
"""Kinds whose attention is a softmax over masked scores and nothing more."""
LARGE_TABLE = 4096  # rows from which an embedding's dense gradient costs more than the sparse detour


def _kept(states: Tensor, cut: int) -> Tensor:
    """1 where dropout leaves a value, else 0, in two bytes each; drawn in 16-bit lanes, from torch's generator.

    In the states' dtype where that has two bytes, else int16.
    """
    count = states.numel()
    # random_ without an upper bound fills all 64 bits; its default leaves the sign bit 0.
    lanes = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    # Compared in place, which is vectorised where a comparison that gives bools is not.
    kept = lanes[:count].ge_(cut - LEVELS // 2).view(states.shape)
    return kept.to(states.dtype) if states.dtype.itemsize == kept.dtype.itemsize else kept


def _scaled(keep: Tensor, states: Tensor, scale: float) -> Tensor:
    """``keep·states·scale``, (…) each."""
    return torch.addcmul(states.new_zeros(()), states, keep.to(states.dtype), value=scale)


class _Dropout(torch.autograd.Function):
    """Dropout; (…) → (…)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cut: int) -> Tensor:
        keep = _kept(states, cut)
        ctx.save_for_backward(keep)
        ctx.scale = LEVELS / (LEVELS - cut)
        return _scaled(keep, states, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return _scaled(keep, gradients[0], ctx.scale), None


class _DroppedSum(torch.autograd.Function):
    """``dropout(states) + residual``, (…) each, in the residual's dtype."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, residual: Tensor, cut: int) -> Tensor:
        keep = _kept(states, cut)
        ctx.save_for_backward(keep)
        ctx.scale, ctx.dtype = LEVELS / (LEVELS - cut), states.dtype
        return torch.addcmul(residual, states.to(residual.dtype), keep.to(residual.dtype), value=ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (keep,) = ctx.saved_tensors
        return _scaled(keep, gradients[0].to(ctx.dtype), ctx.scale), gradients[0], None


class FastDropout(nn.Dropout):
    """`nn.Dropout` by 16-bit lanes on a CPU, the probability rounded to a multiple of 2⁻¹⁶.

    Reproducible from torch's seed, by other masks than torch's.
    """

    def forward(self, states: Tensor) -> Tensor:
        cut = self.cut(states)
        return super().forward(states) if cut is None else _Dropout.apply(states, cut)

    def cut(self, states: Tensor) -> int | None:
        """Of 2¹⁶ lanes so many are dropped; None: the plain way is taken."""
        cut = round(self.p * LEVELS)
        return cut if self.training and states.device.type == "cpu" and 0 < cut < LEVELS else None


def dropped_sum(dropout: nn.Module, states: Tensor, residual: Tensor) -> Tensor:
    """``dropout(states) + residual``, (…) each.

    Torch adds two dtypes ten times slower than one on a CPU, so the states are cast first; fast dropout has its product
    in the same pass.
    """
    cut = dropout.cut(states) if isinstance(dropout, FastDropout) else None
    if cut is None:
        return dropout(states).to(residual.dtype) + residual
    summed: Tensor = _DroppedSum.apply(states, residual, cut)
    return summed


def training_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention for transformers' interface: (n, heads, l, d) each → (n, l, heads, d).

    In training it is ``dropout(softmax(q kᵀ·scaling + mask)) v`` in matrix products; else torch's scaled dot product
    attention.
    """
    if not module.training:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scores = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            lowest = torch.finfo(scores.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=scores.dtype).masked_fill(~attention_mask, lowest)
        scores = scores + attention_mask.to(scores.dtype)  # (n, heads, l, l)
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None


class _DenseGradient(torch.autograd.Function):
    """The weight itself; a sparse gradient becomes dense."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0]
        return gradient.to_dense() if gradient.is_sparse else gradient


class SharedEmbedding(nn.Embedding):
    """`nn.Embedding` whose gradient is made dense once for all its calls in a step."""

    def forward(self, ids: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not self.weight.requires_grad or self.max_norm is not None:
            return super().forward(ids)
        return F.embedding(ids, self._shared(), self.padding_idx, sparse=True)

    def _shared(self) -> Tensor:
        """The one node that all calls hang on; it holds no values, so it serves step after step."""
        shared = _SHARED.get(self)
        if shared is None or shared.data_ptr() != self.weight.data_ptr():
            shared = _SHARED[self] = _DenseGradient.apply(self.weight)
        return shared


def _half_once(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return (half_once(given[0]), *given[1:]) if given else given


# Beside the modules, not in them: what they hold would have to be copied and saved with the model.
_SHARED: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()

REPLACED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: FastDropout,
    nn.Embedding: SharedEmbedding,
    nn.Linear: HalfLinear,
}
"""Plain modules and what takes their place, with the same parameters and names."""


def _whole_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """As `sdpa_mask`, which leaves the mask out where nothing is masked, and so waits for the device to say that."""
    mask: Tensor | None = sdpa_mask(
        *args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    )
    return mask


AttentionInterface.register(ATTENTION, training_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
AttentionInterface.register(AHEAD, sdpa_attention_forward)
AttentionMaskInterface.register(AHEAD, _whole_mask)


def run_ahead(model: nn.Module) -> None:
    """Let the host queue a pass through this model without waiting for the device; results stay as they are.

    ``sdpa`` attention of BERT's kind makes its mask without looking at the values.
    """
    for config in (vars(module).get("config") for module in model.modules()):
        if not isinstance(config, PreTrainedConfig):  # of a module of one's own
            continue
        if config.model_type in PLAIN_ATTENTION and config._attn_implementation == "sdpa":
            config._attn_implementation = AHEAD


def use_fast_paths(model: nn.Module) -> None:
    """Take the fast paths in this model from now on; parameters, names and what is saved stay as they are.

    Modules change their class in place where they are plain torch ones, and ``sdpa`` attention becomes
    `training_attention`.
    """
    for module in model.modules():
        if type(module) in REPLACED and not (type(module) is nn.Embedding and module.num_embeddings < LARGE_TABLE):
            module.__class__ = REPLACED[type(module)]
        projections = {"query", "key", "value"} <= dict(module.named_children()).keys()
        if projections and _half_once not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_half_once)
        config = vars(module).get("config")
        if config is not None and config.model_type in PLAIN_ATTENTION and config._attn_implementation == "sdpa":
            config._attn_implementation = ATTENTION


def use_plain_paths(model: nn.Module) -> None:
    """Take back `use_fast_paths`; a model that never took them stays as it is."""
    plain = {fast: kind for kind, fast in REPLACED.items()}
    for module in model.modules():
        if type(module) in plain:
            module.__class__ = plain[type(module)]
        for number in [number for number, hook in module._forward_pre_hooks.items() if hook is _half_once]:
            del module._forward_pre_hooks[number]
        config = vars(module).get("config")
        if isinstance(config, PreTrainedConfig) and config._attn_implementation == ATTENTION:
            config._attn_implementation = "sdpa"


def switch_paths(model: nn.Module, fast: bool) -> None:
    """`use_fast_paths` or `use_plain_paths`."""
    (use_fast_paths if fast else use_plain_paths)(model)


def compute_alike(teacher: nn.Module, *, fast_paths: bool, ahead: bool) -> None:
    """Let a frozen model compute as the one that is trained: by `use_fast_paths` or not, by `run_ahead`."""
    switch_paths(teacher, fast_paths)
    if ahead:
        run_ahead(teacher)
