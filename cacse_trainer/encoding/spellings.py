"""What users of sentence-transformers type in ``encode``: its names for what is given back, and what is refused."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cacse_trainer.errors import UserError

ASKS_NOTHING: dict[str, Any] = {
    **{"output_value": "sentence_embedding", "pool": None, "chunk_size": None},
    "to_numpy": True,
}
"""Arguments of the library's ``encode``, and of AnglE's, by the value that changes nothing."""
INSTEAD = {
    "output_value": "only vectors of sentences are given; those of tokens are AutoModel's, of the same folder",
    "pool": "give several devices, device=['cuda:0', 'cuda:1'], and the processes start by themselves",
    "chunk_size": "leave it out: it follows from the devices",
    "to_numpy": "give convert_to_tensor=True",
}


def refuse_others(given: Mapping[str, Any]) -> None:
    """Refuse what ``encode`` does not take.

    Raises:
        UserError: with the first of them, and what to write instead; what changes nothing passes.
    """
    for name, value in given.items():
        if name not in ASKS_NOTHING or value != ASKS_NOTHING[name]:
            mend = INSTEAD.get(name, "help(SentenceEncoder.encode) tells what is")
            raise UserError(f"encode: {name}={value!r} is not supported; {mend}")


def texts_of(rows: Iterable[Any]) -> Iterable[Any]:
    """Rows as AnglE's models take them, ``{"text": …}``, as their texts; all others as they are.

    Raises:
        UserError: such a row has no text, or more than that.
    """
    if isinstance(rows, Sequence):
        return [_text_of(row) for row in rows] if any(isinstance(row, Mapping) for row in rows) else rows
    return (_text_of(row) for row in rows)


def _text_of(row: Any) -> Any:
    if not isinstance(row, Mapping):
        return row
    if row.keys() != {"text"}:
        raise UserError(f"encode: a row is a sentence or {{'text': sentence}}, got the keys {', '.join(map(str, row))}")
    return row["text"]


def as_asked(found: np.ndarray, device: torch.device, to_numpy: bool, to_tensor: bool) -> Any:
    """An array, one tensor on the device, or (neither is asked for) the library's list of tensors."""
    if to_tensor:
        return torch.from_numpy(np.array(found)).to(device)
    if to_numpy:
        return found
    tensor = torch.from_numpy(np.array(found))
    return list(tensor) if tensor.ndim == 2 else tensor
