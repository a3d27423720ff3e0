"""The file of vectors that ``cacse-trainer encode`` wrote, as an index: mapped from disk, nothing is copied."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cacse_trainer.encoding.vectors.exact import ExactVectors
from cacse_trainer.encoding.vectors.index import EXACT, SearchIndex
from cacse_trainer.errors import UserError


def open_vectors(path: Path, sentences: Iterable[str], made_by: dict[str, Any]) -> SearchIndex:
    """An exact index over a ``.npy`` file and the sentences that it was made of.

    Args:
        path: the file; ``PATH.json`` beside it.
        sentences: all rows of the corpus, blank ones too.
        made_by: of the encoder that will ask.

    Raises:
        UserError: no such file, no facts beside it, another encoder, another number of rows, or no unit vectors.
    """
    beside = path.with_name(f"{path.name}.json")
    if path.suffix != ".npy" or not path.is_file() or not beside.is_file():
        raise UserError(f"vectors {path}: give a .npy file of cacse-trainer encode, with its {beside.name} beside it")
    try:
        facts = json.loads(beside.read_text(encoding="utf-8"))
        precision, dim = str(facts["precision"]), int(facts["dim"])
        table = np.load(path, mmap_mode="c")
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"vectors {path}: is damaged ({' '.join(str(error).split())}); encode anew") from error
    differing = [name for name, value in made_by.items() if name != "model" and facts.get(name) != value]
    if differing:
        raise UserError(
            f"vectors {path}: were made by {facts.get('model')}, and the encoder differs in {', '.join(differing)}"
        )
    if not facts["normalize"]:
        raise UserError(f"vectors {path}: keep their lengths (--no_normalize); encode without that to search by cosine")
    rows = list(sentences)
    if len(rows) != len(table):
        raise UserError(
            f"vectors {path}: {len(table)} of them, and the corpus has {len(rows)} rows; is it another one?"
        )
    return SearchIndex(rows, ExactVectors(table, precision, dim), EXACT, made_by)
