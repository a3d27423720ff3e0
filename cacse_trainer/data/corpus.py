"""One text column of any source, complete and in order: what is encoded and searched, as against trained on."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cacse_trainer.data import readers, sources
from cacse_trainer.data.cleaning import strings_of
from cacse_trainer.data.documents import files_of
from cacse_trainer.data.sentences import choose_columns
from cacse_trainer.data.sources import FileSource, Source, open_source
from cacse_trainer.errors import UserError

logger = logging.getLogger(__name__)


class Corpus:
    """The rows of one text column, read anew on each pass, a block at a time.

    No row is dropped, blank ones neither, so that row i stays row i; a missing text is refused.

    Args:
        path_or_name: as for `load_sentences`: a txt, csv, tsv, jsonl or parquet file, or a Hugging Face data set; or a
            folder, whose files of these kinds are read in the order of their names.
        column: the text's column; default: ``text``, ``sentence``, or the only one there is.

    Raises:
        UserError: no such file, no such column, or several to choose from.
    """

    def __init__(self, path_or_name: str | Path, column: str | None = None):
        folder = Path(path_or_name).expanduser()
        self.sources: list[Source] = _of_folder(folder) if folder.is_dir() else [open_source(path_or_name, "train")]
        self.name = str(path_or_name) if folder.is_dir() else self.sources[0].name
        self._folder = folder if folder.is_dir() else folder.parent
        self._wanted = column
        self._columns: dict[str, str] = {}
        self.column = self._column_of(self.sources[0])

    def __len__(self) -> int:
        """The number of rows; counted by a pass over the source."""
        return sum(len(batch.places) for source in self.sources for batch in source.batches([self._column_of(source)]))

    def __iter__(self) -> Iterator[str]:
        for source in self.sources:
            yield from self.rows_of(source)

    def rows_of(self, source: Source) -> Iterator[str]:
        """The texts of one of the `sources`, or of one of the `blocks`."""
        for strings in self.strings_of(source):
            yield from strings.to_pylist()

    def strings_of(self, source: Source) -> Iterator[pa.Array]:
        """The same as Arrow strings, some thousand at once: for what has no need of Python's own."""
        column = self._column_of(source)
        for batch in source.batches([column]):
            strings = strings_of(batch, column)
            if strings.null_count:
                where = batch.where(pc.index(strings.is_null(), True).as_py())
                raise UserError(f'{where}: has no {column!r}; write "" for a text without words, or drop the row')
            yield strings

    def others(self) -> dict[str, list[Any]]:
        """The cells of the columns that all sources have besides the text, row by row; None for lists and structs."""
        shared = [set(source.columns()) - {self._column_of(source)} for source in self.sources]
        names = [name for name in self.sources[0].columns() if all(name in own for own in shared)]
        found: dict[str, list[Any]] = {name: [] for name in names}
        for source in self.sources if names else ():
            for batch in source.batches(names):
                for name, cells in found.items():
                    values = batch.columns[name]
                    if not isinstance(values, (pa.Array, pa.ChunkedArray)):
                        cells += values
                    else:
                        cells += [None] * len(values) if pa.types.is_nested(values.type) else values.to_pylist()
        return found

    def blocks(self) -> list[FileSource]:
        """The parts that the files are read in by those who share them out, see `FileSource.blocks`.

        Raises:
            UserError: a data set of the hub has none.
        """
        found = []
        for source in self.parts():
            if not isinstance(source, FileSource):
                raise UserError(
                    f"{source.name}: is shared out by files only; download it as parquet, and name the folder"
                )
            found.append(source)
        return found

    def parts(self) -> list[Source]:
        """The blocks of files; of a data set of the hub, which has none, the whole."""
        found: list[Source] = []
        for source in self.sources:
            if not isinstance(source, FileSource):
                found.append(source)
                continue
            blocks = source.blocks()
            size = Path(source.name).stat().st_size
            if len(blocks) == 1 and source.kind != "parquet" and size > 2 * sources.BLOCK_BYTES:
                logger.info(
                    "%s: is read as a whole, as csv (a quoted field may hold line breaks), JSON arrays and compressed "
                    "files are; shared out are several files, tsv, jsonl, txt or parquet",
                    source.name,
                )
            found += blocks
        return found

    def identity(self, blocks: list[FileSource]) -> str:
        """A hash of what the blocks are: names within the folder, sizes of the files, borders; of no text."""
        digest = hashlib.sha256()
        for block in blocks:
            path = Path(block.name)
            digest.update(repr((path.relative_to(self._folder).as_posix(), path.stat().st_size, block.part)).encode())
        return digest.hexdigest()

    def _column_of(self, source: Source) -> str:
        if source.name not in self._columns:
            found = choose_columns(source, self._wanted)
            if len(found) > 1:
                raise UserError(f"{source.name}: which of its columns ({', '.join(found)})? name one with text_column")
            self._columns[source.name] = found[0]
        return self._columns[source.name]


def _of_folder(folder: Path) -> list[Source]:
    files = files_of(folder)
    known = [file for file in files if readers.kind_of(str(file)) is not None and file.is_file()]
    if not known:
        raise UserError(f"{folder}: holds no file that is read; its kinds are {', '.join(readers.KINDS)}")
    if len(known) < len(files):
        logger.info("%s: %d files of other kinds are left out", folder, len(files) - len(known))
    return [open_source(file, "train") for file in known]
