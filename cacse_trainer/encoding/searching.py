"""What every encoder can do with an index: build one of sentences, add to it, search it, save and load it."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from cacse_trainer.data.corpus import Corpus
from cacse_trainer.encoding.vectors.index import EXACT, SearchIndex
from cacse_trainer.encoding.vectors.precision import check_precision
from cacse_trainer.errors import UserError

FAISS_FROM = 100_000
"""Sentences of an index that faiss searches by itself."""
Device = torch.device | str
SentencesOrFile = Iterable[str] | str | os.PathLike[str]


class Searching(ABC):
    """An index of an encoder's vectors; the encoder gives `encode`, `described`, its prompts and `device`."""

    name: str
    """As the user gave it."""
    index: SearchIndex | None = None
    encode: Callable[..., Any]

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What a saved index records of its encoder: name, weights, and what else directions depend on."""

    @property
    @abstractmethod
    def query_prompt(self) -> str | None:
        """What belongs before a query."""

    @property
    @abstractmethod
    def document_prompt(self) -> str | None:
        """What belongs before a sentence of the index."""

    @abstractmethod
    def prompt_facts(self, prompt: str | None) -> dict[str, Any]:
        """What is recorded of vectors before whose sentences a prompt stood."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model is."""

    def build_index(
        self,
        sentences_or_file: SentencesOrFile,
        use_faiss: bool | None = None,
        faiss_fast: bool = False,
        device: Device | Sequence[Device] | None = None,
        batch_size: int | None = None,
        *,
        kind: str | None = None,
        precision: str = "float32",
        search_effort: int | None = None,
        text_column: str | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        """Encode the sentences that `search` looks through, behind the encoder's `document_prompt`.

        Args:
            sentences_or_file: sentences, or a txt, csv, tsv, jsonl or parquet file (blank rows are skipped).
            use_faiss, faiss_fast: True stands for ``kind`` "flat", and both for "ivf". Default: as SimCSE's tool, faiss
                where it is installed, from `FAISS_FROM` sentences on, on a CPU and with full precision; what is found
                is the same.
            device, batch_size, show_progress_bar: as for `encode`.
            kind: exact (default; needs nothing more), or through faiss: flat, ivf, hnsw, or a faiss factory string.
            precision: of the exact index's vectors: float32, float16, int8 or binary.
            search_effort: cells (ivf, default 32) or candidates (hnsw, default 128) that a query looks at.
            text_column: of a file with several.

        Raises:
            UserError: no such file, no sentence in it, or an index that is not possible.
        """
        check_precision(precision)
        chosen = kind or ("ivf" if faiss_fast and use_faiss is not False else "flat" if use_faiss else EXACT)
        sentences = _texts(sentences_or_file, text_column)
        how = {"device": device, "show_progress_bar": show_progress_bar, "prompt": self.document_prompt}
        table = self.encode(sentences, batch_size, **how)
        plain = kind is None and use_faiss is None and precision == "float32" and self.device.type == "cpu"
        if plain and chosen == EXACT and len(sentences) >= FAISS_FROM and find_spec("faiss") is not None:
            chosen = "flat"
        made_by = self.made_by()
        self.index = SearchIndex.build(
            sentences, table, kind=chosen, precision=precision, search_effort=search_effort, made_by=made_by
        )

    def add_to_index(
        self,
        sentences_or_file: SentencesOrFile,
        device: Device | Sequence[Device] | None = None,
        batch_size: int | None = None,
        *,
        text_column: str | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        """Encode more sentences and put them into the index, behind the others; arguments as for `build_index`.

        Raises:
            UserError: there is no index yet, no such file, or no sentence in it.
        """
        index = self._built("add_to_index")
        sentences = _texts(sentences_or_file, text_column)
        how = {"device": device, "show_progress_bar": show_progress_bar, "prompt": self.document_prompt}
        table = self.encode(sentences, batch_size, **how)
        index.add(sentences, table)

    def search(
        self, queries: str | Sequence[str], top_k: int = 5, threshold: float = 0.6, device: Device | None = None
    ) -> Any:
        """The nearest sentences of the index to queries, which are encoded behind the encoder's `query_prompt`.

        Args:
            queries: one, or several.
            top_k: at most so many each.
            threshold: cosine from which a sentence counts.
            device: move the model there first; an exact index compares there, too.

        Returns:
            ``[(sentence, score), …]``, best first, for one query; a list of those for a list.

        Raises:
            UserError: there is no index yet.
        """
        index = self._built("search")
        wanted = self.encode(queries, device=device, keepdim=True, prompt=self.query_prompt)
        found = index.search(wanted, top_k=top_k, threshold=threshold, device=self.device)
        return found[0] if isinstance(queries, str) else found

    def save_index(self, folder: str | os.PathLike[str]) -> None:
        """Write the index with its sentences into a folder, whole or not at all.

        Raises:
            UserError: there is no index, or the folder holds something else or cannot be written.
        """
        self._built("save_index").save(Path(folder))

    def load_index(self, folder: str | os.PathLike[str], search_effort: int | None = None) -> None:
        """Read an index that `save_index` wrote; an exact one's vectors are mapped, not read.

        Raises:
            UserError: there is none, it is damaged, or other weights, another pooling or length made it.
        """
        index = SearchIndex.load(Path(folder), search_effort)
        mine, its = self.made_by(), {"prompt": None, "dtype": None, **index.made_by}
        differing = [name for name, value in its.items() if name != "model" and mine.get(name) != value]
        if differing:
            raise UserError(
                f"index {folder}: was made by {index.made_by.get('model')}, and {self.name} differs in "
                f"{', '.join(differing)}; load the encoder that made it, or build the index anew"
            )
        self.index = index

    def made_by(self) -> dict[str, Any]:
        """What an index of this encoder's records: `described`, and the prompt before its sentences."""
        return {**self.described(), **self.prompt_facts(self.document_prompt)}

    def _built(self, what: str) -> SearchIndex:
        if self.index is None:
            raise UserError(f"{what}: there is no index yet; call build_index(sentences) first")
        return self.index


def _texts(sentences_or_file: SentencesOrFile, text_column: str | None) -> list[str]:
    if isinstance(sentences_or_file, (str, os.PathLike)):
        sentences = [text for text in Corpus(os.fspath(sentences_or_file), text_column) if text.strip()]
    else:
        sentences = list(sentences_or_file)
    if not sentences:
        raise UserError("build_index: no sentences to look through")
    return sentences
