"""Several training texts as one, each with its share of the rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from cacse_trainer.errors import UserError


def shares_of(entries: Sequence[str]) -> dict[str, float]:
    """``path=share`` each → the shares by path.

    Raises:
        UserError: an entry is not of this form, or the shares leave nothing for train_file.

    >>> shares_of(["wiki.txt=0.25"])
    {'wiki.txt': 0.25}
    """
    shares: dict[str, float] = {}
    for entry in entries:
        name, separator, written = entry.rpartition("=")
        try:
            share = float(written)
        except ValueError:
            share = 0.0
        if not separator or not name or not 0 < share < 1:
            raise UserError(f"mix {entry!r}: give path=share with a share between 0 and 1, such as wiki.txt=0.25")
        if name in shares:
            raise UserError(f"mix: {name} is given twice")
        shares[name] = share
    if sum(shares.values()) >= 1:
        raise UserError(f"mix: the shares sum up to {sum(shares.values()):g}, and nothing is left for train_file")
    return shares


def mixed(texts: Mapping[str, Any], shares: Mapping[str, float], seed: int) -> tuple[Dataset, dict[str, str]]:
    """The rows of one epoch.

    The first text is there once. Of the others so many rows are drawn that each has its share of them all: without
    repetition while there are enough, else in whole passes and a part of one.

    Args:
        texts: rows by name; the first one is that without a share.
        shares: of the others.
        seed: that the drawn rows hang on.

    Returns:
        The rows, text after text (the trainer shuffles them), and of each text what was taken, for the report.

    Raises:
        UserError: the columns of two texts differ, or a text is drawn of that is the first one.
    """
    (first, own), *_ = texts.items()
    if first in shares:
        raise UserError(f"mix: {first} is train_file itself; name another text")
    total = len(own) / (1 - sum(shares.values()))
    parts, told = [own], {first: f"{len(own)} rows, all"}
    for place, (name, share) in enumerate(shares.items()):
        rows = texts[name]
        if rows.column_names != own.column_names:
            raise UserError(
                f"mix {name}: its rows are {', '.join(rows.column_names)}, those of {first} are "
                f"{', '.join(own.column_names)}; give texts with rows of one kind"
            )
        count = max(1, round(share * total))
        random = np.random.default_rng([seed, place])
        passes = [random.permutation(len(rows)) for _ in range(-(-count // len(rows)))]
        parts.append(rows.select(np.concatenate(passes)[:count]))
        told[name] = f"{count} rows, {count / len(rows):.2f} of it"
    return concatenate_datasets(parts), told
