"""Rows kept out of a training text of pairs: a dev set that chooses and one that judges, of the text's own kind."""

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, IterableDataset

from cacse_trainer.data.collator import SCORES
from cacse_trainer.data.retrieval import from_pairs
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.dev_sets import DevSet, GradedPairs, Retrieval
from cacse_trainer.runs.preparation import Sets
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments
from cacse_trainer.settings.resources import public_name

FEWEST = 20
"""Rows of each of the two sets."""
DISTRACTORS = 2_000
"""Texts of the training rows that the held-out queries are searched among, beside their own."""


class Parts(NamedTuple):
    """The rows to train on, the set that chooses and the set that judges."""

    train: Dataset
    dev: DevSet
    test: DevSet


def hold_out(rows: Dataset, count: int, seed: int) -> Parts:
    """Keep rows out of training; those of one first text go together, so that none is on both sides.

    Labelled pairs become graded pairs. The first texts of others become queries, which search for their positives among
    those of all held-out rows, their hard negatives, and texts of the training rows.

    Args:
        rows: with columns anchor, positive[, hard negatives], or sentence1, sentence2, score.
        count: of the rows held out, at least; one half of them is each set's.
        seed: they are drawn by it.

    Raises:
        UserError: the rows are no pairs, or too few; or all labels of a set are equal.
    """
    names = rows.column_names
    if len(names) < 2:
        raise UserError(
            "held_out_rows keeps pairs for judging, and the text has one column; give dev_file, or evaluation none"
        )
    firsts = list(rows[names[0]])
    times = Counter(firsts)
    drawn = sorted(times)
    random.Random(seed).shuffle(drawn)
    side: dict[str, int] = {}
    sizes = [0, 0]
    for text in drawn:
        if sum(sizes) >= count:
            break
        part = int(sizes[0] > sizes[1])
        side[text], sizes[part] = part, sizes[part] + times[text]
    left = len(rows) - sum(sizes)
    if min(*sizes, left) < FEWEST:
        raise UserError(
            f"held_out_rows {count} of {len(rows)} rows leaves {left} to train on, {sizes[0]} to choose and {sizes[1]} "
            f"to judge by; each needs {FEWEST}: give another number, or dev_file"
        )
    train = rows.select([place for place, text in enumerate(firsts) if text not in side])
    dev, test = (
        _as_dev_set(rows.select([place for place, text in enumerate(firsts) if side.get(text) == part]), train, seed)
        for part in (0, 1)
    )
    return Parts(train, dev, test)


def with_held_out(
    rows: Dataset | IterableDataset, sets: Sets, data_args: DataArguments, args: CacseTrainingArguments
) -> tuple[Any, Sets]:
    """What ``held_out_rows`` leaves of a training text, and the sets with two more: a dev set and a held-out one.

    Args:
        rows: of the text.
        sets: that the settings name.
        data_args, args: the settings; without ``held_out_rows`` nothing is changed.

    Raises:
        UserError: see `hold_out`; the text is a stream or a mixture, or a set has the name already.
    """
    if not data_args.held_out_rows:
        return rows, sets
    if data_args.mix or not isinstance(rows, Dataset):
        raise UserError("held_out_rows takes rows of one text, which is read at once: leave out mix and streaming")
    parts = hold_out(rows, data_args.held_out_rows, args.seed)
    name = re.sub(r"\W", "_", Path(public_name(str(data_args.train_file))).stem)
    dev = {f"{name}_dev": parts.dev} if args.eval_strategy != "no" else {}
    test = {f"{name}_test": parts.test}
    if taken := next((one for one in (*dev, *test) if one in sets.every), None):
        raise UserError(f"held_out_rows: the name {taken} is that of a dev_file or test_file; give it another")
    return parts.train, Sets({**sets.dev, **dev}, {**sets.held_out, **test}, sets.scorers)


def _as_dev_set(held: Dataset, train: Dataset, seed: int) -> DevSet:
    if "score" in held.column_names:
        if len(set(held["score"])) == 1:
            raise UserError(
                "held_out_rows: all labels of a held-out half are equal; hold out more rows, or give dev_file"
            )
        return GradedPairs(held)
    _, positive, *negatives = [name for name in held.column_names if name != SCORES]
    drawn = random.Random(seed).sample(range(len(train)), min(DISTRACTORS, len(train)))
    others = [text for name in negatives for text in held[name]] + list(train.select(drawn)[positive])
    return Retrieval(from_pairs(zip(held[held.column_names[0]], held[positive], strict=True), others))
