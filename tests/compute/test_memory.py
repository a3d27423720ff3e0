"""Freed memory is kept while a model runs on a CPU."""

import subprocess
import sys

import pytest

TIMES, PAGES = 64, 64 * 256  # blocks of 64 MB, more than glibc keeps by itself
SCRIPT = f"""
import resource
import torch
from cacse_trainer.compute.memory import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({TIMES}):
        torch.ones(16 << 20)
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
    """Blocks are written and freed, one after the other, in a process of its own, whose heap is empty before.

    Small objects may cut into a freed block until they have places of their own (about seven times, seldom none).
    """
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, elsewhere, inside = (int(count) for count in done.stdout.split())
    assert min(before, elsewhere) > 0.9 * TIMES * PAGES
    assert inside < 0.5 * TIMES * PAGES
