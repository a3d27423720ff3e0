"""Documents: files of text, markup or tables to titles, headings and paragraphs.

A folder is read file by file in the order of the names, each txt, md, html, pdf or docx file a document; jsonl, json,
csv, tsv and parquet files hold a document a row, as Hugging Face data sets do.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from cacse_trainer.data import markup, readers
from cacse_trainer.data.markup import Section, plain_sections, squeezed
from cacse_trainer.data.sources import Source, open_source
from cacse_trainer.data.tokens import flaw
from cacse_trainer.errors import UserError

logger = logging.getLogger(__name__)

TITLE_COLUMNS = ("title", "headline", "subject", "name")
BODY_COLUMNS = ("body", "text", "content", "contents", "document", "article", "abstract", "description", "passage")
MARKUP: dict[str, Callable[[Path], tuple[str, list[Section]]]] = {
    ".txt": markup.read_txt,
    ".md": markup.read_markdown,
    ".markdown": markup.read_markdown,
    ".html": markup.read_html,
    ".htm": markup.read_html,
    ".pdf": markup.read_pdf,
    ".docx": markup.read_docx,
}
"""How files that are one document are read, by their ending: a title and sections."""


@dataclass(frozen=True)
class Document:
    """A text with what its author said of its parts.

    Args:
        title: "" where it has none.
        sections: in order; the first one's heading may be "".
        where: the file, and of tables the row.
    """

    title: str
    sections: tuple[Section, ...]
    where: str

    @property
    def paragraphs(self) -> list[str]:
        """All of them, in order."""
        return [paragraph for section in self.sections for paragraph in section.paragraphs]

    @property
    def text(self) -> str:
        """What tells it from others."""
        return "\n".join((self.title, *self.paragraphs))


@dataclass
class Counts:
    """What was read, and what was left out.

    Args:
        files, documents: how many there were.
        empty: documents without any text.
        exact, near: repetitions of an earlier document that were left out.
        skipped: files of other kinds, by their ending.
    """

    files: int = 0
    documents: int = 0
    empty: int = 0
    exact: int = 0
    near: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


def load_documents(
    places: Sequence[str],
    *,
    title_column: str | None = None,
    body_column: str | None = None,
    txt: str = "auto",
    near_duplicates: float | None = None,
    leave_out: Path | None = None,
) -> tuple[list[Document], Counts]:
    """All documents, each once.

    Args:
        places: folders, files, or names of Hugging Face data sets.
        title_column, body_column: of tables. Default: known names (`TITLE_COLUMNS`, `BODY_COLUMNS`).
        txt: what a document is in a txt file that is named itself: ``file``, the whole; ``blank``, what stands between
            empty lines; ``line``; ``auto``: lines where there is no empty one, else the file. Of a folder each txt file
            is a document.
        near_duplicates: leave out documents whose words are those of an earlier one to this share (Jaccard, of triples
            of words); needs datasketch.
        leave_out: a folder that is not read where it stands among the text, since it is written to.

    Raises:
        UserError: nothing to read, a file that cannot be read, or no document with any text.
    """
    counts = Counts()
    seen: set[str] = set()
    documents = []
    columns = {"title_column": title_column, "body_column": body_column}
    for document in read_documents(places, counts, **columns, txt=txt, leave_out=leave_out):
        counts.documents += 1
        key = squeezed(document.text).casefold()
        if not any(document.paragraphs):
            counts.empty += 1
        elif key in seen:
            counts.exact += 1
        else:
            seen.add(key)
            documents.append(document)
    if not documents:
        found = ", ".join(f"{count} {ending}" for ending, count in counts.skipped.most_common())
        raise UserError(
            f"{', '.join(places)}: no document with any text"
            + (f"; there are {found} files, and what is read is {_kinds()}" if found else "")
        )
    if near_duplicates is not None:
        from cacse_trainer.data.near_duplicates import without_near_duplicates  # an extra's library

        documents, counts.near = without_near_duplicates(documents, near_duplicates)
    return documents, counts


def read_documents(
    places: Sequence[str],
    counts: Counts,
    *,
    title_column: str | None = None,
    body_column: str | None = None,
    txt: str = "auto",
    leave_out: Path | None = None,
) -> Iterator[Document]:
    """Documents as they are read, see `load_documents`; files are counted in ``counts``."""
    for place in places:
        path = Path(place).expanduser()
        if path.exists() and not (path.is_dir() or path.is_file()):
            raise UserError(f"{place}: is a pipe or a device, and text is read more than once; write it to a file")
        if not path.is_dir():
            counts.files += 1
            yield from _of_file(place, title_column, body_column, txt)
            continue
        for file in files_of(path, leave_out):
            if not file.is_file():
                what = "pipe or device" if file.exists() else "link to nothing"
                counts.skipped[f"({what})"] += 1
            elif _ending(file) in MARKUP or readers.kind_of(str(file)) is not None:
                counts.files += 1
                yield from _of_file(str(file), title_column, body_column, "file")
            else:
                counts.skipped[file.suffix.lower() or "(no ending)"] += 1


def files_of(folder: Path, leave_out: Path | None = None) -> list[Path]:
    """All that is no folder in a folder and those below, in the order of the names.

    Hidden ones are left out; linked folders are gone into, each folder once.

    Args:
        folder: where to look.
        leave_out: a folder that is not gone into.
    """
    seen = set() if leave_out is None else {leave_out.resolve()}
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        real = Path(root).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root) / name for name in files if not name.startswith(".")]
    return sorted(found)


def _ending(path: Path) -> str:
    """A name's ending in small letters, without that of a compression."""
    name = path.name.lower()
    compressed = next((end for end in readers.COMPRESSIONS if name.endswith(end)), "")
    return Path(name.removesuffix(compressed)).suffix


