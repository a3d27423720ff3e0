"""A device that is not the CPU on any machine: torch's PrivateUse1 over ordinary memory (other_device.cpp).

Every operation runs by torch's CPU kernels, so results are those of the CPU; but like a GPU the device refuses
operations over tensors of two devices, and its memory is no numpy array. Like one it trains without padding, in half
precision by a kernel for rows of any lengths. `register` compiles it, once for each version of torch.
"""

import hashlib
import shutil
import types
from pathlib import Path
from typing import Any

import torch
import transformers.training_args
from torch.utils.cpp_extension import load

from cacse_trainer.compute import varlen
from cacse_trainer.settings import arguments
from tests.varlen_reference import for_half

NAME = "other"
SOURCE = Path(__file__).with_name("other_device.cpp")
BUILDS = Path(__file__).resolve().parents[2] / "build" / "other_device"


def can_be_built() -> bool:
    """Whether a C++ compiler and ninja are there."""
    return shutil.which("g++") is not None and shutil.which("ninja") is not None


def register() -> None:
    """Make the device ``other`` known to this process."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    folder = BUILDS / key
    folder.mkdir(parents=True, exist_ok=True)
    load(
        "other_device",
        [str(SOURCE)],
        extra_cflags=["-O0", "-g0"],
        build_directory=str(folder),
        is_python_module=False,
    )
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())
    torch.utils.generate_methods_for_privateuse1_backend()
    arguments.PACKING.add(NAME)
    varlen.kernel_for = for_half
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True  # it asks the kinds of device that it knows


class _Context:
    """The device's context manager: there is one device, so nothing is switched."""

    def __init__(self, device: Any = None):
        self.device = device

    def __enter__(self) -> "_Context":
        return self

    def __exit__(self, *given: Any) -> None:
        return None


def _module() -> types.ModuleType:
    """What torch, transformers and accelerate ask of ``torch.other``."""
    made = types.ModuleType(f"torch.{NAME}")
    functions: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        # its random numbers are the CPU's
        "get_rng_state": lambda device=0: torch.get_rng_state(),
        "set_rng_state": lambda state, device=0: torch.set_rng_state(state),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state_all": lambda states: torch.set_rng_state(states[0]),
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16, torch.float32],
        "is_bf16_supported": lambda *given, **more: True,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "current_stream": lambda device=None: None,
    }
    for name, function in functions.items():
        setattr(made, name, function)
    made.device = made.device_ctx = _Context  # type: ignore[attr-defined]
    return made
