"""Sentences to vectors: each distinct sentence once, sorted by length, in batches of a token budget.

This is the one road on which anything is encoded outside of training: dev sets, exports, the evaluation suites, the
encoder tool. It sees a model only through a function of input tensors. On a CPU each core has batches of its own. On
several processes the batches are dealt out and the vectors gathered, so that every process returns the same.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from cacse_trainer.compute.cores import over_cores
from cacse_trainer.compute.distributed import gather_objects, rank, world_size
from cacse_trainer.compute.memory import keep_freed_memory

logger = logging.getLogger(__name__)

Embed = Callable[..., Tensor]
"""``embed(input_ids, attention_mask[, token_type_ids]) → (n, dim)``."""
Advance = Callable[[int], object]
"""Told how many more sentences are done; a progress bar's ``update``."""

TOKENS_PER_BATCH = {"cpu": 1024}
"""Padded tokens a batch by kind of device. On a CPU a batch is one core's (benchmarks/encode.py --tokens_per_batch)."""
TOKENS_PER_BATCH_ELSEWHERE = 16384
TOKENISE_AT_ONCE = 16384  # sentences; bounds the memory of the tokenizer's own objects


def length_limit(tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
    """The longest input in tokens that the tokenizer and the position tables of all the model's encoders allow."""
    return int(min(tokenizer.model_max_length, position_limit(config)))


def position_limit(config: Any) -> int:
    """The longest input in tokens that the position tables of all the model's encoders allow."""
    limit = 1_000_000
    for fields in _encoder_fields(config):
        positions = fields.get("max_position_embeddings")
        if positions is not None and positions > 0:
            # RoBERTa numbers its positions from padding_idx + 1, which costs that many of the table's rows.
            offset = (fields.get("pad_token_id") or 0) + 1 if fields.get("model_type") in _COUNT_FROM_PADDING else 0
            limit = min(limit, positions - offset)
    return limit


_COUNT_FROM_PADDING = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "roformer", "data2vec-text"})


def _encoder_fields(config: Any) -> list[dict[str, Any]]:
    """The configurations of a model's encoders as dicts: its parts', or its own."""
    fields = config.to_dict()
    if "encoder_configs" in fields:
        return fields["encoder_configs"]
    if "tower_a_config" in fields:
        return [fields["tower_a_config"], fields["tower_b_config"]]
    return [fields.get("encoder_config") or fields]


def tokenise(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], max_seq_length: int
) -> list[dict[str, list[int]]]:
    """One dict of id lists a sentence, truncated and not padded."""
    rows: list[dict[str, list[int]]] = []
    for start in range(0, len(sentences), TOKENISE_AT_ONCE):
        encoded = tokenizer(
            list(sentences[start : start + TOKENISE_AT_ONCE]), truncation=True, max_length=max_seq_length
        )
        names = list(encoded.keys())
        rows.extend(dict(zip(names, values, strict=True)) for values in zip(*encoded.values(), strict=True))
    return rows


def pad_rows(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Id lists → (n, L) tensors padded to the longest row, on the tokenizer's own side."""
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    padded = {}
    for name in rows[0]:
        table = np.full((len(rows), longest), fill.get(name, 0), dtype=np.int64)
        for i, row in enumerate(rows):
            ids = row[name]
            if tokenizer.padding_side == "left":
                table[i, longest - len(ids) :] = ids
            else:
                table[i, : len(ids)] = ids
        padded[name] = torch.from_numpy(table)
    return padded


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


def embed_sentences(
    embed: Embed,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    *,
    max_seq_length: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    tokens_per_batch: int | None = None,
    rows_per_batch: int | None = None,
    show_progress_bar: bool = False,
    description: str = "Encoding",
) -> np.ndarray:
    """Encode sentences.

    Args:
        embed: function of input tensors; a model's ``embed``. On a CPU it is called from several threads at once.
        tokenizer: its tokenizer.
        sentences: any number, repeated ones are encoded once; ``""`` is fine.
        max_seq_length: longer ones are truncated to so many tokens.
        device: where the model is.
        dtype: autocast to this dtype (``torch.bfloat16``); None computes in the weights' own.
        tokens_per_batch: padded tokens a batch; default: by kind of device.
        rows_per_batch: rows a batch instead.
        show_progress_bar: a bar on standard error, on the first process.

    Returns:
        (len(sentences), dim) float32, in the order of the sentences, the same on every process.
    """
    distinct = list(dict.fromkeys(sentences))
    rows = tokenise(tokenizer, distinct, max_seq_length)
    bar = tqdm(total=len(distinct), desc=description, unit=" sentences", disable=not show_progress_bar or rank() > 0)
    with bar:
        vectors = embed_rows(
            embed,
            tokenizer,
            rows,
            device=device,
            dtype=dtype,
            tokens_per_batch=tokens_per_batch,
            rows_per_batch=rows_per_batch,
            advance=bar.update,
        )
    if len(distinct) == len(sentences):
        return vectors
    position = {sentence: i for i, sentence in enumerate(distinct)}
    return vectors[[position[sentence] for sentence in sentences]]


def embed_rows(
    embed: Embed,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, list[int]]],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    tokens_per_batch: int | None = None,
    rows_per_batch: int | None = None,
    advance: Advance = lambda count: None,
    cores: int | None = None,
) -> np.ndarray:
    """Encode tokenised sentences; all of `embed_sentences` but the tokenizing and the search for repeated ones.

    Args:
        embed, tokenizer, device, dtype, tokens_per_batch, rows_per_batch: as for `embed_sentences`.
        rows: from `tokenise`.
        advance: told, batch by batch, how many more rows are done (on all processes together).
        cores: of a CPU, each with batches of its own; 1 for a function that has threads of its own. Default: torch's
            number of threads.

    Returns:
        (len(rows), dim) float32, in their order, the same on every process.
    """
    device = torch.device(device)
    budget = tokens_per_batch or TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH_ELSEWHERE)
    batches = list(token_budget_batches([len(row["input_ids"]) for row in rows], budget, rows_per_batch))
    mine = batches[rank() :: world_size()]
    if dtype is None and torch.is_autocast_enabled(device.type):  # the caller's, which other threads do not see
        dtype = torch.get_autocast_dtype(device.type)

    @contextmanager
    def around() -> Iterator[None]:
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            yield

    def run(batch: np.ndarray) -> np.ndarray:
        inputs = {name: ids.to(device) for name, ids in pad_rows(tokenizer, [rows[i] for i in batch]).items()}
        return embed(**inputs).float().cpu().numpy()

    told = 0

    def tell(batch: np.ndarray) -> None:
        nonlocal told
        more = min(len(batch) * world_size(), len(rows) - told)
        told += more
        advance(more)

    if cores is None:
        cores = torch.get_num_threads() if device.type == "cpu" else 1
    with keep_freed_memory(device.type):
        found = list(zip(mine, over_cores(run, mine, around, tell, cores), strict=True))
    vectors = np.empty((0, 0), dtype=np.float32)
    for part in gather_objects(found):
        for indices, values in part:
            if vectors.size == 0:
                vectors = np.empty((len(rows), values.shape[1]), dtype=np.float32)
            vectors[indices] = values
    return vectors
