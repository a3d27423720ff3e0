"""Documents whose words are nearly those of an earlier one, by MinHash (datasketch)."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cacse_trainer.errors import UserError, extra_needed

if TYPE_CHECKING:
    from cacse_trainer.data.documents import Document

SHINGLE = 3
"""Words in a row that are compared as one."""
PERMUTATIONS = 128
_WORD = re.compile(r"\w")


def without_near_duplicates(documents: Sequence["Document"], share: float) -> tuple[list["Document"], int]:
    """Documents without those that are nearly an earlier one.

    Args:
        documents: in order.
        share: Jaccard similarity of the triples of words (of characters, where a text has no spaces) from which a
            document counts as a repetition, above 0 and at most 1; estimated by 128 hashes, ± 0.04.

    Returns:
        Those that are kept, and how many were left out.

    Raises:
        UserError: datasketch is not installed, or the share is out of range.
    """
    if not 0 < share <= 1:
        raise UserError(f"near_duplicates is {share:g}; give a share above 0 and at most 1, such as 0.8")
    with extra_needed(
        "documents", "near_duplicates needs datasketch", ", or leave it out (equal documents are dropped in any case)"
    ):
        from datasketch import MinHash, MinHashLSH
    index = MinHashLSH(threshold=share, num_perm=PERMUTATIONS)
    kept: list[Document] = []
    sketches: dict[int, MinHash] = {}
    for number, document in enumerate(documents):
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([shingle.encode() for shingle in shingles(document.text)])
        if any(sketches[earlier].jaccard(sketch) >= share for earlier in index.query(sketch)):
            continue
        index.insert(number, sketch)
        sketches[number] = sketch
        kept.append(document)
    return kept, len(documents) - len(kept)


def shingles(text: str) -> set[str]:
    """The runs of `SHINGLE` words of a text; of characters, where its words are longer than a sentence's."""
    words = text.casefold().split()
    if not words or len(text) / len(words) > 20:  # a script without spaces
        words = _WORD.findall(text.casefold())
    return {" ".join(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1))}