def _kinds() -> str:
    return ", ".join(dict.fromkeys(name[1:] for name in (*MARKUP, *readers.KINDS)))


def _of_file(place: str, title_column: str | None, body_column: str | None, txt: str) -> Iterator[Document]:
    path = Path(place).expanduser()
    ending = _ending(path)
    if ending == ".txt" and path.is_file():
        yield from _of_txt(path, txt)
    elif ending in MARKUP and path.is_file():
        title, sections = MARKUP[ending](path)
        yield Document(title, tuple(sections), place)
    else:
        yield from _of_table(open_source(place, "train", streaming=True), title_column, body_column)


def _of_txt(path: Path, txt: str) -> Iterator[Document]:
    text = markup.read_text(path)
    if txt == "auto":
        txt = "file" if "\n\n" in text.strip().replace("\r\n", "\n") else "line"
        if txt == "line" and "\n" in text.strip():
            logger.info(
                "%s: has no empty line, so each of its lines is a document (--txt file: all of it is one)", path
            )
    if txt == "file":
        title, sections = markup.titled(text)
        yield Document(title, tuple(sections), str(path))
        return
    parts: Iterable[str] = text.split("\n") if txt == "line" else markup.BLANK.split(text)
    for number, part in enumerate(parts, start=1):
        title, sections = ("", plain_sections(part)) if txt == "line" else markup.titled(part)
        if sections:
            yield Document(title, tuple(sections), f"{path}, {txt} {number}")


def _of_table(source: Source, title_column: str | None, body_column: str | None) -> Iterator[Document]:
    found = source.columns()
    for option, name in (("title_column", title_column), ("body_column", body_column)):
        if name is not None and name not in found:
            raise UserError(f"{source.name}: no column {name!r} ({option}), it has {', '.join(found)}")
    title = title_column or next((name for name in TITLE_COLUMNS if name in found and name != body_column), None)
    body = body_column or next((name for name in BODY_COLUMNS if name in found and name != title), None)
    if body is None:
        raise UserError(
            f"{source.name}: which of its columns ({', '.join(found)}) holds the text? Name it with body_column, and "
            "the title's, if there is one, with title_column"
        )
    columns = [body] if title is None else [body, title]
    for batch in source.batches(columns):
        values = [batch.columns[column] for column in columns]
        lists = [value.to_pylist() if isinstance(value, (pa.Array, pa.ChunkedArray)) else value for value in values]
        for index, row in enumerate(zip(*lists, strict=True)):
            texts = ["" if value is None or value != value else value for value in row]
            wrong = next(filter(None, map(flaw, texts)), None)
            if wrong is not None:
                raise UserError(
                    f"{batch.where(index)}: a text {wrong[:100]}; name the columns of the texts (title_column, "
                    "body_column), or mend the row"
                )
            texts = [text.replace("\0", " ") for text in texts]  # which JSON and parquet can hold, and no text file
            sections = plain_sections(texts[0])
            yield Document(squeezed(texts[1]) if title is not None else "", tuple(sections), batch.where(index))
