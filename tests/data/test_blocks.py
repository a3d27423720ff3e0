"""A corpus in blocks: the rows of the whole in their order, each line read once, borders that nothing else decides."""

import gzip
import io
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cacse_trainer.data import readers, sources
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.errors import UserError

TEXTS = ["one", "", "zwei \u2028 ü", "x" * 100, "three", "", "vier\tfünf", "y" * 31, "[", "six"] * 4


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Blocks of 32 bytes, or of 3 rows."""
    monkeypatch.setattr(sources, "BLOCK_BYTES", 32)
    monkeypatch.setattr(sources, "BLOCK_ROWS", 3)


def _in_blocks(corpus):
    return [list(corpus.rows_of(block)) for block in corpus.blocks()]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", ["txt", "tsv", "jsonl"])
def test_blocks_of_text_are_the_file(tmp_path, kind, end):
    texts = [text.replace("\t", " ") for text in TEXTS]
    if kind == "jsonl":
        lines = [json.dumps({"n": i, "text": text}, ensure_ascii=False) for i, text in enumerate(texts)]
    else:
        lines = texts if kind == "txt" else ["id\ttext", *(f"{i}\t{text}" for i, text in enumerate(texts))]
    for name, start, last in (("a", "", end), ("b", "\ufeff", "")):
        path = tmp_path / f"{name}.{kind}"
        path.write_bytes((start + end.join(lines) + last).encode())
        corpus = Corpus(path, "text")
        assert list(corpus) == texts
        parts = _in_blocks(corpus)
        assert len(parts) == -(-path.stat().st_size // 32) and [] in parts  # some within a long line
        assert [text for part in parts for text in part] == texts


def test_every_byte_range_of_a_file_is_its_lines(tmp_path):
    """Whatever the borders: a line belongs to the span in which it starts."""
    path = tmp_path / "a.txt"
    path.write_text("ab\n\ncde\nf\n\n")
    size = path.stat().st_size
    for first in range(1, size):
        for second in range(first, size + 1):
            spans = [(0, first), (first, second), (second, size)]
            rows = [
                row
                for span in spans
                for batch in readers.text_batches(str(path), span)
                for row in batch.columns["text"]
            ]
            assert [row.as_py() for row in rows] == ["ab", "", "cde", "f", ""]


def test_groups_of_rows_of_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=2)
    corpus = Corpus(path)
    assert [len(part) for part in _in_blocks(corpus)] == [4] * 10  # groups up to at least three rows
    assert [text for part in _in_blocks(corpus) for text in part] == TEXTS
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert _in_blocks(Corpus(path)) == [[]]


def test_wholes(tmp_path, caplog):
    """Quoted line breaks, an array, a compressed file: one block each, and said so."""
    rows = [f"a\nb {i}" for i in range(20)]
    (tmp_path / "a.csv").write_text("text\n" + "".join(f'"{row}"\n' for row in rows))
    (tmp_path / "b.json").write_text(json.dumps([{"text": row} for row in rows]))
    (tmp_path / "c.jsonl.gz").write_bytes(
        gzip.compress(b"".join(json.dumps({"text": r}).encode() + b"\n" for r in rows))
    )
    for name in ("a.csv", "b.json", "c.jsonl.gz"):
        assert _in_blocks(Corpus(tmp_path / name)) == [rows]
    with caplog.at_level("INFO"):
        Corpus(tmp_path / "a.csv").blocks()
    assert "is read as a whole, as csv" in caplog.text
    corpus = Corpus(tmp_path / "a.csv")
    corpus.sources = [sources.HubSource("owner/name", "owner/name", None, "train", False)]
    with pytest.raises(UserError, match="owner/name: is shared out by files only; download it as parquet"):
        corpus.blocks()


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.txt").write_text("three\nfour\n")
    (tmp_path / "a.csv").write_text("id,text\n1,one\n2,two\n")
    (tmp_path / "_SUCCESS").write_text("")
    corpus = Corpus(tmp_path, "text")
    assert list(corpus) == ["one", "two", "three", "four"] and len(corpus) == 4
    assert _in_blocks(corpus) == [["one", "two"], ["three", "four"]]
    before = corpus.identity(corpus.blocks())
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert Corpus(moved, "text").identity(Corpus(moved, "text").blocks()) == before
    (moved / "b" / "2.txt").write_text("three\nfour five\n")
    assert Corpus(moved, "text").identity(Corpus(moved, "text").blocks()) != before
    (moved / "c.csv").write_text("id,other\n1,one\n")
    with pytest.raises(UserError, match=r"c\.csv: no column 'text'"):
        list(Corpus(moved, "text"))
    with pytest.raises(UserError, match="holds no file that is read"):
        (tmp_path / "empty").mkdir(parents=True)
        Corpus(tmp_path / "empty")


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_each_byte_is_read_once_and_a_shard_reads_its_own(tmp_path, monkeypatch, kind):
    """But for one byte before a block, and the rest of its last line, as a file is buffered."""
    path = tmp_path / f"a.{kind}"
    path.write_text("".join(json.dumps({"text": f"a text of number {i}"}) + "\n" for i in range(20_000)))
    size, block = path.stat().st_size, 1 << 16
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    corpus = Corpus(path)
    blocks, read = corpus.blocks(), Counter()

    class Counting(io.BufferedReader):
        def __init__(self, name, mode):
            super().__init__(io.FileIO(name, mode))

        def read(self, count):
            data = super().read(count)
            read["bytes"] += len(data)
            return data

        def readline(self):
            data = super().readline()
            read["bytes"] += len(data)
            return data

    monkeypatch.setattr(readers, "open", Counting, raising=False)
    seen = Counter(text for part in blocks for text in corpus.rows_of(part))
    assert len(seen) == 20_000 and set(seen.values()) == {1}
    assert size <= read["bytes"] <= size + 64 * len(blocks)
    read.clear()
    last = blocks[-1]
    assert next(corpus.rows_of(last)) and read["bytes"] <= block + 1
    assert Path(last.name) == path and last.part == (len(blocks) * block - block, size)


def test_complaints_name_the_place(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "0123456789012345"}\n{"text": "one"}\n{"text": null}\n')
    with pytest.raises(UserError, match=r"a\.jsonl from byte 32 on, line 1: has no 'text'"):
        _in_blocks(Corpus(path))
    path = tmp_path / "b.txt"
    path.write_bytes(b"x" * 40 + b"\n" + b"y" * 40 + b"\nz\n\xff\n")
    with pytest.raises(UserError, match=r"b\.txt from byte 64 on, line 2: byte 0xff is not UTF-8"):
        _in_blocks(Corpus(path))
