"""Freed memory is kept while a model runs on a CPU."""

import subprocess
import sys

import pytest

PAGES = 256 * 256  # of 256 MB, more than glibc keeps by itself
SCRIPT = """
import resource
import torch
from cacse_trainer.compute.memory import keep_freed_memory

def page_faults(times=4):
    torch.ones(64 << 20)  # 256 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = [page_faults()]
with keep_freed_memory("cuda"):
    found.append(page_faults())
with keep_freed_memory():
    with keep_freed_memory():
        pass
    found.append(page_faults())
print(*found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_blocks_are_reused_inside_nested_contexts_too():
    """4 blocks are written and freed, one after the other, in a process of its own, whose heap is empty before."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, elsewhere, inside = (int(count) for count in done.stdout.split())
    assert min(before, elsewhere) > 3 * PAGES
    assert inside < 2 * PAGES
