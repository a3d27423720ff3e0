"""Linear layers under autocast: weights that are not trained stay in its dtype from call to call.

On a CPU in bfloat16, where nobody asks for a gradient, oneDNN also lays them out for its products once, and what
follows a product is done while its result is at hand: the bias, the GELU, the sum with another tensor. Torch's own
linear layer writes the bias first there and reads it again, which costs a fifth of a product. Of weights that are
trained such copies last as long as an evaluation: the next step lets them go.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation


class HalfLinear(nn.Linear):
    """`nn.Linear` which under autocast uses copies of its weights that stay, where they are not trained.

    That is, frozen, or evaluated without a graph.
    """

    def forward(self, states: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features)."""
        if self.fuses(states):
            return self.fused(states)
        device = states.device.type
        if self.weight.requires_grad or not torch.is_autocast_enabled(device):
            if self.training:
                _HALF.pop(self, None)
            return super().forward(states)
        return F.linear(states, *self._copies(torch.get_autocast_dtype(device)))

    def fuses(self, states: Tensor) -> bool:
        """Whether `fused` takes these states: on a CPU that has bfloat16, under autocast to it, without a graph.

        Not in training, where one and the same layer may be run with a graph and without (gradient caching).
        """
        return (
            not self.training
            and states.device.type == "cpu"
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and not (torch.is_grad_enabled() and (states.requires_grad or self.weight.requires_grad))
            and fusing_runs()
        )

    def fused(self, states: Tensor, *, gelu: bool = False, plus: Tensor | None = None) -> Tensor:
        """``Wx + b``, its GELU, or its sum with another tensor: (…, in_features) → (…, out_features), bfloat16.

        Args:
            states: x, which `fuses`.
            gelu: Φ(y)·y of what comes out.
            plus: (…, out_features), added to it.
        """
        weight, bias = self._copies(torch.bfloat16, laid_out=True)
        states = states.to(torch.bfloat16)
        if plus is not None:
            summed: Tensor = torch.ops.mkldnn._linear_pointwise.binary(states, plus.to(states), weight, bias, "add")
            return summed
        found: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "gelu" if gelu else "none", [], "none")
        return found

    def _copies(self, dtype: torch.dtype, laid_out: bool = False) -> tuple[Tensor, Tensor | None]:
        now = (dtype, laid_out, [_state(p) for p in self.parameters(recurse=False)])
        kept = _HALF.get(self)
        if kept is None or kept[0] != now:
            with torch.inference_mode(False), torch.no_grad():  # made in an evaluation, they serve training too
                weight, bias = self.weight.to(dtype), self.bias.to(dtype) if self.bias is not None else None
                if laid_out:
                    weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
                kept = _HALF[self] = (now, weight, bias)
        return kept[1:]


_HALF: WeakKeyDictionary[nn.Module, tuple[Any, Tensor, Tensor | None]] = WeakKeyDictionary()
"""Beside the modules, not in them: what they hold would have to be copied and saved with the model."""


def _state(parameter: Tensor) -> tuple[int, int]:
    """Another one where the values are others, or may be; tensors of an inference mode do not count their versions."""
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version


def fusing_runs() -> bool:
    """Whether this processor, and torch as it was built, have such products."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def half_once(states: Tensor) -> Tensor:
    """In autocast's dtype, where it is on: for states that several layers read, each of which would cast them again."""
    device = states.device.type
    return states.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else states


def use_half(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the linear layers of a model that is not trained to autocast's dtype, which would cast them in each pass."""
    keep_copies(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)


def keep_copies(model: nn.Module) -> None:
    """Let the plain linear layers of a model be `HalfLinear`, which leaves their weights and float32 as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = HalfLinear


def taken_apart(module: nn.Module) -> bool:
    """Whether a part of a layer is transformers' own and nobody listens to it: its steps can be taken by themselves."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not hooked and type(module).__module__.startswith("transformers.models.")


def fusing(dense: nn.Module, states: Tensor) -> bool:
    """Whether a linear layer is one that `HalfLinear.fused` may stand for."""
    return (
        type(dense) is HalfLinear and not dense._forward_hooks and not dense._forward_pre_hooks and dense.fuses(states)
    )


def widened(module: Any, states: Tensor) -> Tensor:
    """``GELU(dense(states))``, (T, H) → (T, wide): a layer's part of that name, in one where that can be."""
    if type(module.intermediate_act_fn) is GELUActivation and taken_apart(module) and fusing(module.dense, states):
        fused: Tensor = module.dense.fused(states, gelu=True)
        return fused
    found: Tensor = module(states)
    return found


def full(states: Tensor) -> Tensor:
    """bfloat16 as float32: what is pooled."""
    return states.float() if states.dtype == torch.bfloat16 else states
