"""What every encoder can do: encode lists and streams on one device or several, compare, search.

The names of `encode`, `similarity`, `build_index`, `add_to_index` and `search`, and the order of what they return, are
those of the SimCSE tool (Gao et al. 2021), so that a program written for it runs on any encoder.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cacse_trainer.compute.distributed import alone
from cacse_trainer.data.tokens import checked, shortest_limit
from cacse_trainer.encoding.embedder import Advance, Embed, Embedder, Prepare, each_once, progress_bar
from cacse_trainer.encoding.loading import check_length, fingerprint
from cacse_trainer.encoding.pool import EncoderPool, as_one_table, one_after_another
from cacse_trainer.encoding.searching import Device, Searching
from cacse_trainer.encoding.sentence_transformers import DOCUMENT, QUERY, Modules
from cacse_trainer.encoding.spellings import as_asked, refuse_others, texts_of
from cacse_trainer.encoding.vectors.precision import (
    QUANTIZED,
    check_precision,
    normalized,
    quantized,
    to_precision,
    truncated,
)
from cacse_trainer.errors import UserError

BLOCK_SENTENCES = 16_384
"""Sentences tokenised at once, while the block before goes through the model; bounds the memory of a stream."""
POOL_BLOCK_SENTENCES = 2_048
"""Sentences handed to one of several processes at once."""

Compared = str | Sequence[str] | np.ndarray | Tensor
Settings = dict[str, Any]


class BaseEncoder(Searching):
    """Encodes, compares, searches; a kind of encoder has to give what `embedder` takes, and what it says of itself.

    Args:
        given: the ``locals()`` of the constructor, which `recipe` calls again.
    """

    pooling: str
    """What was stated, read or guessed."""
    pooling_guessed: bool = False
    normalizes: bool
    """Whether the folder says that its vectors are scaled to length 1 (MTEB's classifiers see them so)."""
    tokenizer: Any
    tokens_per_batch: int | None
    dtype: torch.dtype = torch.float32
    truncate_dim: int | None = None
    prompts: Mapping[str, str] = {}
    """What the folder puts before sentences, by the names that `encode` takes."""

    _stated: Modules = Modules()
    _embed: Embed
    _prepare: Prepare | None
    _longest: int
    _max_seq_length: int
    _cores: int | None = None
    _width: int | None = None

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = {name: value for name, value in given.items() if name not in ("self", "device", "__class__")}
        self._pool: EncoderPool | None = None

    def __repr__(self) -> str:
        facts = {"pooling": self.pooling, "max_seq_length": self.max_seq_length}
        facts |= {"dimension": self.get_sentence_embedding_dimension(), "device": str(self.device)}
        return f"{type(self).__name__}({self.name!r}, {', '.join(f'{key}={value!r}' for key, value in facts.items())})"

    @property
    def max_seq_length(self) -> int:
        """Longer sentences are cut to so many tokens; may be set.

        Raises:
            UserError: it is set beyond what the model takes, or to less than one token of text.
        """
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, tokens: int) -> None:
        check_length(self.name, tokens, self._longest, shortest_limit(self.tokenizer, self._prepare))
        self._max_seq_length = self._given["max_seq_length"] = tokens
        self.close()  # processes that cut at the older limit

    def get_sentence_embedding_dimension(self) -> int:
        """Width of the vectors, `truncate_dim` taken into account."""
        if self._width is None:
            with alone(), torch.inference_mode():
                self._width = self.begin(["a"])(lambda count: None).shape[1]
        return min(self._width, self.truncate_dim or self._width)

    @property
    def query_prompt(self) -> str | None:
        """What belongs before a query, as the folder states it: `search` puts it there."""
        return self._stated.query_prompt

    @property
    def document_prompt(self) -> str | None:
        """What belongs before a document, as the folder states it: `build_index` puts it there."""
        return self._stated.document_prompt

    def _take_prompts(self, stated: Modules) -> None:
        self._stated, self.prompts = stated, stated.prompts

    @property
    def embedder(self) -> Embedder:
        """The way from text to the model's vectors, by the settings as they are."""
        return Embedder(
            self._embed,
            self.tokenizer,
            self.max_seq_length,
            self.device,
            None if self.dtype == torch.float32 else self.dtype,
            tokens_per_batch=self.tokens_per_batch,
            prepare=self._prepare,
            cores=self._cores,
            name=self.name,
            query_prompt=self._stated.query_prompt,
            document_prompt=self._stated.document_prompt,
        )

    def begin(
        self,
        sentences: Sequence[str],
        *,
        batch_size: int | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
    ) -> Callable[[Advance], np.ndarray]:
        """Tokenise; what is returned runs the model and gives (n, dim) float32, not scaled.

        The two halves may run on different threads.
        """
        if max_length is not None:
            check_length(self.name, max_length, self._longest, shortest_limit(self.tokenizer, self._prepare))
        return self.embedder.begin(sentences, batch_size=batch_size, max_length=max_length, prompt=prompt)

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the weights."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What else the vectors depend on, for reports."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model is."""

    @abstractmethod
    def to(self, device: Device) -> "BaseEncoder":
        """Move the model."""

    def recipe(self) -> Callable[..., "BaseEncoder"]:
        """A function of ``device`` that loads the same encoder in another process, whatever folder that runs in."""
        given = [(k, v) for k, v in self._given.items() if k in ("path", "adapter") and v and Path(v).exists()]
        return partial(type(self), **{**self._given, **{k: str(Path(v).resolve()) for k, v in given}})

    def vectors(
        self,
        sentences: Sequence[str],
        *,
        batch_size: int | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
        show_progress_bar: bool = False,
        description: str = "Encoding",
    ) -> np.ndarray:
        """(len(sentences), dim) float32, not scaled; each distinct sentence is encoded once.

        Raises:
            UserError: a vector is not finite; the first such sentence is quoted.
        """
        settings = {"batch_size": batch_size, "max_length": max_length, "prompt": prompt}
        return self._table(sentences, None, show_progress_bar, description, settings)

    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int | None = None,
        normalize: bool = True,
        show_progress_bar: bool = False,
        *,
        precision: str = "float32",
        truncate_dim: int | None = None,
        device: Device | Sequence[Device] | None = None,
        return_numpy: bool = True,
        normalize_to_unit: bool | None = None,
        keepdim: bool = False,
        max_length: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        normalize_embeddings: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **others: Any,
    ) -> Any:
        """Encode sentences.

        Args:
            sentences: one, or any number, also from a generator; ``""`` is fine, and so are rows ``{"text": …}``. One
                without any token, special ones included, gives zeros.
            batch_size: rows a batch; default: by a budget of tokens, which is faster.
            normalize: scale to length 1, so that the dot product is the cosine; a zero vector stays zero.
            show_progress_bar: a bar on standard error.
            precision: float32; or, with the numbers that sentence-transformers gives, int8 or uint8, each dimension
                scaled by its range over these sentences, binary or ubinary, the signs packed into bytes.
            truncate_dim: keep so many of the first dimensions; default: the encoder's own setting.
            device: move the model there first; several (``["cuda:0", "cuda:1"]``, ``["cpu"] * 2``) start a process
                each, which stay for the next call until `close`.
            return_numpy: False gives a torch tensor on the CPU.
            normalize_to_unit: another name of ``normalize``.
            keepdim: (1, dim) for one sentence.
            max_length: in tokens; default: the encoder's own.
            prompt_name: of one of `prompts`, such as ``query``; it is put before every sentence.
            prompt: put before every sentence; ``""``: nothing. Default: what the folder puts there by default.
            normalize_embeddings: sentence-transformers' name of ``normalize``, which is True here and False there.
            convert_to_numpy: False gives torch tensors, as there: a list of them for several sentences.
            convert_to_tensor: one torch tensor on the encoder's device, as there.
            others: none; what sentence-transformers takes besides is answered with what to write here.

        Returns:
            (dim,) for one sentence, (n, dim) for several; see `quantized` for the other precisions.

        Raises:
            UserError: a sentence is no string or holds half a character, a vector is not finite, a setting is out of
                its range, or unknown, or there is no prompt of that name.
        """
        check_precision(precision, QUANTIZED)
        refuse_others(others)
        several = isinstance(sentences, Iterable) and not isinstance(sentences, (str, bytes, Mapping))
        rows: Iterable[Any] = texts_of(sentences if several else [sentences])
        settings = {"batch_size": batch_size, "max_length": max_length, "prompt": self.prompt_of(prompt_name, prompt)}
        table = self._table(rows, self._on(device), show_progress_bar, "Encoding", settings)
        scaled = next((said for said in (normalize_embeddings, normalize_to_unit) if said is not None), normalize)
        table = quantized(_finished(table, scaled, truncate_dim), precision)
        found: Any = table[0] if isinstance(sentences, str) and not keepdim else table
        if not return_numpy:
            return torch.from_numpy(np.array(found))
        return as_asked(found, self.device, convert_to_numpy, convert_to_tensor)

    def encode_stream(
        self,
        sentences: Iterable[str] | Iterable[list[str]],
        block_size: int | None = BLOCK_SENTENCES,
        *,
        normalize: bool = True,
        precision: str = "float32",
        truncate_dim: int | None = None,
        batch_size: int | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
        device: Device | Sequence[Device] | None = None,
        advance: Advance = lambda count: None,
    ) -> Iterator[np.ndarray]:
        """Encode any number of sentences in constant memory, a block at a time.

        Args:
            sentences: a generator, a file's lines, …
            block_size: sentences a block; while one goes through the model the next is tokenised. None: what is given
                are lists, a block each; a block's vectors depend on no other one.
            precision: of vectors that are kept, row by row: float32, float16, int8 or binary, see `to_precision`.
            normalize, truncate_dim, batch_size, max_length, prompt, device: as for `encode`.
            advance: told how many more sentences are done.

        Yields:
            (block_size, dim), in order; the last one may be shorter.
        """
        check_precision(precision)
        if block_size is not None and block_size < 1:
            raise UserError(f"block_size is {block_size}; it must be at least 1")
        settings = {"batch_size": batch_size, "max_length": max_length, "prompt": prompt}
        blocks = _parts(sentences, block_size) if block_size is not None else map(list, map(checked, sentences))
        for table in self._blocks(blocks, advance, self._on(device), settings):
            yield to_precision(_finished(table, normalize, truncate_dim), precision)

    def similarity(self, queries: Compared, keys: Compared, device: Device | None = None) -> Any:
        """Cosine of sentences: two strings → float, a string and n sentences → (n,), n and m sentences → (n, m).

        Vectors, (dim,) for one or (n, dim), may stand for sentences.
        """
        self._on(device)
        first, second = (self._unit_rows(given) for given in (queries, keys))
        if len(first) == 0 or len(second) == 0:
            return np.zeros((len(first), len(second)), dtype=np.float32)
        table = first @ second.T  # (n, m)
        single = [isinstance(given, str) or getattr(given, "ndim", 2) == 1 for given in (queries, keys)]
        return float(table[0, 0]) if all(single) else table.reshape(-1) if any(single) else table

    def described(self) -> dict[str, Any]:
        """What a saved index records of its encoder: name, weights, and what else directions depend on."""
        path = Path(self.name)
        named = self.settings().items()  # float32 and bfloat16 may ask each other's
        more = {name: value for name, value in named if name not in ("dtype", "adapter") or value == "int8"}
        return {
            "model": str(path.resolve()) if path.is_dir() else self.name,
            "pooling": self.pooling,
            "fingerprint": self.fingerprint(),
            "truncate_dim": self.truncate_dim,
            **more,
        }

    def identity(self) -> dict[str, Any]:
        """What the vectors depend on besides the weights: `settings`, pooling, layers above it, what a text becomes."""
        stated = self._stated
        own = {name: value for name, value in self.settings().items() if name != "adapter"}  # in the weights' hash
        above = fingerprint(nn.ModuleList(stated.above))
        text = {"prompt": stated.prompt, "lower_case": stated.lower_case}
        return {**own, **text, "pooling": self.pooling, "above": above, "normalizes": self.normalizes}

    def prompt_of(self, name: str | None, text: str | None = None) -> str | None:
        """A prompt by its name, or the text that is given; None for neither.

        Raises:
            UserError: there is none of that name, or both are given.
        """
        if name is None:
            return text
        if text is not None:
            raise UserError("give a prompt, or the name of one (prompt_name), not both")
        searched = {QUERY: self._stated.query_prompt, DOCUMENT: self._stated.document_prompt} if self.prompts else {}
        known = {**searched, **self.prompts}
        if name not in known:
            has = ", ".join(known) or "none"
            raise UserError(f"model {self.name} has no prompt {name!r}; it has {has}: give its text as prompt")
        return known[name]

    def prompt_facts(self, prompt: str | None) -> dict[str, Any]:
        """What is recorded of vectors before whose sentences a prompt stood: nothing where it is the default one."""
        return {} if prompt is None or prompt == self._stated.prompt else {"prompt": prompt}

    def close(self) -> None:
        """End the processes that `encode` started for several devices."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def _on(self, device: Device | Sequence[Device] | None) -> EncoderPool | None:
        """Move the model to one device, or start (once) a process for each of several."""
        if isinstance(device, (str, torch.device)):
            self.to(device)
            device = None
        if device is None:
            return None
        devices = [str(name) for name in device]
        if self._pool is None or self._pool.devices != devices:
            self.close()
            self._pool = EncoderPool(self.recipe(), devices, self.fingerprint())
        return self._pool

    def _table(
        self, sentences: Iterable[str], pool: EncoderPool | None, shown: bool, description: str, settings: Settings
    ) -> np.ndarray:
        """(n, dim) float32; each distinct sentence of a sequence is encoded once (in a pool: once a block)."""

        def encode(rows: Iterable[str]) -> np.ndarray:
            total = len(rows) if isinstance(rows, Sequence) else None
            size = BLOCK_SENTENCES if pool is None else POOL_BLOCK_SENTENCES
            with progress_bar(total, shown, description) as bar:
                return as_one_table(self._blocks(_parts(rows, size), bar.update, pool, settings), total)

        return each_once(sentences, encode) if pool is None and isinstance(sentences, Sequence) else encode(sentences)

    def _blocks(
        self, blocks: Iterable[list[str]], advance: Advance, pool: EncoderPool | None, settings: Settings
    ) -> Iterator[np.ndarray]:
        """The (n, dim) float32 tables of the blocks, in their order."""
        if pool is not None:
            tables = pool.vectors(blocks, settings, advance)
        else:
            tables = one_after_another(partial(self.begin, **settings), blocks, advance)
        for table in tables:
            yield truncated(table, self.truncate_dim)

    def _unit_rows(self, given: Compared) -> np.ndarray:
        if isinstance(given, (np.ndarray, Tensor)):
            return normalized(np.atleast_2d(np.asarray(given, dtype=np.float32)))
        return self.encode(given, keepdim=True)


def _parts(sentences: Iterable[Any], size: int) -> Iterator[list[str]]:
    source = checked(sentences)
    return iter(lambda: list(islice(source, size)), [])


def _finished(table: np.ndarray, normalize: bool, dim: int | None) -> np.ndarray:
    table = truncated(table, dim)
    return normalized(table) if normalize else table
