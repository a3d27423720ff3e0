"""``bf16: auto | true | false``: one spelling for training, teachers and encoders, and what it comes to here."""

from typing import Any

from cacse_trainer.errors import UserError

HELP = "true, false, or auto: on where the hardware has fast bfloat16."
FLAG: dict[str, Any] = {"nargs": "?", "const": "true"}
"""The flag alone means true."""


def accelerator() -> str | None:
    """Kind of the device that torch computes on beside the CPU, such as ``cuda`` or ``mps``; None: there is none."""
    import torch  # settings are read without it

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found is not None else None


def bf16_is_fast(*, use_cpu: bool = False) -> bool:
    """True where bfloat16 matrix products are faster than float32: CUDA ≥ 8.0, CPU with AMX or AVX512-bf16."""
    import torch

    kind = None if use_cpu else accelerator()
    if kind is not None:
        return kind == "cuda" and torch.cuda.get_device_capability()[0] >= 8
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def resolve_bf16(value: str | bool, name: str = "bf16", *, use_cpu: bool = False) -> bool:
    """Whether to compute in bfloat16.

    Args:
        value: ``auto``, ``true`` or ``false``.
        name: of the setting, for the error.
        use_cpu: the CPU computes, whatever else there is.

    Raises:
        UserError: another value.
    """
    text = str(value).lower()
    if text not in ("auto", "true", "false"):
        raise UserError(f"{name} must be auto, true or false, got {value!r}")
    return bf16_is_fast(use_cpu=use_cpu) if text == "auto" else text == "true"
