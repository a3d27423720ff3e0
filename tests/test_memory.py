"""Freed memory is kept while a model runs, and given back afterwards."""

import resource
import sys

import pytest
import torch

from cacse_trainer.memory import keep_freed_memory

MEGABYTES_64 = 16 << 20  # float32 numbers
PAGES = 64 * 256  # of the same


def page_faults(times: int = 20) -> int:
    """While a block of 64 MB is written and freed so often."""
    torch.ones(MEGABYTES_64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(MEGABYTES_64)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_blocks_are_reused_until_the_outermost_context_ends():
    with keep_freed_memory():
        with keep_freed_memory():
            pass
        assert page_faults() < 3 * PAGES
    assert page_faults() > 10 * PAGES
    with keep_freed_memory("cuda"):
        assert page_faults() > 10 * PAGES
