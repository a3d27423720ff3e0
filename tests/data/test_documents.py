"""Documents from files of every kind, and the rows that their structure gives."""

import gzip
import json
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cacse_trainer.data.documents import Document, load_documents
from cacse_trainer.data.markup import Section, titled
from cacse_trainer.data.structure import (
    OWN,
    Row,
    apart,
    count_rows,
    draw_rows,
    passages_of,
    row_of,
    sentences_of,
)
from cacse_trainer.errors import UserError

BODY = "The pump moves water. It needs a valve.\n\nA valve can close.\n- first item\n- second item\n"
PARAGRAPHS = ["The pump moves water. It needs a valve.", "A valve can close.", "first item", "second item"]


def one(path) -> Document:
    documents, counts = load_documents([str(path)])
    assert counts.documents == 1
    return documents[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", f"Pumps\n\n{BODY}"),
        ("a.md", f"# Pumps\n\n{BODY}"),
        ("front.md", f"---\ntitle: 'Pumps'\n---\n\n{BODY}"),
        ("a.html", "<title>x</title><nav>menu</nav><h1>Pumps</h1><p>The pump moves water.\nIt needs a valve.</p>"
         "<p>A <b>valve</b> can close.</p><ul><li>first item<li>second item</ul><script>no()</script>"),
        ("a.jsonl", json.dumps({"title": "Pumps", "body": BODY})),
        ("a.csv", 'title,text\nPumps,"' + BODY + '"\n'),
    ],
)  # fmt: skip
def test_the_same_document_in_every_format(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    found = one(path)
    assert (found.title, found.paragraphs) == ("Pumps", PARAGRAPHS)


def test_parquet_docx_and_pdf(tmp_path):
    pq.write_table(pa.table({"title": ["Pumps"], "body": [BODY]}), tmp_path / "a.parquet")
    assert one(tmp_path / "a.parquet").paragraphs == PARAGRAPHS
    docx = pytest.importorskip("docx")
    word = docx.Document()
    word.add_heading("Pumps", 0)
    word.add_paragraph(PARAGRAPHS[0])
    word.add_heading("Valves", 1)
    word.add_paragraph(PARAGRAPHS[1])
    word.save(str(tmp_path / "a.docx"))
    assert one(tmp_path / "a.docx").sections == (
        Section("", (PARAGRAPHS[0],)),
        Section("Valves", (PARAGRAPHS[1],)),
    )
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 no more")
    pytest.importorskip("pypdf")
    with pytest.raises(UserError, match=r"broken\.pdf"):
        load_documents([str(tmp_path / "broken.pdf")])


def test_headings(tmp_path):
    (tmp_path / "a.md").write_text(
        "# T\n\nlead\n\n## One\n\nfirst\n\n```\ncode\n```\n\n## Two\n\nsee [a link](http://x)\n"
    )
    sections = (Section("", ("lead",)), Section("One", ("first",)), Section("Two", ("see a link",)))
    assert one(tmp_path / "a.md").sections == sections


def test_a_first_line_is_a_title_only_above_an_empty_one():
    assert titled("Title\n\nbody") == ("Title", [Section("", ("body",))])
    assert titled("just\ntwo lines") == ("", [Section("", ("just two lines",))])
    assert titled("only one line\n\n") == ("", [Section("", ("only one line",))])
    assert titled("x" * 201 + "\n\nbody")[0] == ""


def test_folders_and_what_is_left_out(tmp_path):
    for name, text in {"b.txt": "B\n\nbody b", "a.md": "# A\n\nbody a", "c.txt": "B\n\nbody b", "d.txt": " \n"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "image.png").write_bytes(b"x")
    (tmp_path / ".hidden.txt").write_text("no")
    documents, counts = load_documents([str(tmp_path)])
    assert [document.title for document in documents] == ["A", "B"]
    assert (counts.files, counts.documents, counts.exact, counts.empty) == (4, 4, 1, 1)
    assert counts.skipped == {".png": 1}


def test_what_a_folder_may_hold_beside_text(tmp_path):
    """Linked folders are read, each once; links to nothing and pipes are counted; what is written to is left out."""
    text, linked, written = (tmp_path / name for name in ("text", "linked", "text/out"))
    for folder in (text, linked, written):
        folder.mkdir()
    (text / "a.txt").write_text("A\n\nbody a")
    (linked / "b.txt").write_text("B\n\nbody b")
    (written / "rows.txt").write_text("C\n\nbody c")
    (text / "more").symlink_to(linked)
    (text / "loop").symlink_to(text)
    (text / "gone.txt").symlink_to(tmp_path / "nowhere")
    (text / "folder.txt").mkdir()
    os.mkfifo(text / "pipe.txt")
    documents, counts = load_documents([str(text)], leave_out=written)
    assert [document.title for document in documents] == ["A", "B"]
    assert counts.skipped == {"(link to nothing)": 1, "(pipe or device)": 1}
    with pytest.raises(UserError, match="is a pipe or a device"):
        load_documents([str(text / "pipe.txt")])


def test_a_compressed_file_is_read_as_what_it_holds(tmp_path):
    (tmp_path / "a.md.gz").write_bytes(gzip.compress(b"# A\n\nbody a"))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"B\n\nbody b"))
    documents, _ = load_documents([str(tmp_path)])
    assert [document.title for document in documents] == ["A", "B"]


