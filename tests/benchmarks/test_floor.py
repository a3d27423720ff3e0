"""The least that a step's operations take: what is counted, and what is not."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import common_floor


def test_products_are_timed_and_the_rest_is_bytes(monkeypatch):
    monkeypatch.setattr(common_floor, "COPIED", 1 << 10)
    a, b, table = torch.randn(30, 20), torch.randn(20, 10), torch.zeros(50, 4)
    floor = common_floor.floor_of(lambda: (a @ b, b @ b.T), torch.device("cpu"))
    assert min(floor.seconds) > 0 and floor.moved == 0 and floor.seconds == (floor.products, floor.from_memory)

    def step():
        kept = a + 1  # reads and writes 600 numbers
        kept.mul_(2)  # again
        kept.view(-1).t()  # nothing is touched
        kept.zero_()  # writes
        torch.empty(100)
        table[:, 0].expand(50).copy_(torch.ones(()).expand(50))  # the one number that is read, 50 written
        torch.nn.functional.embedding(torch.tensor([1, 2]), table)  # two rows, there and back

    floor = common_floor.floor_of(step, torch.device("cpu"))
    ones, indices, found = 4, 2 * 8, 2 * 4 * 4
    assert floor.products == floor.from_memory == 0
    rest = floor.moved - 4 * 600 * 5 - (ones + 4 * 50) - 2 * found
    assert 0 <= rest <= 2 * (ones + indices)  # making the one and the indices
