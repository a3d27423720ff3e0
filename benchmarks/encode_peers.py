"""The other ways to vectors on a CPU that `benchmarks/encode.py` measures, on the same folder, text and threads.

sentence-transformers' ONNX and OpenVINO backends need optimum, whose releases do not run with transformers 5. What they
do is done here without it: the texts sorted by length, 32 a batch, padded to the longest, through the engine on a graph
of the model. int8 as those backends make it: onnxruntime's dynamic quantisation with optimum's preset for the
processor (per channel, unsigned weights without VNNI), nncf's static one with calibration sentences for OpenVINO.
fastembed reads the same float32 graph by its own batching.
"""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from cacse_trainer.encoding.openvino import load_openvino, the_core
from cacse_trainer.export.onnx import export_onnx

Way = Callable[[list[str]], np.ndarray]
NAMES = ("torch float32", "torch bf16", "onnx float32", "onnx int8")
NAMES += ("openvino float32", "openvino bf16", "openvino int8", "fastembed")
NEEDS = {"onnx": "onnxruntime", "openvino": "openvino", "openvino int8": "nncf", "fastembed": "fastembed"}
CALIBRATION = 100  # sentences


def missing(name: str) -> str | None:
    """The package that a peer needs and that is not installed."""
    needed = NEEDS.get(name) or NEEDS.get(name.split()[0])
    return needed if needed is not None and importlib.util.find_spec(needed) is None else None


class Peers:
    """The ways by name.

    Args:
        folder: a sentence-transformers folder.
        work: a folder for graphs, empty or of an earlier run with the same model.
        limit: length limit in tokens.
        batch_size: of all but fastembed, whose default is 256.
        threads: of every engine.
        calibration: sentences for OpenVINO's int8.
        device: of torch; the others are on the CPU.
    """

    def __init__(
        self,
        folder: str,
        work: Path,
        *,
        limit: int | None,
        batch_size: int,
        threads: int,
        calibration: list[str],
        device: str = "cpu",
    ):
        self.folder, self.work, self.batch_size, self.threads = folder, work / "model", batch_size, threads
        self.calibration = calibration[:CALIBRATION]
        self.torch = SentenceTransformer(folder, device=device)
        self.limit = self.torch.max_seq_length = limit or self.torch.max_seq_length

    def way(self, name: str) -> Way:
        """The peer of this name, ready to encode."""
        engine, _, kind = name.partition(" ")
        if engine == "torch":
            model = self.torch
            if kind == "bf16":
                model = SentenceTransformer(self.folder, device="cpu", model_kwargs={"dtype": torch.bfloat16})
                model.max_seq_length = self.limit
            return lambda rows: model.encode(rows, batch_size=self.batch_size, normalize_embeddings=True)
        self._graph()
        if engine == "fastembed":
            return self._fastembed()
        return self._sorted(self._onnx(kind) if engine == "onnx" else self._openvino(kind))

    def _graph(self) -> Path:
        """``model.onnx``: tokens in, pooled vectors out."""
        if not self.work.exists():
            shutil.copytree(self.folder, self.work)
            export_onnx(self.work)
        return self.work / "onnx" / "model.onnx"

    def _batches(self, rows: list[str]) -> Iterator[dict[str, np.ndarray]]:
        """The tokens as `SentenceTransformer.encode` batches them: sorted by length, padded to the longest."""
        for numbers in self._in_order(rows):
            texts = [rows[i] for i in numbers]
            yield self.torch.tokenizer(texts, padding=True, truncation=True, max_length=self.limit, return_tensors="np")

    def _in_order(self, rows: list[str]) -> list[np.ndarray]:
        order = np.argsort([-len(row) for row in rows], kind="stable")
        return [order[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]

    def padding(self, rows: list[str]) -> float:
        """The share of those batches that is padding."""
        masks = [batch["attention_mask"] for batch in self._batches(rows)]
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)

    def _sorted(self, run: Callable[[dict[str, np.ndarray]], np.ndarray]) -> Way:
        """`SentenceTransformer.encode` with another engine under it."""

        def encode(rows: list[str]) -> np.ndarray:
            given = ({name: ids.astype(np.int64) for name, ids in batch.items()} for batch in self._batches(rows))
            found = np.concatenate([run(batch) for batch in given])
            vectors = np.empty_like(found)
            vectors[np.concatenate(self._in_order(rows))] = found / np.linalg.norm(found, axis=1, keepdims=True)
            return vectors

        return encode

    def _onnx(self, kind: str) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = self._graph()
        if kind == "int8":
            path = self.work / "peer_int8.onnx"
            weights = QuantType.QInt8 if torch.cpu._is_vnni_supported() else QuantType.QUInt8
            if not path.exists():
                quantize_dynamic(self._graph(), path, weight_type=weights, per_channel=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        return lambda given: session.run(None, {name: given[name] for name in names})[0]

    def _openvino(self, kind: str) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
        openvino = load_openvino()
        model = the_core(openvino).read_model(str(self._graph()))
        names = [port.any_name for port in model.inputs]
        kept = self.work / "peer_int8.xml"
        if kind == "int8" and kept.exists():
            model = the_core(openvino).read_model(str(kept))
        elif kind == "int8":
            import nncf

            texts = [dict(self.torch.tokenizer(text, return_tensors="np")) for text in self.calibration]
            data: Any = nncf.Dataset([{name: one[name].astype(np.int64) for name in names} for one in texts])
            model = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(texts))
            openvino.save_model(model, str(kept), compress_to_fp16=False)
        precision = "bf16" if kind == "bf16" else "f32"  # bf16: its default where the processor has it
        settings = {"INFERENCE_NUM_THREADS": self.threads, "INFERENCE_PRECISION_HINT": precision}
        compiled = the_core(openvino).compile_model(model, "CPU", settings)
        return lambda given: compiled({name: given[name] for name in names})[0]

    def _fastembed(self) -> Way:
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        name = "benchmark/encode"
        TextEmbedding.add_custom_model(
            name,
            pooling=PoolingType.DISABLED,  # the graph pools
            normalization=True,
            sources=ModelSource(hf=name),
            dim=self.torch.get_embedding_dimension(),
            model_file="onnx/model.onnx",
        )
        model = TextEmbedding(name, specific_model_path=str(self.work), threads=self.threads)
        model.model.tokenizer.enable_truncation(self.limit)
        return lambda rows: np.stack(list(model.embed(rows)))
