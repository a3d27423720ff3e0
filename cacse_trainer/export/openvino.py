"""An exported encoder folder as OpenVINO graphs.

``openvino/openvino_model.xml`` gives the folder's vectors (``sentence_embedding``) and the tokens' states
(``last_hidden_state``), which sentence-transformers' OpenVINO backend takes and pools by the folder's own modules. In
``openvino/openvino_model_qint8_quantized.xml``, the name that backend gives an int8 graph, every matrix W that is
multiplied or looked up in is 8-bit integers and a scale for each row (one output of a product, one token of a table):

    W[i, j] ≈ s[i]·q[i, j],    s[i] = max_j |W[i, j]| / 127,    q = round(W / s)

On a processor that multiplies such integers OpenVINO quantises the states before a product, too, as it runs; elsewhere
it multiplies in float32, and the graph is only smaller. See `graphs` for what both graphs have to prove.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cacse_trainer.encoding.graphs import OUTPUT
from cacse_trainer.encoding.openvino import OpenVINOEncoder, load_openvino
from cacse_trainer.export.graphs import GraphFormat, Pooled, export_graphs

OPENVINO = GraphFormat("OpenVINO", OpenVINOEncoder)
STATES = "last_hidden_state"
QUANTISED = {"MatMul", "Gather"}
"""The operations whose matrix becomes int8: products, and tables of embeddings."""


def export_openvino(folder: Path, dev_sets: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write ``folder/openvino``; returns its report.

    Args:
        folder, dev_sets: see `export_graphs`.

    Raises:
        UserError: openvino is not installed, or no graph can be written of the folder.
        ExportError: the graph's vectors differ from the folder's by more than 1e-4.
    """
    openvino = load_openvino()

    def write(model: Pooled, inputs: Mapping[str, Tensor], path: Path, small: Path) -> None:
        graph = _graph_of(openvino, model, inputs)
        openvino.save_model(graph, path, compress_to_fp16=False)
        quantise(openvino, graph)
        openvino.save_model(graph, small, compress_to_fp16=False)

    return export_graphs(folder, OPENVINO, write, dev_sets)


class _Both(nn.Module):
    """The states and the vectors: what `Pooled.with_states` gives, as a module's only way."""

    def __init__(self, model: Pooled):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.model.with_states(input_ids, attention_mask, token_type_ids)


def _graph_of(openvino: ModuleType, model: Pooled, inputs: Mapping[str, Tensor]) -> Any:
    """Trace the module, with the number of rows and their length left open; inputs and outputs get their names."""
    open_sizes = tuple({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in inputs)
    with torch.no_grad():
        traced = torch.export.export(_Both(model), tuple(inputs.values()), dynamic_shapes=open_sizes)
    graph = openvino.convert_model(traced)
    for ports, names in ((graph.inputs, inputs), (graph.outputs, (STATES, OUTPUT))):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    return graph


def quantise(openvino: ModuleType, graph: Any) -> None:
    """Turn a graph's matrices into int8 and scales, in place; those that something else reads, too, stay as they are.

    Args:
        openvino: the library.
        graph: an ``openvino.Model`` in float32.
    """
    ops = openvino.opset13
    for node in graph.get_ordered_ops():
        if (
            node.get_type_name() != "Constant"
            or node.get_element_type() != openvino.Type.f32
            or not _is_matrix(node.shape)
        ):
            continue
        readers = list(node.output(0).get_target_inputs())
        if not {reader.get_node().get_type_name() for reader in readers} <= QUANTISED:
            continue
        weights = node.get_data()
        rows = {_row_axis(reader) for reader in readers}
        if len(rows) > 1:
            continue
        scales = np.abs(weights).max(axis=1 - rows.pop(), keepdims=True) / 127
        scales[scales == 0] = 1
        numbers = np.round(weights / scales).astype(np.int8)
        small = ops.multiply(ops.convert(ops.constant(numbers), "f32"), ops.constant(scales.astype(np.float32)))
        for reader in readers:
            reader.replace_source_output(small.output(0))


def _is_matrix(shape: Any) -> bool:
    return len(shape) == 2 and min(shape) > 1


def _row_axis(reader: Any) -> int:
    """Along which axis a matrix has the outputs of a product, or the rows of a table."""
    node = reader.get_node()
    if node.get_type_name() == "Gather":
        return 0
    attributes, place = node.get_attributes(), reader.get_index()
    return int(not attributes["transpose_b"]) if place == 1 else int(attributes["transpose_a"])
