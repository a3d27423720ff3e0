"""`encode --shard` and `--finish`: the same vectors whatever n is, broken shards, refusals, the search over them."""

import json
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli import encode, search
from cacse_trainer.cli.common import run
from cacse_trainer.data import sources
from cacse_trainer.data.corpus import Corpus
from cacse_trainer.data.sources import FileSource
from cacse_trainer.encoding import shards
from cacse_trainer.encoding.corpus import _rows_of
from cacse_trainer.encoding.vectors.precision import directions, to_precision
from tests.conftest import write_sentences
from tests.tolerances import assert_near


@pytest.fixture
def model(tiny_towers):
    """A small encoder, and the flags that name it."""
    folder = tiny_towers("bert")[0]
    return SentenceEncoder(folder, "mean"), ["--model", folder, "--pooling", "mean", "--device", "cpu"]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A text file of some blocks, one of them within a long line; tables of a block's rows are cut, too."""
    monkeypatch.setattr(sources, "BLOCK_BYTES", 256)
    monkeypatch.setattr(shards, "SHARD_ROWS", 5)
    path = write_sentences(tmp_path / "corpus.txt", 30)
    path.write_text(path.read_text() + "\n" + "the dog " * 100 + "\nthe dog\nthe dog\n")
    return path, path.read_text().split("\n")[:-1]


def _shard(flags, path, output, shard, *more):
    return run(encode.main, [*flags, "--input", str(path), "--output", str(output), "--shard", shard, *more])


def _finish(output):
    return run(encode.main, ["--finish", "--output", str(output)])


def _read(output):
    parts = json.loads(output.with_name(f"{output.name}.json").read_text())["parts"]
    if output.suffix == ".npy":
        return np.concatenate([np.load(output / part["file"]) for part in parts])
    column = pq.read_table(output).column("embedding")
    return np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks]).reshape(-1, column.type.list_size)


