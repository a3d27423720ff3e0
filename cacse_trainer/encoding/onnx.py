"""An exported folder's ONNX graph as an encoder: onnxruntime on the CPU, in float32 or int8 (extra ``onnx``)."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from cacse_trainer.encoding.embedder import Embed
from cacse_trainer.encoding.graphs import OUTPUT, GraphEncoder
from cacse_trainer.errors import extra_needed


class OnnxEncoder(GraphEncoder):
    """The graphs of ``--format onnx``: ``onnx`` in float32, ``onnx_int8`` with dynamically quantised products."""

    format = "onnx"
    graphs: ClassVar = {"onnx": "model.onnx", "onnx_int8": "model_int8.onnx"}

    @classmethod
    def opened(cls, graph: Path) -> Embed:
        """See `GraphEncoder.opened`."""
        with extra_needed("onnx", "an ONNX graph needs onnxruntime"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]

        def embed(**inputs: Tensor) -> Tensor:
            given = {name: inputs[name].numpy() for name in names}
            return torch.from_numpy(session.run([OUTPUT], given)[0])

        return embed
