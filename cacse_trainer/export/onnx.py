"""An exported encoder folder as ONNX graphs: tokens in, sentence embedding out, the pooling inside.

``onnx/model.onnx`` gives the folder's vectors within 1e-4 in onnxruntime; ``onnx/model_int8.onnx`` is the same graph
with its weights dynamically quantised, and what that costs, in cosine and on the dev sets, stands in
``onnx/report.json`` and on the folder's card.
"""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cacse_trainer.compute.encoder_tools import known_inputs
from cacse_trainer.compute.pooling import LAYER_POOLINGS, pool
from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.encoding.loading import is_sentence_model, load_encoder
from cacse_trainer.encoding.onnx import FOLDER, OUTPUT, session_function
from cacse_trainer.encoding.saving import PROBES, ExportError
from cacse_trainer.encoding.sentence_transformers import read_modules
from cacse_trainer.errors import UserError, extra_needed
from cacse_trainer.evaluation.dev_sets import as_dev_sets, scores_by_set
from cacse_trainer.files import CARD, write_json, write_text, writing_folder

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
HEADING = "## ONNX graphs\n\n"
"""Of the card's section."""


class Pooled(nn.Module):
    """An encoder, its pooling and the layers above as one module of tensors: (N, L) inputs → (N, H)."""

    def __init__(self, encoder: nn.Module, pooling: str, above: list[nn.Module]):
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        self.above = nn.Sequential(*above)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        states = self.encoder(**known_inputs(self.encoder, given)).last_hidden_state
        return self.above(pool(self.pooling, states, attention_mask=attention_mask))


def export_onnx(folder: Path, dev_sets: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write ``folder/onnx``; returns its report.

    Args:
        folder: an exported encoder.
        dev_sets: by name, see `as_dev_set`; then the report has both graphs' scores, and the cost of the int8 one.

    Raises:
        UserError: onnx or onnxruntime is not installed, or the folder is an ensemble with a module of its own.
        ExportError: the graph's vectors differ from the folder's by more than 1e-4.
    """
    with extra_needed("onnx", "--format onnx needs onnx and onnxruntime"):
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic
    if (folder / "ensemble_module.py").is_file():
        raise UserError(
            f"{folder}: its encoders have tokenizers or poolings of their own, which one graph has not; "
            "export them one by one"
        )
    stated = read_modules(str(folder))
    if stated.pooling is None and is_sentence_model(str(folder)):
        raise UserError(
            f"{folder}: its model pools by itself (averaged layers, layers that see both directions), and no graph is "
            "written of such; train with another pooling, or without bidirectional_start_layer"
        )
    if stated.pooling is None or stated.static is not None or stated.pooling in LAYER_POOLINGS:
        raise UserError(f"{folder}: is no exported encoder folder (its pooling is {stated.pooling})")
    loaded = load_encoder(str(folder), device="cpu")
    loaded.model.set_attn_implementation("eager")
    model = Pooled(loaded.model, stated.pooling, stated.above).eval()
    older = ("model*.onnx*", "report.json") if (folder / FOLDER / "report.json").is_file() else ()
    with writing_folder(folder / FOLDER, older) as staged:
        path, small = staged / "model.onnx", staged / "model_int8.onnx"
        with _without_hints():
            _write_graph(model, loaded.tokenizer, path)
            quantize_dynamic(path, small, weight_type=QuantType.QInt8)

        own = Embedder(model, loaded.tokenizer, loaded.max_seq_length, "cpu", prepare=stated.prepare)
        files = {"float32": path, "int8": small}
        graphs = {
            name: replace(
                own,
                embed=session_function(onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])),
                cores=1,  # the session has its own
            )
            for name, file in files.items()
        }
        expected = own.vectors(PROBES)
        found = {name: graph.vectors(PROBES) for name, graph in graphs.items()}
        differences = {name: float(np.abs(vectors - expected).max()) for name, vectors in found.items()}
        difference = differences["float32"]
        if not difference <= TOLERANCE:
            raise ExportError(f"{folder}: the ONNX graph's vectors differ by {difference:.2e} > {TOLERANCE}")
        report: dict[str, Any] = {
            "pooling": stated.pooling,
            "largest_difference": differences,
            "cosine_loss_of_int8": cosine_loss(expected, found["int8"]),
            "megabytes": {name: file.stat().st_size / 1e6 for name, file in files.items()},
        }
        if dev_sets:
            report["scores"] = {name: scores_by_set(graph, as_dev_sets(dev_sets)) for name, graph in graphs.items()}
            before, after = report["scores"]["float32"], report["scores"]["int8"]
            report["cost_of_int8"] = {dev: before[dev] - after[dev] for dev in before}
        write_json(staged / "report.json", report)
    tell_card(folder / CARD, report)
    logger.info("%s: largest difference from the folder's vectors %.1e", folder / FOLDER, difference)
    return report


def cosine_loss(first: np.ndarray, second: np.ndarray) -> float:
    """The largest 1 - cos of a row of one table and the same row of another; rows of zeros are left out."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first.astype(np.float64) * second).sum(axis=1)
    return float(max(0.0, (1 - products[lengths > 0] / lengths[lengths > 0]).max(initial=0.0)))


def tell_card(card: Path, report: Mapping[str, Any]) -> None:
    """Write into a folder's card, where it has one, what its int8 graph loses; what an earlier export said goes."""
    if not card.is_file():
        return
    lost = [f"up to {report['cosine_loss_of_int8']:.1e} of the cosine on {len(PROBES)} sentences"]
    lost += [f"{cost:.2f} points on {name}" for name, cost in report.get("cost_of_int8", {}).items()]
    told = f"{HEADING}`onnx/model.onnx` gives these vectors, `onnx/model_int8.onnx` loses {' and '.join(lost)}.\n"
    text = re.sub(rf"\n*{HEADING}[^\n]*\n", "\n", card.read_text(encoding="utf-8"))
    before, training, after = text.partition("\n## Training\n")
    write_text(card, f"{before.rstrip()}\n\n{told}{training}{after}")


@contextlib.contextmanager
def _without_hints() -> Iterator[None]:
    """The exporter's hints (torchvision is absent, names of axes, preparing images) are nothing a user can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logging.disable(before)


def _write_graph(model: Pooled, tokenizer: Any, path: Path) -> None:
    """Trace the module on two sentences, with the number of rows and their length left open."""
    inputs = dict(tokenizer(PROBES[:2], padding=True, return_tensors="pt"))
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs]
    with torch.no_grad():
        torch.onnx.export(
            model,
            tuple(inputs[name] for name in names),
            str(path),
            input_names=names,
            output_names=[OUTPUT],
            dynamic_shapes=tuple({0: "rows", 1: "tokens"} for _ in names),
            external_data=False,
            dynamo=True,
            verbose=False,
        )
