"""Records to token ids: Alpaca's prompt or the model's chat template, and labels on the answer only."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from cacse_trainer.data.masking import IGNORED_LABEL
from cacse_trainer.errors import UserError

Record = dict[str, str]
"""``instruction``, ``input`` (may be empty) and ``output``."""

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
"""The prompt of Stanford Alpaca (tatsu-lab/stanford_alpaca), and below its form without an input."""
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def render(record: Record, prompt_format: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """A record's prompt, and the prompt with the answer.

    Args:
        prompt_format: ``alpaca``, where the answer begins with a line break, since a prompt that ends in white space
            is often tokenised in another way than the same text within a longer one; or ``chat``, where instruction
            and input are the user's turn, the output the model's.
        tokenizer: its chat template is used for ``chat``; the texts then hold the special tokens.

    Raises:
        UserError: ``chat`` and no chat template, or one that writes a finished turn in another way than an open one.
    """
    if prompt_format == "alpaca":
        form = ALPACA_WITH_INPUT if record["input"] else ALPACA_WITHOUT_INPUT
        prompt = form.format(instruction=record["instruction"], input=record["input"])
        return prompt, f"{prompt}\n{record['output']}"
    if tokenizer.chat_template is None:
        raise UserError("prompt_format chat: the model's tokenizer has no chat template; use prompt_format alpaca")
    user = {"role": "user", "content": "\n\n".join(filter(None, (record["instruction"], record["input"])))}
    answer = {"role": "assistant", "content": record["output"]}
    prompt = str(tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True))
    full = str(tokenizer.apply_chat_template([user, answer], tokenize=False))
    if not full.startswith(prompt):
        raise UserError(
            "prompt_format chat: this chat template writes an answered prompt in another way than an open one, so the "
            "answer cannot be told from it; use prompt_format alpaca"
        )
    return prompt, full


def tokenize_records(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, prompt_format: str, max_seq_length: int
) -> list[dict[str, Any]]:
    """Token ids with labels; the loss sees the answer and the end-of-sequence token only.

    Prompt and answer are tokenised as one text. The answer starts at the first token in which that text differs from
    the prompt alone, so that a token that spans both belongs to the answer.

    Args:
        tokenizer: must have an end-of-sequence token, which is appended unless the chat template wrote it.
        max_seq_length: in tokens, the end token included.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` (−100 on the prompt) of every record that is not too long.

    Raises:
        UserError: no end-of-sequence token; see also `render`.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError("the model's tokenizer has no end-of-sequence token; without it an answer has no end to learn")
    texts = [render(record, prompt_format, tokenizer) for record in records]
    if not texts:
        return []
    special = prompt_format == "alpaca"  # a chat template writes them itself
    prompts, wholes = (
        tokenizer(list(side), add_special_tokens=special)["input_ids"] for side in zip(*texts, strict=True)
    )
    rows = []
    for prompt, whole in zip(prompts, wholes, strict=True):
        start = next((i for i, (p, w) in enumerate(zip(prompt, whole, strict=False)) if p != w), len(prompt))
        ids = whole if end in whole[start:] else [*whole, end]
        start = min(start, len(ids) - 1)
        if len(ids) <= max_seq_length:
            labels = [IGNORED_LABEL] * start + ids[start:]
            rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return rows
