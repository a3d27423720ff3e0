"""An exported folder's OpenVINO graph as an encoder: on the CPU, float32 or int8 weights (extra ``openvino``)."""

import sys
from functools import cache
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from cacse_trainer.encoding.embedder import Embed
from cacse_trainer.encoding.graphs import OUTPUT, GraphEncoder
from cacse_trainer.errors import extra_needed

TELEMETRY = "openvino_telemetry"
SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 64,
    "ENABLE_CPU_PINNING": False,
}
"""How a graph is run: in float32, where OpenVINO takes bfloat16 by itself on processors that have it; where the weights
are int8 and the processor multiplies such (VNNI), 64 numbers of a token's state are quantised together: of 32, 64,
128 and 384 the larger loses the more (1.1e-3 to 4.6e-3 of the cosine, MiniLM), and 128 is a tenth faster than 64. No
thread is bound to a core, which another process's threads may be bound to as well."""


class OpenVINOEncoder(GraphEncoder):
    """The graphs of ``--format openvino``: ``openvino`` in float32, ``openvino_int8`` with int8 weights."""

    format = "openvino"
    graphs: ClassVar = {
        "openvino": "openvino_model.xml",
        "openvino_int8": "openvino_model_qint8_quantized.xml",
    }

    @classmethod
    def opened(cls, graph: Path) -> Embed:
        """See `GraphEncoder.opened`."""
        settings = {**SETTINGS, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        run = the_core(load_openvino()).compile_model(str(graph), "CPU", settings)
        names, alone = [port.any_name for port in run.inputs], Lock()

        def embed(**inputs: Tensor) -> Tensor:
            with alone:  # the next run writes into what this one gives
                found = run({name: inputs[name].numpy() for name in names})
                return torch.from_numpy(found[OUTPUT].copy())

        return embed

    def _files(self) -> list[Path]:
        return [self._graph, self._graph.with_suffix(".bin")]


@cache
def the_core(openvino: ModuleType) -> Any:
    """The one ``openvino.Core`` of the process, which is never taken down.

    On processors with AMX each core gives the thread a stack for signals, and its end gives back the one before: of two
    that end in another order than the reverse, what is left is freed memory, and the next Ctrl-C or SIGTERM is a
    segmentation fault (openvino 2026.4).
    """
    return openvino.Core()


def load_openvino() -> ModuleType:
    """The library, without what it imports to report its use to its makers: it does so at every import, unasked.

    Raises:
        UserError: it is not installed.
    """
    hidden = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # as if it were not installed, which openvino foresees
    try:
        with extra_needed("openvino", "an OpenVINO graph needs openvino"):
            import openvino
    finally:
        del sys.modules[TELEMETRY]
        if hidden is not None:
            sys.modules[TELEMETRY] = hidden
    return openvino
