"""Training text of every format, against rows written here, and the one-line errors for wrong input."""

import bz2
import gzip
import json
import logging
import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from cacse_trainer.data import load_sentences, load_sentences_with_stats
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.errors import UserError
from tests.conftest import SHARED

DATA = SHARED / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real data are not on this machine")


@pytest.fixture
def write(tmp_path):
    """Write a file of bytes or text and return its path."""

    def _write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return _write


def message_of(*args, **kwargs) -> str:
    """The message of the UserError that loading gives, the same when streamed; always one line."""
    with pytest.raises(UserError) as error:
        load_sentences(*args, **kwargs)
    with pytest.raises(UserError) as streamed:
        list(load_sentences(*args, streaming=True, **kwargs))
    message = str(error.value)
    assert message == str(streamed.value)
    assert "\n" not in message
    return message


def rows_of(*args, **kwargs) -> list[dict[str, str]]:
    """The rows, the same when streamed, twice."""
    rows = load_sentences(*args, **kwargs).to_list()
    stream = load_sentences(*args, streaming=True, **kwargs)
    assert list(stream) == rows
    assert list(stream) == rows
    assert stream.column_names == list(rows[0])
    return rows


TWO = [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\ntwo\n"),
        ("a.txt", "one\ntwo"),
        ("a.txt", "one\r\ntwo\r\n"),
        ("a.txt", b"\xef\xbb\xbfone\ntwo\n"),
        ("a.txt", "\n \none\n\t\n\u3000\ntwo\n\n\n"),
        ("a.txt.gz", gzip.compress(b"one\n", mtime=0) + gzip.compress(b"two\n", mtime=0)),
        ("a.txt.bz2", bz2.compress(b"one\ntwo\n")),
        ("corpus", "one\ntwo\n"),
        ("corpus.en", "one\ntwo\n"),
        ("a.csv", "text\none\ntwo\n"),
        ("a.csv", b'\xef\xbb\xbf"text",n\r\none,1\r\n"two",2\r\n'),
        ("a.csv", "sentence\none\n\ntwo"),
        ("a.csv", "whatever\none\ntwo"),
        ("a.csv.gz", gzip.compress(b"text\none\ntwo\n", mtime=0)),
        ("a.TSV", "id\ttext\n1\tone\n2\ttwo\n"),
        ("a.csv", "text\none\nNaN\nnan\ntwo\n"),
        ("a.jsonl", '{"text": "one"}\n\n{"text": "two", "n": 3}\n'),
        ("a.jsonl", '{"n": 1}\n{"text": "one"}\n{"text": null}\n{"text": NaN}\n{"text": "two"}'),
        ("a.json", '[\n  {"text": "one"},\n  {"text": "two"}\n]\n'),
        ("a.json", b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n'),
    ],
)
def test_one_column_of_any_format(write, name, content):
    assert rows_of(write(name, content)) == TWO


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("anchor,positive", ["anchor", "positive"]),
        ("positive,anchor,hard_negative", ["positive", "anchor", "hard_negative"]),
        ("anchor,positive,negative", ["anchor", "positive", "hard_negative"]),
        ("sent0,sent1", ["anchor", "positive"]),
        ("sent0,sent1,hard_neg", ["anchor", "positive", "hard_negative"]),
        ("query,positive,negative_1", ["anchor", "positive", "hard_negative"]),
        ("anchor,positive,negative_1,negative_2", ["anchor", "positive", "negative_1", "negative_2"]),
    ],
)
def test_known_names(write, header, names):
    letters = ["a", "b", "c", "d"][: len(names)]
    path = write("a.csv", f"{header}\n{','.join(letters)}\n{','.join(letters).upper()}\n")
    first = dict(zip(names, letters, strict=True))
    assert rows_of(path) == [first, {name: text.upper() for name, text in first.items()}]


