"""What is watched in every batch: losses and gradients that are not finite, and sentences that are there twice.

Before the first one, arguments of `Trainer` that have no meaning for sentence embeddings are refused, and the ways to
compute that sharded weights do not allow are left.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainingArguments

from cacse_trainer.data.collator import text_id
from cacse_trainer.errors import RunError, UserError
from cacse_trainer.settings.arguments import CacseTrainingArguments

logger = logging.getLogger(__name__)

OVERFLOWS_IN_A_ROW = 20
"""fp16 halves its loss scale at each overflow, and so finds its size: so many in a row are a factor of a million."""
SHOWN_ROWS = 3
READ_AT_ONCE = 10_000


class NonFiniteError(RunError):
    """A loss or a gradient became NaN or infinite; the message says at which step, in which part and on which rows."""


class NonFiniteLossError(NonFiniteError):
    """It was the loss."""


class NonFiniteGradientError(NonFiniteError):
    """It was a gradient, of a loss that was finite."""


def check_arguments(args: TrainingArguments, has_metrics: bool) -> None:
    """Refuse arguments that would do nothing, or something else than they say.

    Args:
        args: of the trainer.
        has_metrics: ``compute_metrics`` is given.

    Raises:
        UserError: with the first of them.
    """
    if args.bf16_full_eval or args.fp16_full_eval:
        raise UserError(
            "bf16_full_eval and fp16_full_eval would leave the model itself in half precision; leave them out: "
            "with bf16 the dev sets are scored in it"
        )
    if args.label_smoothing_factor:
        raise UserError(
            "label_smoothing_factor smooths the labels of a classifier, and a contrastive loss has none; leave it out"
        )
    if has_metrics and args.include_for_metrics:
        raise UserError(
            f"include_for_metrics {', '.join(args.include_for_metrics)}: dev sets are scored by their cosines, without "
            "a loss or inputs of their own; compute_metrics is given predictions and label_ids"
        )


def leave_fast_paths(args: CacseTrainingArguments, *, tell: bool) -> None:
    """Compute in the plain way: the fast ones read a layer's weights past its forward, where they are but a shard.

    By its own lengths each process would run the encoder another number of times, and wait for the others' weights.

    Args:
        args: changed in place.
        tell: say so.
    """
    if (args.num_length_buckets is None or args.use_fast_paths) and tell:
        logger.info("FSDP and DeepSpeed train in the plain way: fast_paths false, length_buckets 1 for auto")
    args.num_length_buckets = args.num_length_buckets or 1
    args.take_fast_paths(False, None)


def non_finite_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradient is NaN or infinite."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]


def rows_not_finite(outputs: Mapping[str, Any]) -> list[Tensor]:
    """Of each of a model's vectors, (B, …), which rows are not finite: (B,), still on the device."""
    vectors = [
        value
        for name, value in outputs.items()
        if isinstance(value, Tensor) and value.dim() > 1 and name.endswith(("embeddings", "sentence_embedding"))
    ]
    return [~torch.isfinite(vector).flatten(1).all(dim=1) for vector in vectors]


def rows_in_question(wrong: Sequence[Tensor]) -> list[int]:
    """Rows of a batch that `rows_not_finite` names in any part of the model; none where all are finite."""
    return sorted({row for bad in wrong for row in bad.nonzero()[:, 0].tolist()})


def describe_rows(batch_size: int, texts: Tensor | None, chosen: list[int], dataset: Any) -> str:
    """Which rows of a batch: how many, and the first of them with their numbers and texts in the training data.

    Args:
        batch_size: B.
        texts: (B,) or (B, V), see `text_id`; without them, and of a stream, only the count is said.
        chosen: rows of the batch; none: all are shown.
        dataset: the training data.
    """
    what = (
        f"{len(chosen)} of the batch's {batch_size} rows have a vector that is not finite"
        if chosen
        else f"a batch of {batch_size} rows"
    )
    if texts is None or not isinstance(dataset, Dataset):
        return what
    ids = texts.reshape(batch_size, -1)[:, 0].tolist()
    wanted = [ids[i] for i in (chosen or range(batch_size)) if i < batch_size][:SHOWN_ROWS]
    found = find_rows(wanted, dataset)
    shown = [f"row {found[one][0]} {found[one][1][:60]!r}" for one in wanted if one in found]
    return f"{what}: {', '.join(shown)}{', …' if len(chosen or ids) > len(shown) else ''}" if shown else what


def find_rows(wanted: list[int], dataset: Dataset) -> dict[int, tuple[int, str]]:
    """Numbers of texts → the row (from 1) of the data whose first column holds it, and the text."""
    column = dataset.column_names[0]
    found: dict[int, tuple[int, str]] = {}
    for start in range(0, len(dataset), READ_AT_ONCE):
        for offset, text in enumerate(dataset[start : start + READ_AT_ONCE][column]):
            if isinstance(text, str) and (number := text_id(text)) in wanted and number not in found:
                found[number] = (start + offset + 1, text)
        if len(found) == len(set(wanted)):
            break
    return found


def repeated_rows(texts: Tensor) -> Tensor:
    """How many rows of a batch share their anchor or their positive with another row; (B,) or (B, V) → scalar."""
    own = texts.reshape(len(texts), -1)[:, :2].contiguous()  # (B, 1 or 2)
    order = own.flatten().sort().values  # no size hangs on the values, for which a GPU would have to be waited
    counts = torch.searchsorted(order, own, right=True) - torch.searchsorted(order, own)  # of each text in the batch
    within = (own[:, :, None] == own[:, None, :]).sum(dim=2)  # how often a row itself holds each of its texts
    return (counts > within).any(dim=1).sum()
