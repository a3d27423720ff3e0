"""What two trained models answered of the same dev sets, set against each other pair by pair, query by query."""

from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from cacse_trainer.encoding.embedder import Vectors
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.compare import Difference, difference_of, difference_of_means
from cacse_trainer.evaluation.dev_sets import Answers, DevSet
from cacse_trainer.evaluation.results import write_arrays

ANSWERS = "dev_answers.npz"
"""In a run's folder: what its result answers of each dev and held-out set, as ``set/array``."""
DATA = "data"
"""The array that tells a set from another one of the same name."""


def write_answers(path: Path, sets: Mapping[str, DevSet], answers: Mapping[str, Answers], embedder: Vectors) -> None:
    """Keep a model's answers, whole or not at all.

    Args:
        path: of the file.
        sets: by name.
        answers: of the model, by the same names.
        embedder: of the model, as `DevSet.facts` takes it.
    """
    arrays = {}
    for name, one in sets.items():
        kept = {**one.kept(answers[name]), DATA: np.array(one.facts(embedder)["data"])}
        arrays.update({f"{name}/{key}": values for key, values in kept.items()})
    write_arrays(path, arrays)


def read_answers(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each set; none where there is no such file.

    Raises:
        UserError: it is damaged.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    if not path.is_file():
        return found
    try:
        with np.load(path, allow_pickle=False) as stored:
            for key in stored.files:
                name, _, array = key.partition("/")
                found.setdefault(name, {})[array] = stored[key]
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}); remove it: the runs are compared without intervals") from error
    return found


def paired_differences(first: Path, second: Path) -> dict[str, Difference | None]:
    """The scores and the 95 % interval of second - first on each set whose answers both runs keep.

    None where the two sets have one name, and other rows or grades.

    Args:
        first, second: what `write_answers` has written.

    Raises:
        UserError: a file is damaged.
    """
    one, other = read_answers(first), read_answers(second)
    rows: dict[str, Difference | None] = {}
    for name in one:
        a, b = one[name], other.get(name)
        if b is None:
            continue
        if not np.array_equal(a[DATA], b[DATA]):
            rows[name] = None
        elif "ndcg" in a:
            rows[name] = difference_of_means(name, a["ndcg"], b["ndcg"])
        else:
            rows[name] = difference_of(name, a["cosine"], b["cosine"], a["gold"])
    return rows