def test_columns_can_be_named(write):
    path = write("a.csv", "en,de,fr\na,b,c\nd,e,f\n")
    assert rows_of(path, "de") == [{"text": "b"}, {"text": "e"}]
    assert rows_of(path, ["fr", "en"]) == [{"anchor": "c", "positive": "a"}, {"anchor": "f", "positive": "d"}]
    assert rows_of(path, ["de", "en", "fr"])[0] == {"anchor": "b", "positive": "a", "hard_negative": "c"}


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    second = pa.array(["x", None, "y"], pa.large_string())
    words = pa.array(["u", "u", "v"]).dictionary_encode()
    pq.write_table(pa.table({"sent0": ["a", "b", "c"], "sent1": second, "kind": words, "n": [1, 2, 3]}), path)
    assert rows_of(path) == [{"anchor": "a", "positive": "x"}, {"anchor": "c", "positive": "y"}]
    assert rows_of(path, "kind") == [{"text": "u"}, {"text": "u"}, {"text": "v"}]
    assert "'n' holds int64, not text" in message_of(path, "n")


def test_csv_quotes_are_syntax_and_tsv_quotes_are_text(write):
    csv_path = write("a.csv", 'text\n"He said ""no"", twice"\n"two\nlines"\nit\'s 5" long\n')
    assert rows_of(csv_path) == [{"text": 'He said "no", twice'}, {"text": "two\nlines"}, {"text": "it's 5\" long"}]
    tsv_path = write("a.tsv", 'text\n"open\nclose"\n""\n')
    assert rows_of(tsv_path) == [{"text": '"open'}, {"text": 'close"'}, {"text": '""'}]


def test_only_newlines_end_a_line(write):
    odd = "one\u2028still\x85one\x0bone\x0c\rone"
    assert rows_of(write("a.txt", f"{odd}\r\ntwo\r\n")) == [{"text": odd}, {"text": "two"}]
    assert rows_of(write("a.jsonl", '{"text": "one\u2028still"}\n{"text": "two"}\n'))[0]["text"] == "one\u2028still"
    assert rows_of(write("a.csv", "text\none\u2028still\ntwo\n"))[0]["text"] == "one\u2028still"


def test_text_is_kept_as_it_stands(write):
    assert (
        rows_of(write("a.txt", "  spaced \u00e9\u4e2d\U0001f600 \n\ttwo\n"))[0]["text"]
        == "  spaced \u00e9\u4e2d\U0001f600 "
    )


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_a_line_of_ten_megabytes(write, name, caplog):
    long = "\u00e9 word" * 1_700_000  # 11.9 MB in UTF-8
    content = {
        "a.txt": f"one\n{long}\ntwo\n",
        "a.csv": f"text\none\n{long}\ntwo\n",
        "a.jsonl": "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in ("one", long, "two")),
    }[name]
    path = write(name, content)
    assert load_sentences(path)["text"][:] == ["one", long, "two"]
    line = 3 if name == "a.csv" else 2
    assert f"{path}, line {line}: a sentence of 10200000 characters" in caplog.text


def test_blank_rows_are_counted(write, caplog):
    path = write("a.csv", "sent0,sent1\na,b\n,b\na, \n\nc,d\n")
    with caplog.at_level(logging.INFO):
        dataset, stats = load_sentences_with_stats(path)
    assert dataset.to_list() == [{"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": "d"}]
    counts = {"rows": 5, "blank_dropped": 3, "kept": 2, "duplicates_in_sample": "0 of 2"}
    assert stats == {"columns": ["sent0", "sent1"], **counts}
    assert f"{path}: dropped 3 blank rows of 5" in caplog.text


def test_duplicates_are_counted(write):
    stats = load_sentences_with_stats(write("a.txt", "a\nb\na\na\n"))[1]
    assert stats["duplicates_in_sample"] == "2 of 4"


def test_max_rows(write):
    assert rows_of(write("a.txt", "\none\ntwo\nthree\n"), max_rows=2) == TWO
    assert "max_rows 1" in message_of(write("a.txt", "one\ntwo\n"), max_rows=1)


def test_a_changed_file_is_read_anew(write):
    path = write("a.txt", "one\ntwo\n")
    stamp = os.stat(path)
    before = load_sentences(path)
    write("a.txt", "ONE\nTWO\n")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # same size, same time
    assert load_sentences(path)["text"][:] == ["ONE", "TWO"]
    assert before["text"][:] == ["one", "two"]


