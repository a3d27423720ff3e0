"""What the commands that run an encoder share: the flags that describe an encoder."""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.computing import AUTO, BF16, BY_DTYPE, COMPUTES, INT8
from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.encoding.graphs import GraphEncoder
from cacse_trainer.encoding.loading import CHOICES
from cacse_trainer.encoding.onnx import OnnxEncoder
from cacse_trainer.encoding.openvino import OpenVINOEncoder
from cacse_trainer.errors import UserError
from cacse_trainer.settings.command_line import count
from cacse_trainer.settings.precision import FLAG, HELP, resolve_bf16

GRAPHS: dict[str, type[GraphEncoder]] = {
    backend: kind for kind in (OnnxEncoder, OpenVINOEncoder) for backend in kind.graphs
}
"""What opens the graph of a ``--backend``."""


def add_encoder_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `open_encoder`, but ``--model`` and ``--device``."""
    add = parser.add_argument_group("the encoder").add_argument
    add("--pooling", help=f"{', '.join(CHOICES)}. Default: what the folder states")
    add_decoder_flags(add)
    graphs = "all but torch: the graphs that export --format makes"
    add("--backend", default="torch", choices=["torch", *GRAPHS], help=graphs)
    add_compute_flags(add)
    add("--max_seq_length", type=count, help="in tokens; default: what the model states")
    add("--tokens_per_batch", type=count, help="padded tokens a batch; default: by kind of device")
    add("--truncate_dim", type=count, help="keep so many of the first dimensions")
    add("--trust_remote_code", action="store_true", help="run the model code that comes with the checkpoint")


def add_running_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that runs one encoder: ``--device``, ``--disable_tqdm``, and `add_encoder_flags`."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, …; default: a GPU where there is one")
    parser.add_argument("--disable_tqdm", action="store_true", help="no progress bar")
    add_encoder_flags(parser)


def add_compute_flags(add: Callable[..., Any]) -> None:
    """``--compute``, ``--compute_dev`` and ``--bf16 [auto|true|false]``; see `computing`, `dtype_of`."""
    kinds = "int8: on a CPU; auto: the fastest that loses under 0.1 point, measured. Default: as --bf16 says"
    add("--compute", choices=COMPUTES, help=f"what is computed in. {kinds}")
    add("--compute_dev", metavar="FILE", help="graded pairs on which --compute auto measures; default: a sample")
    add("--bf16", default="false", help=f"compute in bfloat16: {HELP} The vectors are float32 all the same", **FLAG)


def dtype_of(settings: argparse.Namespace, device: str | None) -> torch.dtype:
    """What an encoder computes in."""
    on_cpu = device is not None and device.startswith("cpu")
    return torch.bfloat16 if resolve_bf16(settings.bf16, use_cpu=on_cpu) else torch.float32


def keep_compute(settings: argparse.Namespace, begun_in: str | None) -> None:
    """Let work that goes on keep what ``auto`` chose where it began: nothing is measured.

    Args:
        settings: changed in place, where ``--compute`` or ``--bf16`` is auto.
        begun_in: what the facts of the work say that it computes in; None: it begins.
    """
    kind = BY_DTYPE.get(str(begun_in))
    if kind is None or settings.backend != "torch":
        return
    if settings.compute == AUTO:
        settings.compute, settings.compute_dev = kind, None
    elif settings.compute is None and str(settings.bf16).lower() == AUTO and kind != INT8:
        settings.bf16 = str(kind == BF16).lower()


def add_decoder_flags(add: Callable[..., Any]) -> None:
    """The flags of an adapter and of what a plain decoder's files do not say."""
    add("--adapter", help="folder or hub id of a PEFT adapter for the model")
    add("--prompt_template", help="of a plain decoder: text around every sentence, with {text} once")
    add("--append_eos", action="store_true", help="of a plain decoder: close every sentence with the EOS token")
    add("--bidirectional_start_layer", type=int, help="BeLLM: decoder layers from this one see both directions")


DECODER_FLAGS = ("prompt_template", "append_eos", "bidirectional_start_layer")


def chosen(settings: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The flags of these names, to be handed over by name."""
    return {name: getattr(settings, name) for name in names}


def torch_settings(settings: argparse.Namespace, device: str | None) -> dict[str, Any]:
    """How an encoder is loaded and computes, as `SentenceEncoder` and `open_encoders` take it."""
    flags = chosen(settings, "max_seq_length", "tokens_per_batch", "trust_remote_code", *DECODER_FLAGS)
    if settings.compute_dev is not None and settings.compute != "auto":
        raise UserError("--compute_dev: belongs to --compute auto")
    if settings.compute is None:
        return {**flags, "dtype": dtype_of(settings, device)}
    if settings.bf16 != "false":
        raise UserError(f"--bf16 and --compute {settings.compute}: two names of one thing; give one of them")
    return {**flags, **chosen(settings, "compute", "compute_dev")}


def open_encoder(settings: argparse.Namespace, model: str | None, device: str | None) -> BaseEncoder:
    """The encoder that the flags describe.

    Raises:
        UserError: it cannot be loaded, or the flags do not go together.
    """
    if model is None and settings.adapter is None:
        raise UserError("command line: give --model, or --adapter")
    if settings.backend == "torch":
        own = torch_settings(settings, device)
        return SentenceEncoder(
            model, settings.pooling, device, settings.adapter, truncate_dim=settings.truncate_dim, **own
        )
    for flag in ("pooling", "adapter", "bf16", "compute", "compute_dev", "trust_remote_code", *DECODER_FLAGS):
        if getattr(settings, flag) not in (None, False, *(("false", "auto") if flag == "bf16" else ())):
            raise UserError(f"--{flag}: belongs to --backend torch; a graph is what it was exported as")
    own = chosen(settings, "max_seq_length", "tokens_per_batch", "truncate_dim")
    return GRAPHS[settings.backend](str(model), settings.backend, device, **own)
