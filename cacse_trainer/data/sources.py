"""Where sentences come from: a file or a Hugging Face data set, behind one small interface.

A source has a ``name`` for messages, says which ``columns()`` it has, in order, and yields ``batches(columns)`` of the
raw values of those asked for, with their places.
Files are named by their ending; anything else that could be a data set's name (``owner/name``, ``name``, with
``:config`` and ``@split``) is asked of the hub.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import datasets

from cacse_trainer.data import readers
from cacse_trainer.data.readers import Batch
from cacse_trainer.errors import UserError

logger = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.\[\]:%+-]+))?")

BLOCK_BYTES = 1 << 20
BLOCK_ROWS = 16_384
"""How much text a block has at least, but for a file's last one: bytes of text files, rows of parquet files."""


@dataclass(frozen=True)
class FileSource:
    """A local file of one of the known kinds, or a part of it.

    Args:
        name: its path.
        kind: how it is read, see `readers.KINDS`.
        part: only the lines that start in these bytes; of a parquet file only these groups of rows.
    """

    name: str
    kind: str
    part: tuple[int, int] | None = None

    def columns(self) -> list[str]:
        if self.kind == "txt":
            return ["text"]
        if self.kind == "json":
            records = readers.json_records(self.name, block_bytes=readers.HEAD_BYTES)
            head = islice(records, readers.JSON_HEAD_RECORDS)
            return list(dict.fromkeys(key for _, _, record in head for key in record))
        if self.kind == "parquet":
            with readers.open_parquet(self.name) as file:
                return list(file.schema_arrow.names)
        return readers.delimited_header(self.name, *self._dialect)

    def batches(self, columns: list[str]) -> Iterator[Batch]:
        if self.kind == "txt":
            return readers.text_batches(self.name, self.part)
        if self.kind == "json":
            return readers.json_batches(self.name, columns, self.part)
        if self.kind == "parquet":
            return readers.parquet_batches(self.name, columns, self.part)
        return readers.delimited_batches(self.name, columns, *self._dialect, self.part)

    def blocks(self) -> "list[FileSource]":
        """Parts that can be read without what stands before them, in order; together they are the file.

        They depend on the file alone: spans of bytes of plain text, of tsv and of JSON lines, groups of rows of
        parquet. Of csv, where a quoted field may hold line breaks, of a JSON array and of a compressed file, the file.
        """
        if self.kind == "parquet":
            with readers.open_parquet(self.name) as file:
                rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            starts, held = [0], 0
            for group, count in enumerate(rows):
                if held >= BLOCK_ROWS:
                    starts.append(group)
                    held = 0
                held += count
            ends = [*starts[1:], len(rows)]
        elif (
            self.kind == "csv"
            or self.name.lower().endswith(readers.COMPRESSIONS)
            or (self.kind == "json" and readers.is_json_array(self.name))
        ):
            return [self]
        else:
            size = Path(self.name).stat().st_size
            starts = list(range(0, max(size, 1), BLOCK_BYTES))
            ends = [*starts[1:], size]
        return [replace(self, part=part) for part in zip(starts, ends, strict=True)]

    @property
    def _dialect(self) -> tuple[str, bool]:
        return (",", True) if self.kind == "csv" else ("\t", False)


@dataclass(frozen=True)
class HubSource:
    """A split of a Hugging Face data set, downloaded once into its cache, or streamed."""

    name: str
    dataset: str
    config: str | None
    split: str
    streaming: bool

    def columns(self) -> list[str]:
        data = self._load()
        return list(data.column_names or next(iter(data), {}))

    def batches(self, columns: list[str]) -> Iterator[Batch]:
        first = 1
        data = self._load().select_columns(columns).with_format("arrow")
        for table in data.iter(batch_size=readers.BATCH_ROWS):
            values = {column: table.column(column).combine_chunks() for column in columns}
            yield Batch(self.name, values, range(first, first + table.num_rows), unit="row")
            first += table.num_rows

    def _load(self) -> datasets.Dataset | datasets.IterableDataset:
        try:
            return datasets.load_dataset(self.dataset, self.config, split=self.split, streaming=self.streaming)
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{self.name}: neither a file here nor a data set that can be reached ({reason}); "
                "check the path, or write owner/name[:config][@split]"
            ) from error


Source = FileSource | HubSource


def open_source(path_or_name: str | Path, split: str, streaming: bool = False) -> Source:
    """Find out what a path or name means.

    Raises:
        UserError: a folder, or a missing file.
    """
    text = str(path_or_name)
    path = Path(text).expanduser()
    known = ", ".join(readers.KINDS)
    if path.is_dir():
        raise UserError(f"{text}: is a folder; name one file ({known}) or a data set of the hub")
    if path.exists():
        kind = readers.kind_of(text)
        if kind is None:
            logger.info("%s: unknown ending, read as text with one sentence a line (known: %s)", text, known)
        return FileSource(str(path), kind or "txt")
    hub_name = _HUB_NAME.fullmatch(text)
    if hub_name is None or text.startswith(("./", "../")) or readers.kind_of(text) is not None:
        raise UserError(f"{text}: no such file; check the path (files: {known}; data sets: owner/name)")
    dataset, config = hub_name["name"], hub_name["config"]
    return HubSource(text, dataset, config, hub_name["split"] or split, streaming)