def test_nothing_is_left_behind(write, tmp_path):
    path = write("a.txt", "one\ntwo\n")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = f"""
import os, stat, tempfile
from cacse_trainer.data import load_sentences
assert len(load_sentences({path!r})) == 2
folder, = os.listdir(tempfile.gettempdir())
assert stat.S_IMODE(os.stat(os.path.join(tempfile.gettempdir(), folder)).st_mode) == 0o700
if os.fork() == 0:
    raise SystemExit
os.wait()
assert os.listdir(tempfile.gettempdir()) == [folder]
"""
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert list(temporary.iterdir()) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.txt", "temporary"]


def test_streams_run_in_loader_workers(write):
    path = write("a.txt", "".join(f"sentence {number}\n" for number in range(50)))
    stream = load_sentences(path, streaming=True)
    batches = list(DataLoader(stream, batch_size=20, num_workers=1))
    assert [text for batch in batches for text in batch["text"]] == load_sentences(path)["text"][:]


ERRORS = [
    ("a.txt", "", ["is empty"]),
    ("a.csv", "", ["is empty"]),
    ("a.jsonl", "", ["is empty"]),
    ("a.json", "[]", ["is empty"]),
    ("a.csv", "text\n", ["is empty"]),
    ("a.txt", "\n \n\t\n", ["all 3 rows are blank"]),
    ("a.csv", "text\n\n\n", ["all 2 rows are blank"]),
    ("a.txt", "one\n", ["only one row", "no negatives"]),
    ("a.txt", "one\n\n\n", ["only one row"]),
    ("a.txt", "one\rtwo\rthree\r", ["only one row", "lone CR"]),
    ("a.txt", "same\n" * 70, ["all 70 rows are the same ('same')"]),
    ("a.csv", "sent0,sent1\na,b\na,b\n", ["all 2 rows are the same"]),
    ("a.txt", b"one\ncaf\xe9\n", ["line 2", "byte 0xe9 is not UTF-8", "iconv"]),
    ("a.txt", b"x" * 9_000_000 + b"\n" + b"one\n" * 50_000 + b"\xff\n", ["line 50002", "0xff"]),
    ("a.csv", b"text\none\n\xe9\n", ["line 3", "0xe9"]),
    ("a.jsonl", b'{"text": "one"}\n{"text": "\xe9"}\n', ["line 2", "0xe9"]),
    ("a.txt", "one\nt\0wo\n", ["line 2", "NUL"]),
    ("a.txt", "one\ntwo\n".encode("utf-16"), ["line 1", "UTF-8"]),
    ("a.xlsx", b"PK\x03\x04\x14\0\x06\0", ["line 1", "not a text file"]),
    ("a.txt.gz", b"one\ntwo\n", ["cannot be read"]),
    ("a.txt.gz", gzip.compress(os.urandom(4000).hex().encode())[:1000], ["cannot be read"]),
    ("a.csv", "en,de\na,b\n", ["which of its columns (en, de)", "text_columns"]),
    ("a.csv", "en\tde\na\tb\n", ["tabs", ".tsv"]),
    ("a.csv", "text,text\na,b\nc,d\n", ["2 columns are called 'text'"]),
    ("a.csv", "text,n\none,1\ntwo\n", ["line 3", "1 fields", "header has 2 (text, n)"]),
    ("a.csv", 'text,n\none,1\n"two\nlines",2\nthree, four,3\n', ["line 5", "3 fields", "quote"]),
    ("a.tsv", "text\tn\none\t1\ntwo\t2\t3\n", ["line 3", "3 fields"]),
    ("a.csv", 'text\none\n"two\nthree\nfour\n', ["line 3", "unexpected end of data", "in quotes"]),
    ("a.csv", 'text\none\n"two" three\nfour\n', ["line 3", "expected after"]),
    ("a.jsonl", '{"text": "one"}\n{"text": "two"\n', ["line 2", "not JSON"]),
    ("a.jsonl", '{"text": "one"}\n"two"\n', ["line 2", "no JSON object"]),
    ("a.jsonl", '{"text": "one"}\n{"text": 2}\n', ["line 2", "'text' is 2, not a string"]),
    ("a.jsonl", '{"text": "one"}\n{"text": ["two"]}\n', ["line 2", "['two']"]),
    ("a.jsonl", '{"text": "one"}\n{"text": "\\ud800"}\n', ["line 2", "no valid text"]),
    ("a.jsonl", '{"text": "one"}\n' + "[" * 100_000 + "\n", ["line 2", "not JSON"]),
    ("a.json", '[{"text": "one"}, 2]', ["item 2", "no JSON object"]),
    ("a.json", '[{"text": "one"}, {"text": 2}]', ["item 2", "not a string"]),
    ("a.json", '[{"text": "one"}', ["not JSON"]),
    ("a.parquet", "one\ntwo\n", ["not a readable parquet file"]),
    ("a.csv", "text;n\none;1\ntwo;2\n", ["seems to be ';'", "a .csv file has commas", "sep=';'"]),
    ("a.csv", "text|n\r\none|1\r\ntwo|2\r\n", ["seems to be '|'"]),
    ("a.csv", b'\xef\xbb\xbfthe text;n\n"one\nmore";1\ntwo;2,5\n', ["seems to be ';'"]),
    ("a.tsv", "anchor,positive\na,b\nc,d\n", ["seems to be ','", "has tabs", "name the file .csv"]),
    ("a.csv", '"text";"n"\n"one";"1"\n', ["line 1", "separated by commas"]),
    ("a.tsv", '"text"\n"one"\n"two"\n', ["no column's name", "text_column"]),
    ("a.csv", "A man plays; it rains.\nA dog.\nA cat; a mouse; rain.\n", ["no column's name", "write a header"]),
    ("a.csv", "a man plays the flute\na dog runs\n", ["no column's name"]),
    ("a.txt", "他来了\n我走了\n".encode("utf-16"), ["UTF-8"]),
    ("a.txt", "他来了，我走了".encode("utf-16"), ["UTF-16"]),
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text\na; b\nc; d\n"),
        ("a.csv", "review\na; b\nc; d\n"),
        ("a.csv", "0\na; b\nc; d\n"),
        ("a.tsv", "text\na; b\nc; d\n"),
        ("a.txt", "a; b\nc; d\n"),
    ],
)
def test_other_delimiters_in_sentences_are_text(write, name, content):
    assert rows_of(write(name, content)) == [{"text": "a; b"}, {"text": "c; d"}]


