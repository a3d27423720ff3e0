"""A layer of BERT's kind without its attention, forward and backward: as it trains here, and by ``torch.compile``.

A compiler joins passes over the states (casts, dropout, GELU, sums, norms); this says what that is worth on a CPU.
Processor seconds of one thread, the least of the runs; it needs a C++ compiler.

    python benchmarks/compiled.py --width 384 --tokens 2560
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from common import save
from torch import Tensor, nn

from cacse_trainer.compute.fast_paths import FastDropout, dropped_sum
from cacse_trainer.compute.memory import keep_freed_memory
from cacse_trainer.settings.precision import resolve_bf16

DROPOUT = 0.1


class Layer(nn.Module):
    """``a = norm(x + dropout(W c)); norm(a + dropout(W₂ GELU(W₁ a)))`` of states x and what attention gave, c."""

    def __init__(self, width: int):
        super().__init__()
        self.out, self.wide, self.narrow = (
            nn.Linear(width, width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = FastDropout(DROPOUT)

    def forward(self, states: Tensor, attended: Tensor) -> Tensor:
        """(T, H) each → (T, H)."""
        first = self.norms[0](dropped_sum(self.dropout, self.out(attended), states))
        second: Tensor = self.norms[1](dropped_sum(self.dropout, self.narrow(F.gelu(self.wide(first))), first))
        return second

    def with_masks(self, states: Tensor, attended: Tensor, kept: Tensor, also: Tensor) -> Tensor:
        """The same in plain operations, for the compiler; dropout's masks are given, (T, H) each, uint8."""
        scale = 1 / (1 - DROPOUT)
        first = self.norms[0](states + self.out(attended).float() * kept.float() * scale)
        wide = self.narrow(F.gelu(self.wide(first))).float()
        second: Tensor = self.norms[1](first + wide * also.float() * scale)
        return second


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--bf16", default="auto")
    parser.add_argument("--runs", type=int, default=3, help="of ten steps each, in turn")
    parser.add_argument("--output", type=Path, help="JSON file; the plot lies beside it")
    settings = parser.parse_args()
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        print("nothing measured: no C++ compiler here")
        return 0
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bf16, shape = resolve_bf16(settings.bf16), (settings.tokens, settings.width)
    layer, gradient = Layer(settings.width), torch.randn(shape)
    states = torch.randn(shape, requires_grad=True)
    attended = torch.randn(shape).to(torch.bfloat16 if bf16 else torch.float32).requires_grad_()
    compiled = torch.compile(layer.with_masks)

    def masks() -> list[Tensor]:
        return [layer.dropout(torch.ones(shape)).bool().byte() for _ in range(2)]

    ways: dict[str, Callable[[], Tensor]] = {
        "as it trains": lambda: layer(states, attended),
        "torch.compile": lambda: compiled(states, attended, *masks()),
    }

    def step(way: Callable[[], Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found = way()
        found.backward(gradient)
        layer.zero_grad()

    first, seconds = {}, {name: float("inf") for name in ways}
    with keep_freed_memory("cpu"):
        for name, way in ways.items():
            started = time.perf_counter()
            step(way)
            first[name] = time.perf_counter() - started
        for _ in range(settings.runs):
            for name, way in ways.items():
                started = time.process_time()
                for _ in range(10):
                    step(way)
                seconds[name] = min(seconds[name], (time.process_time() - started) / 10)
    print(f"{settings.tokens} tokens of {settings.width}, {'bf16' if bf16 else 'float32'}, 1 thread")
    for name in ways:
        print(f"{name:16}{seconds[name] * 1e3:9.2f} ms a step, the first {first[name]:.1f} s")
    report = {"milliseconds": {name: 1e3 * value for name, value in seconds.items()}, "first_seconds": first}
    save(settings.output, {**report, "settings": vars(settings)}, {"milliseconds": report["milliseconds"]}, "ms a step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