def _said(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def test_the_vectors_are_the_same_whatever_n_is(model, corpus, tmp_path, capsys):
    encoder, flags = model
    path, lines = corpus
    tables = {}
    for count in (1, 2, 3):
        output = tmp_path / f"v{count}.npy"
        for number in range(count, 0, -1):  # in any order
            assert _shard(flags, path, output, f"{number}/{count}") == 0
        capsys.readouterr()
        assert _finish(output) == 0
        assert f"{len(lines)} vectors of 32 dimensions, float32, in " in capsys.readouterr().out
        tables[count] = _read(output)
    assert_near(tables[1], encoder.encode(lines))
    assert tables[1].tobytes() == tables[2].tobytes() == tables[3].tobytes()
    facts = json.loads((tmp_path / "v3.npy.json").read_text())
    assert (facts["rows"], facts["fingerprint"]) == (len(lines), encoder.fingerprint())
    assert facts["blocks"] == len(facts["parts"]) > 5 and 0 in [part["rows"] for part in facts["parts"]]


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_parquet_with_ids_and_text_is_searched(model, corpus, tmp_path, capsys, precision):
    encoder, flags = model
    path, lines = corpus
    output = tmp_path / "v.parquet"
    for shard in ("1/2", "2/2"):
        assert _shard(flags, path, output, shard, "--precision", precision, "--with_text") == 0
    assert _finish(output) == 0
    table = pq.read_table(output)  # the records in the folder are in nobody's way
    assert table.column_names == ["id", "text", "embedding"] and table.column("text").to_pylist() == lines
    ids, parts = table.column("id").to_pylist(), json.loads((tmp_path / "v.parquet.json").read_text())["parts"]
    assert ids == [block * 2**32 + row for block, part in enumerate(parts) for row in range(part["rows"])]
    stored = _read(output)
    assert stored.dtype == to_precision(np.zeros((1, 32), dtype=np.float32), precision).dtype
    found = directions(stored, precision, 32)
    assert (found * encoder.encode(lines)).sum(axis=1).min() > 0.999
    capsys.readouterr()
    command = [*flags, "--corpus", str(path), "--vectors", str(output), "--query", "the dog", "--top_k", "2"]
    assert run(search.main, [*command, "--save_index", str(tmp_path / "index")]) == 0
    asked = capsys.readouterr().out
    assert [line.split(maxsplit=1)[1] for line in asked.splitlines()[1:3]] == ["the dog"] * 2
    again = ["--index", str(tmp_path / "index"), *flags[2:], "--query", "the dog", "--top_k", "2"]
    assert run(search.main, again) == 0
    assert capsys.readouterr().out == asked
    text = path.read_text()
    path.write_text(text.replace("the dog\nthe dog\n", "the dog\nthe cat\n"))
    assert run(search.main, command) == 2
    assert "were made of another text" in _said(capsys)
    path.write_text(text)
    (output / parts[1]["file"]).write_bytes((output / parts[2]["file"]).read_bytes())
    assert run(search.main, command) == 2
    assert "are not those that v.parquet.json tells of" in _said(capsys)


def test_a_broken_shard_goes_on(model, corpus, tmp_path, monkeypatch, capsys):
    """Ended in its third block; another n takes up what is there; damaged files and changed text are encoded anew."""
    encoder, flags = model
    path, lines = corpus
    output, original, written = tmp_path / "v.npy", shards._write, []

    def breaking(target, block, found, with_text):
        if len(written) == 2:
            (target.parent / f".{target.name}.partial").write_text("half")
            raise KeyboardInterrupt
        written.append(block)
        return original(target, block, found, with_text)

    monkeypatch.setattr(shards, "_write", breaking)
    assert _shard(flags, path, output, "1/2") == 130 and written == [0, 2]
    assert _finish(output) == 2
    said = _said(capsys)
    assert "blocks are missing or damaged (000001.npy, 000003.npy, " in said
    assert "start --shard 1/2, 2/2 again, or --shard 1/1" in said and not (tmp_path / "v.npy.json").exists()
    monkeypatch.setattr(shards, "_write", lambda *given: (written.append(given[1]), original(*given))[1])
    written.clear()
    assert _shard(flags, path, output, "1/2") == 0
    count = json.loads((output / "_shard_1_of_2.json").read_text())["facts"]["blocks"]
    assert written == list(range(4, count, 2))
    written.clear()
    damaged = bytearray((output / "000002.npy").read_bytes())
    damaged[-1] ^= 1
    (output / "000002.npy").write_bytes(damaged)
    path.write_text(path.read_text().replace(lines[0], lines[0][::-1]))  # of the same size, in the first block
    assert _shard(flags, path, output, "1/1") == 0
    assert written == sorted({0, 2, *range(1, count, 2)})
    assert _finish(output) == 0
    assert_near(_read(output), encoder.encode([lines[0][::-1], *lines[1:]]))
    written.clear()
    assert _shard(flags, path, output, "1/1") == 0 and written == []
    assert "0 of them encoded now" in capsys.readouterr().out


def test_shards_of_different_n_write_no_block_at_once(model, corpus, tmp_path, monkeypatch):
    """One that comes to a block that another one is writing waits for it, and leaves it whole."""
    (encoder, flags), (path, texts) = model, corpus
    output, whole = tmp_path / "v.npy", tmp_path / "whole.npy"
    assert _shard(flags, path, whole, "1/1") == 0 and _finish(whole) == 0
    original, others, writing_block, arrived = shards.write_table, [], shards.writing_block, threading.Event()

    def begin(shard):
        return shards.encode_shard(encoder, Corpus(path), output, {"dim": 32}, shard)

    def in_the_midst(tables):
        for table in tables:
            if not others:  # the first block's file is open: another shard begins, and comes to the same block
                others.append(threading.Thread(target=begin, args=[(1, 2)]))
                others[0].start()
                assert arrived.wait(300)
                others[0].join(0.5)  # without a lock it writes now
            yield table

    def told(place):
        if threading.current_thread() is not threading.main_thread():
            arrived.set()
        return writing_block(place)

    def slow(place, tables, *more):
        return original(place, in_the_midst(tables), *more)

    monkeypatch.setattr(shards, "write_table", slow)
    monkeypatch.setattr(shards, "writing_block", told)
    begin((1, 1))
    others[0].join()
    assert shards.finish(output)["rows"] == len(texts) and np.array_equal(_read(output), _read(whole))


def test_foreign_and_missing_shards_are_one_line(model, corpus, tmp_path, capsys, tiny_towers):
    _, flags = model
    path, _ = corpus
    output, other = tmp_path / "v.npy", tmp_path / "other.npy"
    assert _finish(output) == 2
    assert "holds no shards; start encode --shard 1/n to n/n" in _said(capsys)
    assert _shard(flags, path, output, "1/2") == 0
    assert run(search.main, [*flags, "--corpus", str(path), "--vectors", str(output), "--query", "a"]) == 2
    assert "the shards are not finished; cacse-trainer encode --finish --output" in _said(capsys)
    assert _shard(flags, path, output, "2/2", "--no_normalize") == 2
    assert "holds shards of other settings (normalize; by _shard_1_of_2.json)" in _said(capsys)
    its = [tiny_towers("bert")[1] if word == flags[1] else word for word in flags]
    assert _shard(its, path, other, "2/2") == 0
    for file in other.iterdir():  # as one brings shards together that were written on several machines
        file.rename(output / file.name)
    assert _finish(output) == 2
    assert "_shard_2_of_2.json and _shard_1_of_2.json differ in fingerprint" in _said(capsys)
    (output / "_shard_2_of_2.json").unlink()
    assert _shard(flags, path, output, "2/2") == 0
    (output / "000099.npy").write_text("mine")
    assert _finish(output) == 2
    assert "holds 000099.npy, which belongs to no shard" in _said(capsys)
    (output / "000099.npy").rename(output / "notes.txt")
    assert _shard(flags, path, output, "1/2") == 2
    assert "this program did not write notes.txt" in _said(capsys)
    (output / "notes.txt").unlink()
    (tmp_path / "v.npy.json").write_text('{"my": "notes"}')
    assert _finish(output) == 2
    assert "v.npy.json cannot be replaced" in _said(capsys)
    (tmp_path / "v.npy.json").unlink()
    for damage, words in (("{", "cannot be read"), ('{"facts": {}, "parts": {}}', "has no 'input'")):
        (output / "_shard_1_of_2.json").write_text(damage)
        assert _finish(output) == 2
        assert (said := _said(capsys)).endswith("delete it, and start its shard again") and words in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--shard", "0/2"], "argument --shard: is '0/2'; give i/n with i from 1 to n"),
        (["--shard", "3/2"], "argument --shard: is '3/2'"),
        (["--shard", "2"], "argument --shard: is '2'"),
        (["--shard", "1/2/3"], "argument --shard: is '1/2/3'"),
        (["--shard", "a/b"], "argument --shard: is 'a/b'"),
        (["--shard", "1/2", "--with_text"], "holds numbers only; give an output that ends in .parquet"),
        (["--shard", "1/2", "--overwrite"], "--overwrite: does nothing with --shard"),
        (["--shard", "1/2", "--shard_rows", "7"], "--shard_rows: does nothing with --shard"),
        (["--shard", "1/2", "--input", "."], "output v.npy: lies in the input's folder"),
        (["--with_text"], "--with_text: belongs to --shard"),
        (["--finish"], "--device: does nothing with --finish, which needs the output alone"),
        (["--shard", "1/2", "--output", "v"], "ends in .npy or .parquet"),
        (["--shard", "1/2", "--output", "corpus.txt.npy"], "is a file, and shards need a folder"),
    ],
)
def test_wrong_settings_are_one_line(model, corpus, tmp_path, monkeypatch, capsys, more, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt.npy").write_text("")
    assert run(encode.main, [*model[1], "--input", str(corpus[0]), "--output", "v.npy", *more]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and words in told[0]


def test_torchrun_is_not_for_shards(model, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert _shard(model[1], corpus[0], tmp_path / "v.npy", "1/2") == 2
    assert "torchrun has started several processes; start one a shard" in _said(capsys)
    assert run(encode.main, [*model[1], "--output", "v.npy"]) == 2
    assert "the following arguments are required: --input" in _said(capsys)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_of_torchrun_read_their_own_blocks(corpus, monkeypatch, count):
    """As `encode_corpus` reads on each of ``count`` processes: all rows, and a block beside a border twice at most."""
    path, lines = corpus
    text = Corpus(path)
    parts = [(part, len(list(text.rows_of(part)))) for part in text.parts()]
    read, original = [], FileSource.batches
    monkeypatch.setattr(FileSource, "batches", lambda source, *given: read.append(source) or original(source, *given))
    shards_of = np.array_split(np.arange(-(-len(lines) // 4)), count)
    found = [list(_rows_of(text, parts, mine.tolist(), 4)) for mine in shards_of]
    assert [row for rows in found for row in rows] == lines
    assert len(read) <= len(parts) + count - 1 and max(map(len, found)) < len(lines) // count + 5
    assert list(_rows_of(text, parts, [0, 3], 4)) == [*lines[:4], *lines[12:16]]


def test_an_empty_corpus_and_more_shards_than_blocks(model, tmp_path, capsys):
    _, flags = model
    path = write_sentences(tmp_path / "corpus.txt", 3)
    for shard in ("1/3", "2/3", "3/3"):
        assert _shard(flags, path, tmp_path / "v.npy", shard) == 0
    assert "shard 3/3, 0 vectors in 0 of 1 blocks" in capsys.readouterr().out
    assert _finish(tmp_path / "v.npy") == 0 and _read(tmp_path / "v.npy").shape == (3, 32)
    path.write_text("")
    assert _shard(flags, path, tmp_path / "w.npy", "1/1") == 0
    assert _finish(tmp_path / "w.npy") == 2
    assert "corpus.txt is empty; there is nothing to encode" in _said(capsys)