def test_an_odd_name_is_a_column_when_it_is_given(write):
    path = write("a.csv", "What; they wrote\na; b\nc; d\n")
    assert rows_of(path, "What; they wrote") == [{"text": "a; b"}, {"text": "c; d"}]
    assert list(Corpus(path, "What; they wrote")) == ["a; b", "c; d"]
    with pytest.raises(UserError, match="its first line 'What; they wrote'"):  # its first sentence would be lost
        Corpus(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "one"}\n{"text": null}\n{"text": "two"}\n'),
        ("a.jsonl", '{"text": "one"}\n{"id": 2}\n'),
        ("a.csv", "text\nNaN\none\n"),
    ],
)
def test_a_corpus_has_a_text_in_every_row(write, name, content):
    """A blank one is a row of its own; a missing one could be a mistake, and is refused with its place."""
    path = write(name, content)
    with pytest.raises(UserError, match=f"{name}, line 2: has no 'text'"):
        list(Corpus(path))
    pq.write_table(pa.table({"text": ["one", "", None]}), f"{path}.parquet")
    with pytest.raises(UserError, match="row 3: has no 'text'"):
        list(Corpus(f"{path}.parquet"))
    assert list(Corpus(write("b.csv", 'text\none\n\n""\n'))) == ["one", "", ""]