def test_html_whose_tags_are_left_open(tmp_path):
    """A parser nests what is not closed: a thousand paragraphs are a thousand deep."""
    path = tmp_path / "a.html"
    path.write_text("<h1>T</h1>" + "".join(f"<p>number {i}" for i in range(1000)))
    assert one(path).paragraphs == [f"number {i}" for i in range(1000)]
    path.write_text("<title>T</title>")
    with pytest.raises(UserError, match="no document with any text"):
        load_documents([str(path)])


def test_the_title_of_html_is_that_of_the_article(tmp_path):
    path = tmp_path / "a.html"
    path.write_text("<header><h1>Site</h1></header><article><header><h1>Pumps</h1>me</header><p>text</p></article>")
    assert one(path) == Document("Pumps", (Section("", ("text",)),), str(path))
    path.write_text("<title>Pumps</title><header><h1>Site</h1></header><p>text</p>")
    assert one(path).title == "Pumps"


def test_lines_blanks_and_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one.\u2028more.\ntwo.\n")
    assert [document.paragraphs for document in load_documents([str(path)])[0]] == [["one. more."], ["two."]]
    path.write_text("one.\ntwo.\nthree.\n")
    assert len(load_documents([str(path)])[0]) == 3
    assert len(load_documents([str(path)], txt="file")[0]) == 1
    path.write_text("Title\n\nbody\n\nmore\n")
    assert len(load_documents([str(path)])[0]) == 1
    assert len(load_documents([str(path)], txt="blank")[0]) == 3


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "x,y\n1,2\n", "body_column"),
        ("a.txt", "  \n", "no document"),
        ("a.jsonl", '{"title": "a", "body": 3}', "is 3, not a string"),
        ("a.jsonl", '{"title": "a", "body": "half \\ud800"}', "line 1: a text holds"),
        ("a.docx", "no archive", "no Word file that can be read"),
        ("gone.txt", None, "no such file"),
    ],
)
def test_bad_input(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        load_documents([str(tmp_path / name)])


def test_near_duplicates(tmp_path):
    pytest.importorskip("datasketch")
    words = [f"word{i}" for i in range(60)]
    texts = [
        " ".join(words),
        " ".join([*words[:-1], "other"]),
        " ".join(reversed(words)),
        "蓝天白云" * 9,
        "蓝天白云" * 10,
    ]
    lines = [json.dumps({"body": text}) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    documents, counts = load_documents([str(tmp_path / "a.jsonl")], near_duplicates=0.8)
    assert [texts.index(document.paragraphs[0]) for document in documents] == [0, 2, 3] and counts.near == 2
    with pytest.raises(UserError, match="near_duplicates"):
        load_documents([str(tmp_path / "a.jsonl")], near_duplicates=2.0)


def test_sentences():
    assert sentences_of("Dr. Li met e.g. two men. They left! 他走了。她来了。 \"So?\" he said.") == [
        "Dr. Li met e.g. two men.", "They left!", "他走了。", "她来了。", '"So?" he said.',
    ]  # fmt: skip
    assert sentences_of("version 2.0 is out") == ["version 2.0 is out"]


def documents_of(texts: list[tuple[str, list[tuple[str, str]]]]) -> list[Document]:
    return [
        Document(title, tuple(Section(heading, (text,)) for heading, text in sections), str(number))
        for number, (title, sections) in enumerate(texts)
    ]


def test_passages_keep_title_and_heading_and_end_with_a_sentence():
    long = " ".join(f"This is the sentence number {i}." for i in range(9))
    passages = passages_of(documents_of([("T", [("H", long), ("", "A b c d.")])]), words=14)
    assert [len(passage.sentences) for passage in passages] == [2, 2, 2, 2, 1, 1]
    assert " ".join(passage.text for passage in passages[:-1]) == long
    assert {passage.title for passage in passages} == {"T"} and [p.heading for p in passages[-2:]] == ["H", ""]


def test_headings_that_several_documents_have_go_behind_the_title():
    documents = documents_of([("A", [("Use", "One two three.")]), ("B", [("Use", "Four."), ("Own", "Five.")])])
    assert [passage.heading for passage in passages_of(documents)] == ["A: Use", "B: Use", "Own"]


def test_rows_of_each_kind():
    passage = passages_of(documents_of([("T", [("H", "One two three. Four five six. Seven.")])]))[0]
    assert row_of("title", passage, 0, 1.0) == Row("T", passage.text, "title", 0)
    assert row_of("heading", passage, 0, 1.0) == Row("H", passage.text, "heading", 0)
    assert row_of("cloze", passage, 1, 1.0) == Row("Four five six.", "One two three. Seven.", "cloze", 0)
    assert row_of("cloze", passage, 1, 0.0) == Row("Four five six.", passage.text, "cloze", 0)
    assert row_of("neighbour", passage, 1, 1.0) == Row("Four five six.", "Seven.", "neighbour", 0)
    assert row_of("single", passage, 2, 1.0) == Row("Seven.", "Seven.", "single", 0)
    assert row_of("cloze", passage, 2, 1.0) is None, "too short to tell anything"
    assert count_rows([passage]) == {"title": 1, "heading": 1, "cloze": 2, "neighbour": 2, "single": 3}


def test_a_sentence_that_many_documents_have_is_no_anchor():
    shared = "It is free software."
    passages = passages_of(documents_of([("A", [("", f"One two three. {shared}")]), ("B", [("", f"Four. {shared}")])]))
    assert row_of("cloze", passages[0], 1, 1.0) is None and row_of("neighbour", passages[0], 0, 1.0) is None
    assert row_of("cloze", passages[0], 0, 1.0) is not None


def many() -> list:
    return passages_of(
        documents_of(
            [(f"T{i}", [("", f"Alpha{i} beta gamma. Delta{i} epsilon zeta. Eta{i} theta iota.")]) for i in range(40)]
        )
    )


def test_shares_seed_and_order():
    passages = many()
    rows = draw_rows(passages, {"title": 3, "cloze": 1, "heading": 5}, 200, 16, seed=1)
    kinds = [row.kind for row in rows]
    assert len(rows) == 200 and kinds.count("title") == 150, "no heading here: its share falls to the others"
    assert rows == draw_rows(passages, {"title": 3, "cloze": 1, "heading": 5}, 200, 16, seed=1)
    assert rows != draw_rows(passages, {"title": 3, "cloze": 1, "heading": 5}, 200, 16, seed=2)
    for start in range(0, 176, 16):
        assert len({row.document for row in rows[start : start + 16]}) == 16
    assert len({row for row in rows if row.kind == "title"}) == 40, "each before any comes again"


def test_given_rows_and_wrong_shares():
    own = [Row(f"q{i}", f"d{i}", "pairs", -1) for i in range(5)]
    rows = draw_rows(many(), {"title": 1, "pairs": 1}, 20, 4, 0, {"pairs": own})
    assert sum(row.kind == "pairs" for row in rows) == 10 and {row.anchor for row in rows} >= {
        row.anchor for row in own
    }
    with pytest.raises(UserError, match="titel"):
        draw_rows(many(), {"titel": 1}, 20, 4, 0)
    with pytest.raises(UserError, match="gives no rows"):
        draw_rows(many(), {"heading": 1}, 20, 4, 0)


def test_apart_keeps_every_row_even_where_one_document_has_most():
    draws = random.Random(0)
    rows = [Row(str(i), "", "title", 0 if draws.random() < 0.8 else i) for i in range(300)]
    assert sorted(apart(rows, 8)) == sorted(rows)


def test_apart_where_there_are_fewer_documents_than_rows_in_a_batch():
    """In every order as the plain way has it; a book of many passages must not cost a look at all that waits."""
    draws = random.Random(0)
    rows = [Row(str(i), "", "title", draws.randrange(12)) for i in range(2000)]
    found = apart(rows, 64)
    assert sorted(found) == sorted(rows)
    rows = [Row(str(i), "", "title", draws.randrange(200)) for i in range(2000)]
    found = apart(rows, 64)
    last: dict[int, int] = {}
    for place, row in enumerate(found[:-256]):
        assert place - last.get(row.document, -64) >= 64
        last[row.document] = place


def test_a_users_own_rows_never_wait():
    rows = [Row(str(i), "", "pairs", OWN) if i % 2 else Row(str(i), "", "title", i) for i in range(400)]
    assert apart(rows, 16) == rows


def test_a_title_that_several_documents_have_tells_none():
    documents = [Document(title, (Section("", (f"text {title} {i}",)),), "") for i, title in enumerate("aab")]
    assert [passage.title for passage in passages_of(documents)] == ["", "", "b"]
