"""Where something was measured: versions, hardware, memory."""

import contextlib
import platform
import resource
import sys
from importlib import metadata
from typing import Any

import torch

LIBRARIES = (
    "cacse-trainer",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "scipy",
    "numpy",
    "sentence-transformers",
)


def environment() -> dict[str, Any]:
    """Versions and hardware, for reports and results."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"python": platform.python_version(), **versions, "device": device, "threads": torch.get_num_threads()}


def peak_memory_gb() -> float:
    """This process's largest resident memory so far, in GB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1e9 if sys.platform == "darwin" else 1e6)
