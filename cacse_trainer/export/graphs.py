"""An exported encoder folder as graphs for other engines: tokens in, sentence embedding out, the pooling inside.

Every format has a float32 graph, which gives the folder's vectors within 1e-4, and an int8 one; what that costs, in
cosine and on the dev sets, stands in ``FORMAT/report.json`` and on the folder's card.
"""

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from cacse_trainer.compute.encoder_tools import known_inputs
from cacse_trainer.compute.pooling import LAYER_POOLINGS, pool
from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.encoding.graphs import GraphEncoder
from cacse_trainer.encoding.loading import is_sentence_model, load_encoder
from cacse_trainer.encoding.saving import PROBES, ExportError
from cacse_trainer.encoding.sentence_transformers import Modules, read_modules
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.dev_sets import as_dev_sets, scores_by_set
from cacse_trainer.files import CARD, write_json, write_text, writing_folder

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Pooled(nn.Module):
    """An encoder, its pooling and the layers above as one module of tensors: (N, L) inputs → (N, H)."""

    def __init__(self, encoder: nn.Module, pooling: str, above: list[nn.Module]):
        super().__init__()
        self.encoder: Any = encoder
        self.pooling = pooling
        self.above = nn.Sequential(*above)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        return self.with_states(input_ids, attention_mask, token_type_ids)[1]

    def with_states(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The encoder's states, (N, L, H), too."""
        given = dict(zip(INPUTS, (input_ids, attention_mask, token_type_ids), strict=True))
        states = self.encoder(**known_inputs(self.encoder, given)).last_hidden_state
        return states, self.above(pool(self.pooling, states, attention_mask=attention_mask))


@dataclass(frozen=True)
class GraphFormat:
    """A kind of graphs.

    Args:
        title: its name in a card.
        encoder: runs its graphs; names its folder and its files.
        parts: patterns of its files in a folder that an older version wrote, which kept no list; none: all kept one.
    """

    title: str
    encoder: type[GraphEncoder]
    parts: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """In the encoder's folder."""
        return self.encoder.format

    @property
    def heading(self) -> str:
        """Of the card's section."""
        return f"## {self.title} graphs\n\n"

    def files(self, within: Path) -> dict[str, Path]:
        """The two graphs, ``float32`` and ``int8``."""
        return dict(zip(("float32", "int8"), (within / name for name in self.encoder.graphs.values()), strict=True))


Write = Callable[[Pooled, Mapping[str, Tensor], Path, Path], None]
"""``write(model, inputs, path, small)``: the model, called with inputs like these, as a float32 and an int8 graph."""


def export_graphs(
    folder: Path, kind: GraphFormat, write: Write, dev_sets: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write the graphs of one format into a folder, prove and measure them; returns the report.

    Args:
        folder: an exported encoder.
        kind: the format.
        write: writes its files.
        dev_sets: by name, see `as_dev_set`; then the report has both graphs' scores, and the cost of the int8 one.

    Raises:
        UserError: no graph can be written of the folder.
        ExportError: the float32 graph's vectors differ from the folder's by more than 1e-4.
    """
    stated, pooling = read_pooling(folder)
    loaded = load_encoder(str(folder), device="cpu")
    loaded.model.config.use_cache = False  # a decoder's keys and values, kept for a next token that never comes
    model = Pooled(loaded.model, pooling, stated.above).eval()
    older = kind.parts if (folder / kind.folder / "report.json").is_file() else ()
    with writing_folder(folder / kind.folder, older) as staged:
        files = kind.files(staged)
        given = dict(loaded.tokenizer(PROBES[:2], padding=True, return_tensors="pt"))
        with _without_hints():
            write(model, {name: given[name] for name in INPUTS if name in given}, *files.values())

        own = Embedder(model, loaded.tokenizer, loaded.max_seq_length, "cpu", prepare=stated.prepare)
        graphs = {
            name: replace(own, embed=kind.encoder.opened(file), cores=1)  # the engine has threads of its own
            for name, file in files.items()
        }
        expected = own.vectors(PROBES)
        found = {name: graph.vectors(PROBES) for name, graph in graphs.items()}
        differences = {name: float(np.abs(vectors - expected).max()) for name, vectors in found.items()}
        difference = differences["float32"]
        if not difference <= TOLERANCE:
            raise ExportError(f"{folder}: the {kind.title} graph's vectors differ by {difference:.2e} > {TOLERANCE}")
        report: dict[str, Any] = {
            "pooling": pooling,
            "largest_difference": differences,
            "cosine_loss_of_int8": cosine_loss(expected, found["int8"]),
            "megabytes": {name: _size(file) / 1e6 for name, file in files.items()},
        }
        if dev_sets:
            report["scores"] = {name: scores_by_set(graph, as_dev_sets(dev_sets)) for name, graph in graphs.items()}
            before, after = report["scores"]["float32"], report["scores"]["int8"]
            report["cost_of_int8"] = {dev: before[dev] - after[dev] for dev in before}
        write_json(staged / "report.json", report)
    tell_card(folder / CARD, kind, report)
    logger.info("%s: largest difference from the folder's vectors %.1e", folder / kind.folder, difference)
    return report


def read_pooling(folder: Path) -> tuple[Modules, str]:
    """What a folder states, and the pooling of its tokens' states.

    Raises:
        UserError: no graph can be written of it: its encoders have tokenizers of their own, its model pools by itself,
            or it is no exported encoder.
    """
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
    return stated, stated.pooling


def cosine_loss(first: np.ndarray, second: np.ndarray) -> float:
    """The largest 1 - cos of a row of one table and the same row of another; rows of zeros are left out."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first.astype(np.float64) * second).sum(axis=1)
    return float(max(0.0, (1 - products[lengths > 0] / lengths[lengths > 0]).max(initial=0.0)))


def tell_card(card: Path, kind: GraphFormat, report: Mapping[str, Any]) -> None:
    """Write into a folder's card, where it has one, what its int8 graph loses; what an earlier export said goes."""
    if not card.is_file():
        return
    lost = [f"up to {report['cosine_loss_of_int8']:.1e} of the cosine on {len(PROBES)} sentences"]
    lost += [f"{cost:.2f} points on {name}" for name, cost in report.get("cost_of_int8", {}).items()]
    whole, small = (f"`{path.as_posix()}`" for path in kind.files(Path(kind.folder)).values())
    told = f"{kind.heading}{whole} gives these vectors, {small} loses {' and '.join(lost)}.\n"
    text = re.sub(rf"\n*{kind.heading}[^\n]*\n", "\n", card.read_text(encoding="utf-8"))
    before, training, after = text.partition("\n## Training\n")
    write_text(card, f"{before.rstrip()}\n\n{told}{training}{after}")


def _size(graph: Path) -> int:
    """Bytes of a graph, with the file of its weights where they are not inside."""
    return sum(path.stat().st_size for path in {graph, graph.with_suffix(".bin")} if path.is_file())


@contextlib.contextmanager
def _without_hints() -> Iterator[None]:
    """The exporters' hints (torchvision is absent, names of axes, preparing images) are nothing a user can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(before)
