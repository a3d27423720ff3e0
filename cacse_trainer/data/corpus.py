"""One text column of any source, complete and in order: what is encoded and searched, as against trained on."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc

from cacse_trainer.data.cleaning import strings_of
from cacse_trainer.data.sentences import choose_columns
from cacse_trainer.data.sources import open_source
from cacse_trainer.errors import UserError


class Corpus:
    """The rows of one text column, read anew on each pass, a block at a time.

    No row is dropped, blank ones neither, so that row i stays row i; a missing text is refused.

    Args:
        path_or_name: as for `load_sentences`: a txt, csv, tsv, jsonl or parquet file, or a Hugging Face data set.
        column: the text's column; default: ``text``, ``sentence``, or the only one there is.

    Raises:
        UserError: no such file, no such column, or several to choose from.
    """

    def __init__(self, path_or_name: str | Path, column: str | None = None):
        self.source = open_source(path_or_name, "train")
        found = choose_columns(self.source, column)
        if len(found) > 1:
            raise UserError(f"{self.source.name}: which of its columns ({', '.join(found)})? name one with text_column")
        self.name, self.column = self.source.name, found[0]

    def __len__(self) -> int:
        """The number of rows; counted by a pass over the source."""
        return sum(len(batch.places) for batch in self.source.batches([self.column]))

    def __iter__(self) -> Iterator[str]:
        for batch in self.source.batches([self.column]):
            strings = strings_of(batch, self.column)
            if strings.null_count:
                where = batch.where(pc.index(strings.is_null(), True).as_py())
                raise UserError(f'{where}: has no {self.column!r}; write "" for a text without words, or drop the row')
            yield from strings.to_pylist()
