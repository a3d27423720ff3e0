"""Linear layers in int8 on a CPU: a scale for each row of the weights and, found anew at each call, for each token.

A token's states x are written as q ∈ 0 … 255 with x ≈ low + step·q, step = (max x - min x)/255, a row of the weights as
w ≈ s·p with p ∈ -127 … 127. Then w·x = s·step·Σ pᵢqᵢ + low·Σ wᵢ + bias, and the sum of products is one of whole numbers
(FBGEMM, which torch brings along). Nothing depends on the other tokens of a batch.

Without VNNI a processor adds two neighbouring products in 16 bits, which saturate. So s is chosen such that neighbours
p₂ₖ, p₂ₖ₊₁ of one sign sum to at most 128: 255·128 < 2¹⁵, and the sums are exact on every processor. It makes s about
1.3 times what the largest weight alone would ask for; the step of the states, not that of the weights, is what costs
precision.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cacse_trainer.compute.half import HalfLinear

ENGINE = "fbgemm"
LEVELS = 255  # steps between a token's lowest and highest state
LARGEST = 127  # of the weights' numbers
PAIR = 128  # of the sum of two neighbouring ones of one sign
TINY = 1e-12  # a token whose states are all equal has no step


class Scaled(NamedTuple):
    """States of tokens as shares of their range: x = low + width·share; (T, K), (T, 1), (T, 1)."""

    share: Tensor
    low: Tensor
    width: Tensor


class Int8Linear(nn.Linear):
    """`nn.Linear` whose products are of whole numbers; its parameters stay as they are, in float32."""

    packed: Any
    sums: Tensor

    def pack(self) -> None:
        """Make the numbers that `forward` multiplies by; the weights are read once."""
        weight = self.weight.detach().float()
        scales = scales_of(weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # quantised tensors are to move to another package
            zeros = torch.zeros(len(weight), dtype=torch.int64)
            numbers = torch.quantize_per_channel(weight.contiguous(), scales.double(), zeros, 0, torch.qint8)
            before = torch.backends.quantized.engine
            torch.backends.quantized.engine = ENGINE  # what is packed knows its engine from now on
            try:
                self.packed = torch.ops.quantized.linear_prepack(numbers, None)
            finally:
                torch.backends.quantized.engine = before
            self.sums = numbers.dequantize().double().sum(dim=1).float()

    def forward(self, states: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features), float32."""
        flat = states.float().flatten(0, -2)
        return self.of_scaled(scaled(flat)).unflatten(0, states.shape[:-1])

    def of_scaled(self, states: Scaled) -> Tensor:
        """(T, out_features)."""
        if not len(states.share):
            return states.share.new_zeros(0, self.out_features)
        found = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            states.share, 1 / LEVELS, 0, self.packed
        )
        found.mul_(states.width).addcmul_(states.low, self.sums)
        return found if self.bias is None else found.add_(self.bias)


def scaled(states: Tensor) -> Scaled:
    """(T, K) states as shares of each token's range."""
    low = states.amin(dim=1, keepdim=True)
    width = states.amax(dim=1, keepdim=True).sub_(low).clamp_(min=TINY)
    return Scaled((states - low).mul_(width.reciprocal()), low, width)


def scales_of(weight: Tensor) -> Tensor:
    """(N, K) weights → (N,): the smallest scales under which no sum of products saturates."""
    pairs = F.pad(weight, (0, weight.shape[1] % 2)).unflatten(1, (-1, 2))
    sums = torch.maximum(pairs.clamp(min=0).sum(dim=2).amax(dim=1), (-pairs).clamp(min=0).sum(dim=2).amax(dim=1))
    # Two halves may both be rounded up: one number less than what fits.
    return torch.maximum(weight.abs().amax(dim=1) / LARGEST, sums / (PAIR - 1)).clamp(min=TINY)


def project(modules: Sequence[nn.Module], states: Tensor) -> list[Tensor]:
    """Several linear layers of the same states, (T, K) each → (T, N) each; in int8 their shares are taken once."""
    if all(isinstance(module, Int8Linear) for module in modules):
        shares = scaled(states)
        return [module.of_scaled(shares) for module in modules if isinstance(module, Int8Linear)]
    return [module(states) for module in modules]


def int8_runs() -> bool:
    """Whether this processor, and torch as it was built, have these products."""
    return ENGINE in torch.backends.quantized.supported_engines


def use_int8(model: nn.Module) -> int:
    """Let the plain linear layers of a model compute in int8, on a CPU and without gradients; how many they are."""
    found = [module for module in model.modules() if type(module) in (nn.Linear, HalfLinear)]
    for module in found:
        module.__class__ = Int8Linear
        assert isinstance(module, Int8Linear)
        module.pack()
    return len(found)
