"""One file, one document: plain text, markdown, HTML, PDF and Word files to a title, headings and paragraphs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cacse_trainer.data import readers
from cacse_trainer.errors import extra_needed, user_errors


class Section(NamedTuple):
    """A heading, "" for none, and the paragraphs below it."""

    heading: str
    paragraphs: tuple[str, ...]


LONGEST_TITLE = 200
"""In characters; a longer first line is a paragraph."""
BLANK = re.compile(r"\n[^\S\n]*\n\s*")
_ITEM = re.compile(r"\n[^\S\n]*(?:[-*+•·◦]|\d{1,3}[.)])[^\S\n]+")
_BULLET = re.compile(r"^\s*(?:[-*+•·◦]|\d{1,3}[.)])\s+")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)\n", re.DOTALL)


def squeezed(text: str) -> str:
    """A text on one line, its spaces single."""
    return " ".join(text.split())


def read_text(path: Path) -> str:
    """A file's text, its lines ended by ``\\n``; a UserError where it cannot be read."""
    return "".join(text for _, text in readers.read_blocks(str(path))).replace("\r\n", "\n")


def paragraphs_of(text: str) -> Iterator[str]:
    """What empty lines part, each on one line; the items of a list are paragraphs of their own."""
    for part in BLANK.split(text.replace("\r\n", "\n")):
        for item in _ITEM.split("\n" + part):
            if found := squeezed(_BULLET.sub("", item)):
                yield found


def plain_sections(text: str) -> list[Section]:
    """A text without headings: one section, or none where it is blank."""
    found = tuple(paragraphs_of(text))
    return [Section("", found)] if found else []


def titled(text: str) -> tuple[str, list[Section]]:
    """A plain text: its first line is the title where an empty one follows, and something after that."""
    first, _, rest = text.lstrip("\n").partition("\n")
    if len(first) <= LONGEST_TITLE and rest.lstrip(" \t").startswith("\n") and rest.strip():
        return squeezed(first), plain_sections(rest)
    return "", plain_sections(text)


def gathered(pieces: Iterator[tuple[str, str]]) -> tuple[str, list[Section]]:
    """Pieces in order, ``("title" | "heading" | "text", …)``, to a title and sections; without a title the first
    heading is it, where nothing stands before."""
    title, heading, paragraphs = "", "", list[str]()
    sections: list[Section] = []

    def close() -> None:
        if paragraphs:
            sections.append(Section(heading, tuple(paragraphs)))
            paragraphs.clear()

    for kind, text in pieces:
        text = squeezed(text)
        if not text:
            continue
        if kind == "text":
            paragraphs.append(text)
        elif not title and (kind == "title" or not (sections or paragraphs)):
            title = text
        elif text != title:
            close()
            heading = text
    close()
    return title, sections


def read_txt(path: Path) -> tuple[str, list[Section]]:
    """A plain text file."""
    return titled(read_text(path))


def read_markdown(path: Path) -> tuple[str, list[Section]]:
    """A markdown file: headings, paragraphs and items of lists; code blocks and HTML are left out.

    The title is that of the front matter, else the first heading where nothing stands before it.
    """
    from markdown_it import MarkdownIt

    text = read_text(path)
    front = _FRONT_MATTER.match(text)
    named = re.search(r"^title:[^\S\n]*(.+)$", front[1], re.MULTILINE) if front else None

    def pieces() -> Iterator[tuple[str, str]]:
        if named:
            yield "title", named[1].strip().strip("\"'")
        kind = "text"
        for token in MarkdownIt().enable("table").parse(text[front.end() :] if front else text):
            if token.type == "heading_open":
                kind = "title" if token.tag == "h1" else "heading"
            elif token.type == "inline":
                yield kind, _plain(token)
                kind = "text"

    return gathered(pieces())


def _plain(token: Any) -> str:
    """The words of an inline token: of links and emphasis what is read, of images nothing."""
    words = []
    for child in token.children or []:
        if child.type in ("text", "code_inline"):
            words.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            words.append("\n")
    return "".join(words)


_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_BLOCKS = ("p", "li", "td", "th", "dd", "dt", "blockquote", "figcaption", "caption")
_FURNITURE = ("script", "style", "nav", "header", "footer", "aside", "template", "noscript", "form", "pre")


def read_html(path: Path) -> tuple[str, list[Section]]:
    """An HTML file: headings, paragraphs, items and cells; menus, scripts and code are left out.

    The title is the first ``h1``, rather one of an article than of the site, else ``<title>``.
    """
    from bs4 import BeautifulSoup

    page = BeautifulSoup(read_text(path), "html.parser")
    marked = page.select_one("article h1, main h1")  # perhaps in a header there, which is left out below
    title = marked.get_text(" ") if marked is not None else ""
    for element in page(_FURNITURE):
        element.decompose()
    named = page.find("h1") or page.find("title")
    title = title or (named.get_text(" ") if named is not None else "")

    own: dict[int, list[str]] = {}  # by block, what stands in no block inside it; tags left open make these deep
    for text in page.strings:
        if (block := text.find_parent([*_HEADINGS, *_BLOCKS])) is not None:
            own.setdefault(id(block), []).append(text)

    def pieces() -> Iterator[tuple[str, str]]:
        yield "title", title
        for element in page.find_all([*_HEADINGS, *_BLOCKS]):
            yield "heading" if element.name in _HEADINGS else "text", "".join(own.get(id(element), []))

    found, sections = gathered(pieces())
    if not sections:  # text that stands in no block
        if page.title is not None:
            page.title.decompose()
        sections = plain_sections((page.body or page).get_text("\n"))
    return found, sections


def read_pdf(path: Path) -> tuple[str, list[Section]]:
    """A PDF file: the title that it states, and the text of its pages; headings are not known."""
    pypdf = _library("pypdf", path)
    what = f"{path}: no PDF that can be read (encrypted or damaged? write it anew, or take it out)"
    with user_errors(what, pypdf.errors.PyPdfError, KeyError, AttributeError, TypeError, RecursionError):
        reader = pypdf.PdfReader(path)
        named = squeezed(str((reader.metadata or {}).get("/Title") or ""))
        text = "\n\n".join(page.extract_text() for page in reader.pages)
    named, text = (mended(one) for one in (named, text))
    title, sections = titled(text)
    return (named, plain_sections(text)) if named and named != title else (title, sections)


def mended(text: str) -> str:
    """What a font's table gave, as text: halves of a character are joined, or replaced, and there is no NUL."""
    return text.replace("\0", " ").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_docx(path: Path) -> tuple[str, list[Section]]:
    """A Word file: paragraphs by their styles, Title and Heading 1 to 9."""
    docx = _library("docx", path)
    what = f"{path}: no Word file that can be read (save it anew as .docx, or take it out)"
    with user_errors(what, KeyError, AttributeError, docx.opc.exceptions.PackageNotFoundError):
        found = [(paragraph.style.name or "", paragraph.text) for paragraph in docx.Document(str(path)).paragraphs]

    def pieces() -> Iterator[tuple[str, str]]:
        for style, text in found:
            yield "title" if style == "Title" else "heading" if style.startswith("Heading") else "text", text

    return gathered(pieces())


def _library(name: str, path: Path) -> Any:
    import importlib

    with extra_needed("documents", f"{path}: to read it, install the extra"):
        return importlib.import_module(name)
