"""Text files in blocks of whole lines, and the rows of each file format with the line every row starts on.

Nothing here loads a file as a whole, except a `.json` file that is one array. Lines end at ``\\n`` or ``\\r\\n`` only:
Unicode separators such as U+2028 are ordinary characters of a sentence. Every complaint names the file and the line.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cacse_trainer.errors import UserError, one_line

BLOCK_BYTES = 4 << 20
HEAD_BYTES = 1 << 16
BATCH_ROWS = 10_000
# Keys are looked for in this many JSON records, since writers leave out keys without a value.
JSON_HEAD_RECORDS = 100
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Batch:
    """Some consecutive rows of a source: raw values by column, and where each row stands.

    Attributes:
        name: the file or data set.
        columns: the values of each column asked for.
        places: number of each row's first line (or of the row, or item), counted from 1.
        unit: what `places` counts.
        nan_is_text: missing values may be written as the word NaN, as csv writers do.
    """

    name: str
    columns: Mapping[str, Sequence[Any] | pa.Array]
    places: Sequence[int]
    unit: str = "line"
    nan_is_text: bool = False

    def where(self, index: int) -> str:
        """How a message names a row: ``corpus.csv, line 7``."""
        return f"{self.name}, {self.unit} {self.places[index]}"


Span = tuple[int, int] | None
"""The lines that start in these bytes of a file, from the first to before the second; None: all of it."""


def read_blocks(path: str, span: Span = None, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, str]]:
    """Decode a UTF-8 file (plain, or .gz, .bz2, .zst, .lz4) in blocks of whole lines: (number of the first line, text).

    Args:
        path: the file.
        span: a part of a plain file, which is one block; its lines are counted from 1.
        block_bytes: read at once.

    Raises:
        UserError: the file cannot be read, or holds a byte that is not UTF-8, or a NUL.
    """
    first_line, pending = 1, [b""]
    if span is not None:
        if block := _lines_of(path, *span):
            yield 1, _decode(named(path, span), 1, block)
        return
    try:
        with pa.input_stream(path, compression="detect") as stream:
            start = stream.read(len(_BOM))
            pending = [start.removeprefix(_BOM)]
            while chunk := stream.read(block_bytes):
                end = chunk.rfind(b"\n") + 1
                if end == 0:  # a line longer than a block
                    pending.append(chunk)
                    continue
                block = b"".join([*pending, chunk[:end]])
                pending = [chunk[end:]]
                yield first_line, _decode(path, first_line, block)
                first_line += block.count(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if rest := b"".join(pending):
        yield first_line, _decode(path, first_line, rest)


def _lines_of(path: str, start: int, end: int) -> bytes:
    """The lines that start in a span of bytes; each line of a file starts in one only."""
    before = min(start, 1)  # by the byte before it, a line that starts with the span is known
    try:
        with open(path, "rb") as file:
            file.seek(start - before)
            block = file.read(end - start + before)
            if before:
                block = block[block.find(b"\n") + 1 or len(block) :]  # a line that started earlier
            if block and not block.endswith(b"\n"):
                block += file.readline()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return block if before else block.removeprefix(_BOM)


def named(path: str, span: Span) -> str:
    """How messages name a part of a file, in which lines are counted from 1."""
    return path if span is None or span[0] == 0 else f"{path} from byte {span[0]} on"


def _decode(path: str, first_line: int, block: bytes) -> str:
    if (position := block.find(b"\0")) >= 0:
        line = first_line + block.count(b"\n", 0, position)
        raise UserError(f"{path}, line {line}: a NUL byte; this is not a text file, or not in UTF-8: save it as UTF-8")
    try:
        return block.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + block.count(b"\n", 0, error.start)
        encoding = "UTF-16" if block.startswith((b"\xff\xfe", b"\xfe\xff")) else "LATIN1"
        raise UserError(
            f"{path}, line {line}: byte 0x{block[error.start]:02x} is not UTF-8 ({error.reason}); "
            f"convert the file, e.g. iconv -f {encoding} -t UTF-8"
        ) from error


def text_batches(path: str, span: Span = None) -> Iterator[Batch]:
    """One sentence a line, without one Python object per line."""
    for first_line, block in read_blocks(path, span):
        lines = pc.list_flatten(pc.split_pattern(pa.array([block.removesuffix("\n")]), "\n"))
        if "\r" in block:
            lines = pc.utf8_rtrim(lines, "\r")
        yield Batch(named(path, span), {"text": lines}, range(first_line, first_line + len(lines)))


def delimited_rows(
    path: str, delimiter: str, quoted: bool, span: Span = None, block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[int, list[str]]]:
    """(line a row starts on, fields) of a csv or tsv file; blank lines are empty lists.

    Args:
        path, delimiter, quoted: the file, and how it is written.
        span, block_bytes: see `read_blocks`; a quoted field may hold line breaks, so that a file of such has no spans.

    Raises:
        UserError: the quoting is wrong; the line named is the one where the row starts.
    """
    csv.field_size_limit(2**31 - 1)  # a long sentence is no error; the limit is global to the process
    lines = (line for _, block in read_blocks(path, span, block_bytes) for line in io.StringIO(block, newline="\n"))
    reader = csv.reader(
        lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True
    )
    start = 1
    try:
        for fields in reader:
            yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        mend = (
            'fields are separated by commas, and one that holds quotes or commas is written "like ""this"", in quotes"'
            if quoted
            else "mend the row"
        )
        raise UserError(f"{named(path, span)}, line {start}: {error}; {mend}") from error


def delimited_header(path: str, delimiter: str, quoted: bool) -> list[str]:
    """Column names: the fields of the first line that is not blank (none: an empty list)."""
    return next((fields for _, fields in delimited_rows(path, delimiter, quoted, None, HEAD_BYTES) if fields), [])


def other_delimiter(header: list[str]) -> str:
    """The mark by which a header of one field seems to be separated after all; "" where there is none."""
    if len(header) != 1:
        return ""
    marks = [mark for mark in "\t;|," if len(parts := header[0].split(mark)) > 1 and all(map(str.strip, parts))]
    return marks[0] if marks else ""


def mend_of(delimiter: str) -> str:
    """How a file with this delimiter becomes one that is read."""
    names = {",": "name the file .csv", "\t": "name the file .tsv"}
    return names.get(delimiter, f"convert it, e.g. pandas.read_csv(FILE, sep={delimiter!r}).to_csv(NEW, index=False)")


def delimited_batches(
    path: str, columns: list[str], delimiter: str, quoted: bool, span: Span = None
) -> Iterator[Batch]:
    """The named columns of a csv or tsv file with a header, which stands in the first span."""
    rows, name = delimited_rows(path, delimiter, quoted, span), named(path, span)
    if span is None or span[0] == 0:
        header = next((fields for _, fields in rows if fields), [])
    else:
        header = delimited_header(path, delimiter, quoted)
    indices = [header.index(column) for column in columns]
    blank_row = [""] * len(header)
    while part := list(islice(rows, BATCH_ROWS)):
        for line, fields in part:
            if len(fields) not in (0, len(header)):
                mend = "quote a field that holds a comma" if quoted else "a tab only between two fields"
                raise UserError(
                    f"{name}, line {line}: {len(fields)} fields, but the header has {len(header)} "
                    f"({', '.join(header)}); {mend}"
                )
        by_column = list(zip(*(fields or blank_row for _, fields in part), strict=True))
        values = {column: by_column[index] for column, index in zip(columns, indices, strict=True)}
        yield Batch(name, values, [line for line, _ in part], nan_is_text=True)


def json_records(
    path: str, span: Span = None, block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """("line", its number, record) of a file of one JSON object a line; ("item", its number, record) of an array.

    Args:
        path: the file.
        span, block_bytes: see `read_blocks`; an array has no spans.
    """
    array: list[str] = []
    name = named(path, span)
    for first_line, block in read_blocks(path, span, block_bytes):
        if array or (span is None and first_line == 1 and block.lstrip().startswith("[")):
            array.append(block)
            continue
        for line, text in enumerate(block.split("\n"), start=first_line):
            if text and not text.isspace():
                yield "line", line, _record(f"{name}, line {line}", _json(f"{name}, line {line}", text))
    if array:
        for number, item in enumerate(_json(path, "".join(array)), start=1):
            yield "item", number, _record(f"{path}, item {number}", item)


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets without end
        raise UserError(f"{where}: not JSON ({error}); write one object a line, or one array of objects") from error


def _record(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {str(value)[:40]!r} is no JSON object; write one object a line, with named texts")
    return value


def is_json_array(path: str) -> bool:
    """Whether a file is one JSON array, and not an object a line."""
    return next((text for _, text in read_blocks(path, block_bytes=HEAD_BYTES)), "").lstrip().startswith("[")


def json_batches(path: str, columns: list[str], span: Span = None) -> Iterator[Batch]:
    """The named keys of each record; a record without a key has None there."""
    records = json_records(path, span)
    while part := list(islice(records, BATCH_ROWS)):
        values = {column: [record.get(column) for _, _, record in part] for column in columns}
        yield Batch(named(path, span), values, [place for _, place, _ in part], unit=part[0][0])


def open_parquet(path: str) -> pq.ParquetFile:
    """A parquet file, its data not yet read."""
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise _no_parquet(path, error) from error


def _no_parquet(path: str, error: Exception) -> UserError:
    return UserError(f"{path}: not a readable parquet file ({one_line(error)[:200]}); write it anew")


def parquet_batches(path: str, columns: list[str], groups: Span = None) -> Iterator[Batch]:
    """The named columns of a parquet file, or of its groups of rows from one to before another."""
    with open_parquet(path) as file:
        try:
            chosen = range(*groups) if groups is not None else range(file.num_row_groups)
            first = 1 + sum(file.metadata.row_group(group).num_rows for group in range(chosen.start))
            for part in file.iter_batches(batch_size=BATCH_ROWS, row_groups=list(chosen), columns=columns):
                part.validate(full=True)  # that text is UTF-8 is not seen to at reading
                values = {column: part.column(column) for column in columns}
                yield Batch(path, values, range(first, first + part.num_rows), unit="row")
                first += part.num_rows
        except (pa.ArrowException, OSError) as error:  # a damaged block of rows
            raise _no_parquet(path, error) from error


def kind_of(path: str) -> str | None:
    """The format a file name's ending stands for (compression endings apart), None for an unknown ending."""
    suffixes = [suffix for suffix in Path(path.lower()).suffixes if suffix not in COMPRESSIONS]
    return KINDS.get(suffixes[-1]) if suffixes else None


COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")
KINDS = {
    ".txt": "txt",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
