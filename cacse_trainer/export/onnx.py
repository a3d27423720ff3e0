"""An exported encoder folder as ONNX graphs.

``onnx/model.onnx`` gives the folder's vectors in onnxruntime; ``onnx/model_int8.onnx`` is the same graph with its
weights dynamically quantised. See `graphs` for what both have to prove.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cacse_trainer.encoding.graphs import OUTPUT
from cacse_trainer.encoding.onnx import OnnxEncoder
from cacse_trainer.errors import extra_needed
from cacse_trainer.export.graphs import GraphFormat, Pooled, export_graphs

ONNX = GraphFormat("ONNX", OnnxEncoder, ("model*.onnx*", "report.json"))


def export_onnx(folder: Path, dev_sets: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write ``folder/onnx``; returns its report.

    Args:
        folder, dev_sets: see `export_graphs`.

    Raises:
        UserError: onnx or onnxruntime is not installed, or no graph can be written of the folder.
        ExportError: the graph's vectors differ from the folder's by more than 1e-4.
    """
    with extra_needed("onnx", "--format onnx needs onnx and onnxruntime"):
        from onnxruntime.quantization import QuantType, quantize_dynamic

    def write(model: Pooled, inputs: Mapping[str, Tensor], path: Path, small: Path) -> None:
        model.encoder.set_attn_implementation("eager")
        _write_graph(model, inputs, path)
        quantize_dynamic(path, small, weight_type=QuantType.QInt8)

    return export_graphs(folder, ONNX, write, dev_sets)


def _write_graph(model: Pooled, inputs: Mapping[str, Tensor], path: Path) -> None:
    """Trace the module, with the number of rows and their length left open."""
    with torch.no_grad():
        torch.onnx.export(
            model,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=[OUTPUT],
            dynamic_shapes=tuple({0: "rows", 1: "tokens"} for _ in inputs),
            external_data=False,
            dynamo=True,
            verbose=False,
        )
