"""`Embedder`: sentences to vectors, each distinct sentence once, sorted by length, in batches of a token budget.

This is the one road on which anything is encoded outside of training: dev sets, teachers, exports, the evaluation
suites, the encoder tool. It sees a model only through a function of input tensors. On a CPU each core has batches of
its own. On several processes the batches are dealt out and the vectors gathered, so that every process returns the
same.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from cacse_trainer.compute.cores import over_cores
from cacse_trainer.compute.distributed import gather_objects, rank, world_size
from cacse_trainer.compute.memory import keep_freed_memory
from cacse_trainer.data.tokens import Row, check_limit, checked, pad_rows, tell_of_unknown, tokenise
from cacse_trainer.errors import UserError
from cacse_trainer.models.tokenizer_bundle import tokenizers_of

Embed = Callable[..., Tensor]
"""``embed(input_ids, attention_mask[, token_type_ids]) → (n, dim)``."""
Prepare = Callable[..., str]
"""``prepare(sentence[, prompt]) → text``; without a prompt (None) the default one is put before it."""
Advance = Callable[[int], object]
"""Told how many more sentences are done; a progress bar's ``update``."""

TOKENS_PER_BATCH, TOKENS_PER_BATCH_IN_HALF = {"cpu": 1024}, {"cpu": 2048}
"""Padded tokens a batch by kind of device. On a CPU a batch is one core's (benchmarks/encode.py --tokens_per_batch): as
many as its cache holds, with bytes or half the bytes for each number; products in bfloat16 gain a sixth from 2048."""
TOKENS_PER_BATCH_ELSEWHERE = 16384


class Vectors(Protocol):
    """Whatever turns text into vectors: an `Embedder`, an encoder."""

    @property
    def query_prompt(self) -> str | None:
        """What belongs before the queries of a search; None: the default."""

    @property
    def document_prompt(self) -> str | None:
        """What belongs before its documents."""

    def vectors(self, sentences: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        """(len(sentences), dim) float32; see `Embedder.vectors`."""


def length_limit(tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
    """The longest input in tokens that the tokenizer and the position tables of all the model's encoders allow."""
    stated = tokenizer.model_max_length
    if len(tokenizers_of(tokenizer)) > 1:  # each encoder's text is cut by its own tokenizer
        return stated
    if not isinstance(stated, (int, float)):
        raise UserError(
            f"the tokenizer's model_max_length is {stated!r}; write a number into its tokenizer_config.json"
        )
    return int(min(stated, position_limit(config)))


def position_limit(config: Any) -> int:
    """The longest input in tokens that the position tables of all the model's encoders allow."""
    limit = 1_000_000
    for fields in _encoder_fields(config):
        kind = fields.get("model_type")
        # RoBERTa numbers its positions from padding_idx + 1, which costs that many of the table's rows.
        offset = (fields.get("pad_token_id") or 0) + 1 if kind in _COUNT_FROM_PADDING else 0
        sizes = [fields.get(name) for name in _POSITIONS] if kind not in _WITHOUT_POSITIONS else []
        limit = min([limit, *(size - offset for size in sizes if size is not None and size > 0)])
    return limit


_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
"""What configurations call the number of positions: most, GPT-2's and GPT's kind, their older files, MPT."""
# Their older files state n_positions, which binds nothing.
_WITHOUT_POSITIONS = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers"})
_COUNT_FROM_PADDING = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "xmod", "ibert", "data2vec-text"}
    | {"mpnet", "longformer", "esm", "luke", "lilt", "layoutlmv3", "markuplm"}
)


def _encoder_fields(config: Any) -> list[dict[str, Any]]:
    """The configurations of a model's encoders as dicts: its parts', or its own."""
    fields = config.to_dict()
    if "encoder_configs" in fields:
        return fields["encoder_configs"]
    if "tower_a_config" in fields:
        return [fields["tower_a_config"], fields["tower_b_config"]]
    return [fields.get("encoder_config") or fields]