def test_a_word_that_may_be_a_sentence_is_not_taken_for_the_header_in_silence(write, caplog):
    path = write("a.csv", "dog\ncat\nhouse\n")
    for read in (rows_of, Corpus):
        caplog.clear()
        read(path)
        assert "took 'dog' for the header" in caplog.text and "name the file .txt" in caplog.text
    caplog.clear()
    rows_of(path, "dog")
    rows_of(write("b.csv", "text\ncat\nhouse\n"))
    assert "took" not in caplog.text


def test_a_damaged_block_of_a_parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"sentence {i}" for i in range(2000)]}), path, compression="none")
    content = bytearray(path.read_bytes())
    content[len(content) // 4] = 0xFF  # no UTF-8
    path.write_bytes(content)
    assert "not a readable parquet file" in message_of(str(path))


@pytest.mark.parametrize(("name", "content", "words"), ERRORS, ids=range(len(ERRORS)))
def test_wrong_files(write, name, content, words):
    path = write(name, content)
    message = message_of(path)
    assert message.startswith(path)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("txet", ["no column 'txet'", "id, text", "did you mean 'text'?"]),
        (["zzzz"], ["no column 'zzzz'", "id, text"]),
        ([], ["one, two or more"]),
        (["text", "text"], ["different columns"]),
        (["a", "b", "c", "d"], ["no column 'a'"]),
    ],
)
def test_wrong_columns(write, columns, words):
    message = message_of(write("a.csv", "id,text\n1,one\n2,two\n"), columns)
    assert all(word in message for word in words), message


def test_wrong_paths(tmp_path):
    assert "is a folder" in message_of(tmp_path)
    for path in (tmp_path / "none", "none.txt", "./none", "some/folder/none", "~/none.csv", "two words"):
        assert "no such file" in message_of(path)


class TestHub:
    """Hugging Face data sets, with a stand-in for the download."""

    @pytest.fixture
    def calls(self, monkeypatch):
        calls = []

        def load_dataset(name, config, *, split, streaming):
            calls.append((name, config, split, streaming))
            if name == "owner/missing":
                raise ConnectionError("Couldn't reach 'owner/missing' on the Hub\nmore")
            data = datasets.Dataset.from_dict({"n": [1, 2, 3], "sentence": ["one", None, "two"]})
            return data.to_iterable_dataset() if streaming else data

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    def test_rows(self, calls):
        assert rows_of("owner/name") == TWO
        assert set(calls) == {("owner/name", None, "train", False), ("owner/name", None, "train", True)}

    def test_name_config_and_split(self, calls):
        load_sentences("wiki:en.v1@train[:10%]", split="test")
        load_sentences("wiki:en.v1", split="test")
        assert calls[0] == ("wiki", "en.v1", "train[:10%]", False)
        assert calls[-1] == ("wiki", "en.v1", "test", False)

    def test_errors(self, calls):
        message = message_of("owner/missing")
        assert "owner/missing: neither a file here nor a data set that can be reached (Couldn't reach" in message
        assert "'n' holds int64, not text" in message_of("owner/name", "n")


@needs_data
def test_real_text():
    lines = (DATA / "wiki" / "wiki.txt").read_bytes().decode().split("\n")
    assert [row["text"] for row in rows_of(DATA / "wiki" / "wiki.txt")] == [line for line in lines if line.strip()]


@needs_data
def test_real_triplets():
    dataset, stats = load_sentences_with_stats(DATA / "nli" / "nli_triplets.csv")
    assert (len(dataset), stats["blank_dropped"], stats["columns"]) == (5879, 0, ["sent0", "sent1", "hard_neg"])
    assert dataset[1]["positive"] == "Two kids in numbered jerseys wash their hands ."


@pytest.mark.slow
def test_a_million_lines_in_flat_memory(tmp_path):
    path = tmp_path / "million.txt"
    line = "A sentence of about the length that sentences in an encyclopedia have, all in all, number"
    path.write_text("".join(f"{line} {number}.\n" for number in range(1_000_000)), encoding="utf-8")
    code = f"""
import resource
from cacse_trainer.data import load_sentences
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
dataset = load_sentences({str(path)!r})
print(len(dataset), peak() - before)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment).stdout
    rows, megabytes = (float(part) for part in output.split())
    assert rows == 1_000_000
    assert megabytes < 200
