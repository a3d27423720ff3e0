"""Sentences to the rows of token ids that a model reads: the same for training and for encoding.

Rows are padded on the right, whatever side the tokenizer's files name: a model that numbers its positions from the
first column would else give a sentence another vector in each batch. A row without tokens (``""``, for tokenizers that
add none) is a row of padding.
"""

import logging
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cacse_trainer.errors import UserError

logger = logging.getLogger(__name__)

Row = dict[str, list[int]]
"""A tokenised sentence."""

TOKENISE_AT_ONCE = 16384  # sentences; bounds the memory of the tokenizer's own objects
LONG = 256
"""Characters for each token of the limit from which on only the beginning of a text is tokenised."""
BEGINNING, LONGER = 16, 4
"""Characters for each token of the limit in the first beginning that is tried, and how much longer the next one is."""
READ_AT_MOST = 2**20
"""Characters of a text that are read where no shorter beginning will do, such as an unbroken string of megabytes."""
_WORD_END = re.compile(r"\S(?=\s)|\w[。，、；：！？](?=\w)")
UNKNOWN_SHARE, JUDGED = 0.3, 10
"""Share of unknown tokens from which on it is told, of a text of at least so many."""

_told: weakref.WeakSet[Any] = weakref.WeakSet()  # tokenizers whose unknown tokens were told


def flaw(sentence: Any) -> str | None:
    """What keeps a value from being a sentence; None where it is one."""
    if not isinstance(sentence, str):
        return f"is {sentence!r}, not a string"
    try:
        sentence.encode()
    except UnicodeEncodeError as error:
        return f"holds {sentence[error.start]!r} (a surrogate), which is half of a character"
    return None


def checked(sentences: Iterable[Any]) -> Iterator[str]:
    """The sentences, each looked at.

    Raises:
        UserError: one is no string or cannot be written as UTF-8; its number from 0 is named.
    """
    for number, sentence in enumerate(sentences):
        wrong = flaw(sentence)
        if wrong is not None:
            raise UserError(f"sentences[{number}] {wrong}; drop it or convert it")
        yield sentence


def shortest_limit(tokenizer: Any, prepare: Callable[..., str] | None = None) -> int:
    """The smallest limit in tokens that leaves room for text beside special tokens and the prompt.

    Args:
        tokenizer: a tokenizer, which may carry a prompt, or a `TokenizerBundle`.
        prepare: the text that the tokenizer sees, from a sentence; None where that is the sentence itself.
    """
    prompt = prepare("").strip() if prepare is not None else ""
    each = [tokenizer] if isinstance(tokenizer, PreTrainedTokenizerBase) else tokenizer.tokenizers
    own = max(len(one(prompt, add_special_tokens=False)["input_ids"]) for one in each) if prompt else 0
    return tokenizer.num_special_tokens_to_add() + own + 1


def no_room(limit: int, shortest: int) -> str:
    """What is wrong with a limit below the `shortest_limit`."""
    return (
        f"max_seq_length {limit} leaves no room for text beside {shortest - 1} special tokens; give at least {shortest}"
    )


def check_limit(tokenizer: Any, max_seq_length: int, prompt: str = "") -> None:
    """Refuse a limit with which every sentence would be cut to the same tokens, or truncation be given up.

    Args:
        tokenizer: see `shortest_limit`.
        max_seq_length: the limit.
        prompt: put before every sentence.

    Raises:
        UserError: with the smallest limit that works.
    """
    shortest = shortest_limit(tokenizer, lambda sentence: prompt + sentence)
    if max_seq_length < shortest:
        raise UserError(no_room(max_seq_length, shortest))


def tokenise(tokenizer: Any, sentences: Sequence[str], max_seq_length: int) -> list[Row]:
    """One dict of id lists a sentence, truncated and not padded.

    Raises:
        UserError: see `check_limit`.
    """
    check_limit(tokenizer, max_seq_length)
    rows: list[Row] = []
    for start in range(0, len(sentences), TOKENISE_AT_ONCE):
        block = [shortened(tokenizer, text, max_seq_length) for text in sentences[start : start + TOKENISE_AT_ONCE]]
        encoded = tokenizer(block, truncation=True, max_length=max_seq_length)
        names = list(encoded.keys())
        rows.extend(dict(zip(names, values, strict=True)) for values in zip(*encoded.values(), strict=True))
    return rows


def shortened(tokenizer: Any, text: str, max_seq_length: int) -> str:
    """The part of a very long text that gives the whole text's tokens, so that the rest costs nothing.

    A beginning is enough if its tokens reach the limit and one that is four times as long has the same. How a tokenizer
    cuts a word, a run of spaces or an unbroken string may depend on all of it, so that both end where a word does;
    where no word ends, or the limit is never reached, the whole text is taken, but no more than `READ_AT_MOST`
    characters. A tokenizer that keeps the end of a text is given an end.
    """
    if len(text) <= LONG * max_seq_length:
        return text
    reached = max_seq_length * (1 if isinstance(tokenizer, PreTrainedTokenizerBase) else len(tokenizer.tokenizers))
    keeps_end = tokenizer.truncation_side == "left"
    size, former = BEGINNING * max_seq_length, None
    most = max(READ_AT_MOST, LONG * max_seq_length)
    while size < min(len(text), most):
        window = (len(text) - size, len(text) - size // 2) if keeps_end else (size // 2, size)
        ends = [end.end() for end in _WORD_END.finditer(text, *window)]
        if ends:
            part = text[ends[0] :] if keeps_end else text[: ends[-1]]
            ids = tokenizer(part, truncation=True, max_length=max_seq_length)["input_ids"]
            if len(ids) == reached and ids == former:
                return part
            former = ids
        size *= LONGER
    return text[-most:] if keeps_end else text[:most]


def pad_rows(tokenizer: Any, rows: Sequence[Row], pad_to_multiple_of: int | None = None) -> dict[str, Tensor]:
    """Id lists → (n, L) tensors, padded on the right to the longest row, or to a multiple above it; L is 1 or more."""
    multiple = pad_to_multiple_of or 1
    longest = -(-max([1, *(len(row["input_ids"]) for row in rows)]) // multiple) * multiple
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    padded = {}
    for name in rows[0]:
        table = np.full((len(rows), longest), fill.get(name, 0), dtype=np.int64)
        for i, row in enumerate(rows):
            table[i, : len(row[name])] = row[name]
        padded[name] = torch.from_numpy(table)
    return padded


def tell_of_unknown(tokenizer: Any, rows: Sequence[Row]) -> None:
    """Warn, once for a tokenizer, where it does not know much of a user's text.

    Byte-level tokenizers know everything; what they call unknown is another token. Of a bundle nothing is told.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or tokenizer in _told:
        return
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return
    count = sum(row["input_ids"].count(unknown) for row in rows)
    special = tokenizer.num_special_tokens_to_add()
    total = sum(max(0, len(row["input_ids"]) - special) for row in rows)
    if total >= JUDGED and count > UNKNOWN_SHARE * total:
        _told.add(tokenizer)
        logger.warning(
            "%.0f%% of the text's tokens are %s (%d of %d): the tokenizer does not know them, and sentences that "
            "differ in them alone have one vector; take a model whose tokenizer knows this script and these words",
            100 * count / total,
            tokenizer.unk_token,
            count,
            total,
        )