def token_budget_batches(
    lengths: Sequence[int], tokens_per_batch: int, rows_per_batch: int | None = None
) -> Iterator[np.ndarray]:
    """Indices in batches of at most ``tokens_per_batch`` padded tokens, longest rows first (memory peaks at once).

    With ``rows_per_batch`` a batch has so many rows, whatever their length.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        rows = rows_per_batch or max(1, tokens_per_batch // max(1, lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


def each_once(sentences: Sequence[str], vectors: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """The vectors of the sentences, in their order, from a function that is given each distinct one once.

    Raises:
        UserError: see `checked`.
    """
    distinct = list(dict.fromkeys(checked(sentences)))
    table = vectors(distinct)
    if len(distinct) == len(sentences):
        return table
    position = {sentence: i for i, sentence in enumerate(distinct)}
    return table[[position[sentence] for sentence in sentences]]


def progress_bar(total: int | None, shown: bool, description: str) -> tqdm:
    """A bar of sentences on standard error, on the first process."""
    return tqdm(total=total, desc=description, unit=" sentences", disable=not shown or rank() > 0)


def prefixed(sentence: str, prompt: str | None = None) -> str:
    """A sentence behind a prompt, where there is one: the `Prepare` of a folder that states no default."""
    return (prompt or "") + sentence


@dataclass(frozen=True, eq=False)
class Embedder:
    """The way from text to a model's vectors.

    Args:
        embed: function of input tensors; a model's ``embed``. On a CPU it is called from several threads at once.
        tokenizer: its tokenizer.
        max_seq_length: longer sentences are truncated to so many tokens.
        device: where the model is.
        dtype: autocast to this dtype (``torch.bfloat16``); None computes in the weights' own, or by the caller's
            autocast.
        tokens_per_batch: padded tokens a batch; default: by kind of device.
        prepare: the text that the tokenizer sees, from a sentence and the prompt before it (None: the folder's default
            one); None where that is the two as they are.
        cores: of a CPU, each with batches of its own; 1 for a function that has threads of its own. Default: torch's
            number of threads.
        name: of the model that a user encodes with, for the error where a vector is not finite and the warning where
            the tokenizer does not know the text; None lets them pass.
        query_prompt, document_prompt: what belongs before the queries and before the documents of a search, to be given
            to `vectors`.
    """

    embed: Embed
    tokenizer: Any
    max_seq_length: int
    device: torch.device | str
    dtype: torch.dtype | None = None
    _: KW_ONLY
    tokens_per_batch: int | None = None
    prepare: Prepare | None = None
    cores: int | None = None
    name: str | None = None
    query_prompt: str = ""
    document_prompt: str = ""

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
        """Encode sentences.

        Args:
            sentences: any number, repeated ones are encoded once; ``""`` is fine. One without any token, special ones
                included, gives zeros.
            batch_size: rows a batch, whatever their length; default: by the budget of tokens.
            max_length: truncation in tokens; default: ``max_seq_length``.
            prompt: put before every sentence; ``""``: nothing; default: what the folder puts there by default.
            show_progress_bar: a bar on standard error, on the first process.
            description: of the bar.

        Returns:
            (len(sentences), dim) float32, in the order of the sentences, the same on every process.

        Raises:
            UserError: a sentence is no string, a batch or a limit is too small, or a vector of a named model is not
                finite; the first such sentence is named.
        """

        def encode(distinct: list[str]) -> np.ndarray:
            run = self.begin(distinct, batch_size=batch_size, max_length=max_length, prompt=prompt)
            with progress_bar(len(distinct), show_progress_bar, description) as bar:
                return run(bar.update)

        return each_once(sentences, encode)

    def begin(
        self,
        sentences: Sequence[str],
        *,
        batch_size: int | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
    ) -> Callable[[Advance], np.ndarray]:
        """`vectors` in two halves, which may run on different threads, and without the search for repeated sentences.

        The sentences are tokenised at once. What is returned runs the model and gives the vectors; it is given a
        function that it tells, batch by batch, how many more sentences are done (on all processes together).
        """
        prepare = self.prepare or prefixed
        texts = [prepare(sentence, prompt) for sentence in sentences]
        for what, number in (("batch_size", batch_size), ("tokens_per_batch", self.tokens_per_batch)):
            if number is not None and number < 1:
                raise UserError(f"{what} is {number}; it must be at least 1")
        limit = self.max_seq_length if max_length is None else max_length
        check_limit(self.tokenizer, limit, prompt or "")
        rows = tokenise(self.tokenizer, texts, limit)
        if self.name is not None:
            tell_of_unknown(self.tokenizer, rows)

        def run(advance: Advance) -> np.ndarray:
            table = self.of_rows(rows, batch_size, advance)
            wrong = ~np.isfinite(table).all(axis=1)
            if self.name is not None and wrong.any():
                raise UserError(
                    f"model {self.name}: {int(wrong.sum())} of {len(table)} vectors are NaN or infinite, the first "
                    f"that of {sentences[int(wrong.argmax())][:60]!r}; its weights are broken, or bf16 is not for it"
                )
            return table

        return run

    def of_rows(
        self, rows: Sequence[Row], batch_size: int | None = None, advance: Advance = lambda count: None
    ) -> np.ndarray:
        """Tokenised sentences through the model: (len(rows), dim) float32, in their order."""
        device, dtype = torch.device(self.device), self.dtype
        if dtype is None and torch.is_autocast_enabled(device.type):  # the caller's, which other threads do not see
            dtype = torch.get_autocast_dtype(device.type)
        usual = TOKENS_PER_BATCH_IN_HALF if dtype is not None else TOKENS_PER_BATCH
        budget = self.tokens_per_batch or usual.get(device.type, TOKENS_PER_BATCH_ELSEWHERE)
        batches = list(token_budget_batches([len(row["input_ids"]) for row in rows], budget, batch_size))
        mine = batches[rank() :: world_size()]

        @contextmanager
        def around() -> Iterator[None]:
            with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                yield

        def encode(batch: np.ndarray) -> np.ndarray:
            inputs = {name: ids.to(device) for name, ids in pad_rows(self.tokenizer, [rows[i] for i in batch]).items()}
            return self.embed(**inputs).float().cpu().numpy()

        told = 0

        def tell(batch: np.ndarray) -> None:
            nonlocal told
            more = min(len(batch) * world_size(), len(rows) - told)
            told += more
            advance(more)

        cores = self.cores or (torch.get_num_threads() if device.type == "cpu" else 1)
        with keep_freed_memory(device.type):
            found = list(zip(mine, over_cores(encode, mine, around, tell, cores), strict=True))
        parts = [part for each in gather_objects(found) for part in each]
        vectors = np.empty((len(rows), parts[0][1].shape[1] if parts else 0), dtype=np.float32)
        for indices, values in parts:
            vectors[indices] = values
        vectors[[not row["input_ids"] for row in rows]] = 0
        return vectors
