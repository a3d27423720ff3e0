"""The tools of SimCSE and DiffCSE by their own names: a program changes its import and nothing else.

from cacse_trainer import SimCSE                                       # instead of: from simcse import SimCSE
model = SimCSE("princeton-nlp/sup-simcse-bert-base-uncased")
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from cacse_trainer.encoding.base import BaseEncoder
from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.encoding.loading import states_pooling
from cacse_trainer.encoding.released import HEAD, RAW


class SimCSE(SentenceEncoder):
    """`SentenceEncoder` as SimCSE's tool is called.

    `encode` gives numpy arrays (``return_numpy=False``: tensors), and cuts at the model's own limit where the tool cut
    at 128 tokens (``max_length``).

    Args:
        model_name_or_path: folder or hub id.
        device: default: a GPU where there is one.
        num_cells, num_cells_in_search: of the approximate index; taken, and without effect: cells follow from the
            corpus, those that are searched from ``search_effort`` of `build_index`.
        pooler: ``cls``, through the model's pooler, or ``cls_before_pooler``; or any of `CHOICES`. Default: what is
            known of the model, else the tool's own rule: ``cls_before_pooler`` with "unsup" in the name, else ``cls``.
        settings: more of `SentenceEncoder`'s.

    Raises:
        UserError: see `SentenceEncoder`.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        device: str | None = None,
        num_cells: int = 100,
        num_cells_in_search: int = 10,
        pooler: str | None = None,
        **settings: Any,
    ):
        name = str(model_name_or_path)
        if pooler is None and not states_pooling(name):
            pooler = self._default_pooler(name)
        super().__init__(name, HEAD if pooler == "cls" else pooler, device, **settings)

    def _default_pooler(self, name: str) -> str:
        return RAW if "unsup" in name else "cls"

    def recipe(self) -> Callable[..., BaseEncoder]:
        """As the parent's, of the plain class."""
        return partial(SentenceEncoder, **self._given)


class DiffCSE(SimCSE):
    """The same as DiffCSE's tool: the default is ``cls_before_pooler`` whatever the name."""

    def _default_pooler(self, name: str) -> str:
        return RAW
