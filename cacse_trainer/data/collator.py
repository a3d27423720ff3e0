"""Raw-text rows to the tensors of a contrastive batch, tokenised when the batch is made.

No token is stored before it is needed, so a text of any size is ready at once, and each batch is only as long as its
own longest row.
"""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from cacse_trainer.data.tokens import check_limit, flaw, pad_rows, tell_of_unknown, tokenise
from cacse_trainer.errors import UserError

# The columns of a row, in the order of its views. One column is the same sentence seen twice. In place of hard_negative
# there may be negative_1, negative_2 and so on.
VIEWS = (("text",), ("anchor", "positive"), ("anchor", "positive", "hard_negative"))
_KNOWN = ("text", "anchor", "positive", "hard_negative")
NEGATIVE = "negative_"
LABELLED_VIEWS = (("sentence1", "sentence2"), ("text1", "text2"))
LABELS = ("label", "score")
SCORES = "scores"
"""A teacher's scores of a row's positive and of each of its negatives, a list."""
_NUMBERED = re.compile(NEGATIVE + r"[1-9]\d*")


class ContrastiveCollator:
    """Rows of raw text to ``(batch, views, length)`` tensors.

    A row is ``text`` (two equal views, told apart by dropout), ``anchor`` and ``positive`` (two views), these with
    ``hard_negative`` (three) or with ``negative_1`` … ``negative_K`` (2 + K), or ``sentence1`` and ``sentence2``
    (``text1``, ``text2``) with a number, ``label`` or ``score``. Other columns are ignored.

    Args:
        tokenizer: any Hugging Face tokenizer that has a padding token.
        max_seq_length: longer sentences are cut to so many tokens, special tokens included.
        pad_to_multiple_of: round the length up to a multiple, for tensor cores.
        with_text_ids: add ``text_ids`` (B, V), a number for each sentence, equal for equal texts in every process.
        query_prompt: put before every ``anchor``.
        document_prompt: put before every ``positive`` and negative; sentences without sides have neither.
        with_margins: rows have ``scores``, of which ``labels`` are made.

    Returns:
        On a call with B rows: ``input_ids``, ``attention_mask`` and, where the tokenizer's models read them,
        ``token_type_ids``, each of shape (B, V, L), L being the longest row of this batch; of labelled pairs also
        ``labels`` (B,), float32; of scored rows ``labels`` (B, K), the positive's score less each negative's.

    Raises:
        UserError: rows without a known set of columns, of several kinds, or with a value that is no sentence.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_seq_length: int = 64,
        pad_to_multiple_of: int | None = None,
        with_text_ids: bool = False,
        query_prompt: str = "",
        document_prompt: str = "",
        with_margins: bool = False,
    ) -> None:
        for prompt in (query_prompt, document_prompt):
            check_limit(tokenizer, max_seq_length, prompt)
        if tokenizer.pad_token is None:
            raise UserError(
                f"{type(tokenizer).__name__} has no padding token; set one: tokenizer.pad_token = tokenizer.eos_token"
            )
        self.tokenizer = tokenizer
        self.max_seq_length = max_seq_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.with_text_ids, self.with_margins = with_text_ids, with_margins
        self.query_prompt, self.document_prompt = query_prompt, document_prompt

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        columns = _columns_of(rows)
        sentences = [row[column] for row in rows for column in columns]  # B·C, the views of a row side by side
        _check_strings(sentences, columns)
        prompts = [self.prompt_of(column) for column in columns] * len(rows)
        texts = [prompt + sentence for prompt, sentence in zip(prompts, sentences, strict=True)]
        found = tokenise(self.tokenizer, texts, self.max_seq_length)
        tell_of_unknown(self.tokenizer, found)
        padded = pad_rows(self.tokenizer, found, self.pad_to_multiple_of)
        batch = {}
        for name in self.tokenizer.model_input_names:
            tensor = padded[name].view(len(rows), len(columns), -1)  # (B, C, L)
            batch[name] = tensor.repeat(1, 2, 1) if len(columns) == 1 else tensor  # (B, V, L)
        if columns in LABELLED_VIEWS:
            batch["labels"] = torch.tensor([_label(row) for row in rows], dtype=torch.float32)
        elif self.with_margins:
            batch["labels"] = torch.tensor([_margins(row, len(columns) - 2) for row in rows], dtype=torch.float32)
        if self.with_text_ids:
            ids = torch.tensor([text_id(sentence) for sentence in sentences]).view(len(rows), len(columns))
            batch["text_ids"] = ids.repeat(1, 2) if len(columns) == 1 else ids  # (B, V)
        return batch

    def prompt_of(self, column: str) -> str:
        """What is put before the sentences of a column."""
        return by_side(column, self.query_prompt, self.document_prompt, "")


def by_side(column: str, query: Any, document: Any, neither: Any) -> Any:
    """What belongs to a column: to anchors, to positives and negatives, or to sentences without sides."""
    if column == "anchor":
        return query
    return document if column in ("positive", "hard_negative") or _NUMBERED.fullmatch(column) else neither


def text_id(sentence: str) -> int:
    """A number of 64 bits for a text, the same in every process and run."""
    digest = hashlib.blake2b(sentence.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _columns_of(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    columns = views_of(rows[0])
    negatives = numbered_negatives(len(columns) - 2)
    if columns not in (*VIEWS, *LABELLED_VIEWS, ("anchor", "positive", *negatives)):
        raise UserError(
            f"a row has the columns {', '.join(rows[0]) or '(none)'}; needed: text, or anchor and positive (and "
            "hard_negative, or negative_1, negative_2, …), or sentence1, sentence2 and label; rename yours with "
            "dataset.rename_column"
        )
    for number, row in enumerate(rows):
        if views_of(row) != columns:
            raise UserError(
                f"rows of several kinds in one batch: the first has {', '.join(columns)}, "
                f"row {number} has {', '.join(row) or '(none)'}; give all rows the same columns"
            )
    return columns


def numbered_negatives(count: int) -> tuple[str, ...]:
    """``negative_1`` … ``negative_count``."""
    return tuple(f"{NEGATIVE}{number}" for number in range(1, count + 1))


def views_of(row: Collection[str]) -> tuple[str, ...]:
    """Which of a row's columns are its views, in their order."""
    found = tuple(name for name in _KNOWN if name in row)
    if "anchor" in found:
        numbers = sorted(int(name.removeprefix(NEGATIVE)) for name in row if _NUMBERED.fullmatch(name))
        found += tuple(f"{NEGATIVE}{number}" for number in numbers)
    labelled = next((views for views in LABELLED_VIEWS if set(views) <= set(row) and any(x in row for x in LABELS)), ())
    return found or labelled


def _label(row: Mapping[str, Any]) -> float:
    label = next(row[name] for name in LABELS if name in row)
    if isinstance(label, bool) or not isinstance(label, (int, float)) or label != label:
        raise UserError(f"a pair's label is {label!r}, not a number; drop the row or convert it")
    return float(label)


def _margins(row: Mapping[str, Any], negatives: int) -> list[float]:
    scores = row.get(SCORES)
    if not isinstance(scores, (list, tuple)) or len(scores) != 1 + negatives:
        raise UserError(
            f"a row's scores are {str(scores)[:40]}: needed are {1 + negatives} numbers, of its positive and its "
            f"{negatives} negative(s), as cacse-trainer mine --scores writes them"
        )
    return [scores[0] - score for score in scores[1:]]


def _check_strings(sentences: list[Any], columns: tuple[str, ...]) -> None:
    for number, sentence in enumerate(sentences):
        wrong = flaw(sentence)
        if wrong is not None:
            row, column = divmod(number, len(columns))
            raise UserError(f"row {row} of a batch: {columns[column]} {wrong}; drop the row or convert it")
