"""An index on the disk: what it finds is what the exact search finds, texts are read where they lie, refusals."""

import json

import numpy as np
import pytest

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli import encode, search
from cacse_trainer.cli.common import run
from cacse_trainer.encoding.vectors import disk_index
from cacse_trainer.encoding.vectors.disk_index import StoredTexts, build_lists, recall, write_texts
from cacse_trainer.encoding.vectors.exact import ExactVectors
from cacse_trainer.encoding.vectors.faiss_vectors import FaissVectors
from cacse_trainer.encoding.vectors.precision import directions, normalized, to_precision
from cacse_trainer.errors import UserError
from tests.conftest import write_sentences

pytest.importorskip("faiss")


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_all_cells_find_what_the_exact_search_finds(tmp_path, monkeypatch, precision):
    """The vectors are added 50 at a time; the folder may be moved before it is read."""
    monkeypatch.setattr(disk_index, "ADDED_BYTES", 50 * 4 * 16)
    table = normalized(np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32))
    stored = to_precision(table, precision)
    tables = [stored[:120], stored[120:120], stored[120:]]
    (tmp_path / "made").mkdir()
    assert build_lists(tmp_path / "made", tables, precision, 16, "ivf", 12) == 1.0
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["index.faiss", "lists.ivfdata"]
    folder = (tmp_path / "made").rename(tmp_path / "moved")
    found, exact = FaissVectors.load(folder, "ivf", 12), ExactVectors(tables, precision, 16)
    queries = directions(stored[::100], precision, 16)
    for first, second in zip(found.search(queries, 7), exact.search(queries, 7), strict=True):
        assert np.allclose(first, second, atol=1e-5)
    few = recall(FaissVectors.load(folder, "ivf", 1), exact, queries)
    assert len(found) == 500 and 0.1 <= few < 1  # each is at least its own nearest
    for kind in ("flat", "hnsw", "IVF9999,Flat"):
        with pytest.raises(UserError, match="on the disk"):
            build_lists(tmp_path, tables, precision, 16, kind)


def test_texts_are_read_where_they_lie(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_index, "TEXTS_AT_ONCE", 4)
    for count in (0, 3, 4, 9):
        texts = [f"text {number}" for number in range(count)]
        assert list(write_texts(tmp_path / "t.arrow", texts)) == texts
        stored = StoredTexts(tmp_path / "t.arrow")
        assert list(stored) == texts == stored[:] and len(stored) == count
    assert stored[-1] == "text 8"
    with pytest.raises(IndexError):
        _ = stored[9]


def test_the_command(tiny_towers, tmp_path, capsys):
    model = tiny_towers("bert")[0]
    flags = ["--model", model, "--pooling", "mean", "--device", "cpu"]
    corpus = write_sentences(tmp_path / "corpus.txt", 90)
    corpus.write_text(corpus.read_text() + "the dog\n")
    vectors, index = str(tmp_path / "v.npy"), tmp_path / "index"
    assert run(encode.main, [*flags, "--input", str(corpus), "--output", vectors, "--shard", "1/1"]) == 0
    assert run(encode.main, ["--output", vectors, "--finish"]) == 0
    command = [*flags, "--corpus", str(corpus), "--vectors", vectors]
    asked = ["--query", "the dog", "--top_k", "3"]
    assert run(search.main, [*command, *asked, "--kind", "ivf"]) == 2
    assert "say where with --save_index" in capsys.readouterr().err
    assert run(search.main, [*command, *asked]) == 0
    exact = capsys.readouterr().out
    assert run(search.main, [*command, *asked, "--kind", "ivf", "--save_index", str(index)]) == 0
    assert capsys.readouterr().out == exact
    facts = json.loads((index / "index.json").read_text())
    assert (facts["rows"], facts["recall"], facts["kind"]) == (91, 1.0, "ivf")
    assert run(search.main, ["--index", str(index), *flags[2:], *asked]) == 0
    assert capsys.readouterr().out == exact
    encoder = SentenceEncoder(model, "mean", "cpu")
    encoder.load_index(index)
    assert encoder.search("the dog", top_k=1)[0][0] == "the dog"
    with pytest.raises(UserError, match="build it anew to add"):
        encoder.add_to_index(["a man"])
    with pytest.raises(UserError, match="copy its folder"):
        encoder.save_index(tmp_path / "other")
    assert run(search.main, [*command, "--kind", "hnsw", "--save_index", str(tmp_path / "h")]) == 2
    assert "choose ivf, or a factory string, such as" in capsys.readouterr().err
    assert not (tmp_path / "h").exists()
