"""`cacse-trainer encode` and `search`: files in and out, broken runs, several processes, indexes, refusals."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli import encode, export, search
from cacse_trainer.cli.common import run
from cacse_trainer.encoding import computing
from cacse_trainer.encoding import corpus as encode_corpus
from cacse_trainer.encoding.vectors.precision import directions
from cacse_trainer.files import only_one
from cacse_trainer.settings import precision
from tests.conftest import write_sentences
from tests.distributed.processes import run_processes
from tests.tolerances import assert_near, noise


@pytest.fixture
def model(tiny_towers):
    """A small encoder, and the flags that name it."""
    folder = tiny_towers("bert")[0]
    return SentenceEncoder(folder, "mean"), [
        "--model",
        folder,
        "--pooling",
        "mean",
        "--device",
        "cpu",
        "--disable_tqdm",
    ]


@pytest.fixture
def corpus(tmp_path):
    """A text file with a blank line in the middle and a repeated one."""
    path = write_sentences(tmp_path / "corpus.txt", 30)
    path.write_text(path.read_text() + "\nthe dog\nthe dog\n")
    return path, path.read_text().split("\n")[:-1]


def test_every_row_has_its_vector(model, corpus, tmp_path, capsys):
    encoder, flags = model
    path, lines = corpus
    output = tmp_path / "vectors.npy"
    assert run(encode.main, [*flags, "--input", str(path), "--output", str(output), "--shard_rows", "7"]) == 0
    assert "33 vectors of 32 dimensions" in capsys.readouterr().out
    found = np.load(output, mmap_mode="r")
    assert_near(found, encoder.encode(lines))
    facts = json.loads((tmp_path / "vectors.npy.json").read_text())
    assert (facts["rows"], facts["dim"], facts["fingerprint"]) == (33, 32, encoder.fingerprint())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.txt", "vectors.npy", "vectors.npy.json"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_kinds_of_files_and_precisions(model, corpus, tmp_path, kind):
    encoder, flags = model
    _, lines = corpus
    path = tmp_path / f"in.{kind}"
    if kind == "csv":
        path.write_text("id,body\n" + "".join(f'{i},"{line}"\n' for i, line in enumerate(lines)))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"id": i, "body": line}) + "\n" for i, line in enumerate(lines)))
    else:
        pq.write_table(pa.table({"id": range(len(lines)), "body": lines}), path)
    output = tmp_path / "out.parquet"
    flags = [*flags, "--text_column", "body", "--precision", "int8", "--truncate_dim", "20", "--shard_rows", "10"]
    assert run(encode.main, [*flags, "--input", str(path), "--output", str(output)]) == 0
    table = pq.read_table(output)
    assert table.column("text").to_pylist() == lines
    stored = np.array(table.column("embedding").to_pylist(), dtype=np.int8)
    expected = encoder.encode(lines, truncate_dim=20)
    assert (directions(stored, "int8", 20) * expected).sum(axis=1).min() > 0.999


def test_a_broken_run_goes_on(model, corpus, tmp_path, monkeypatch, capsys):
    """Interrupted after two of five shards: the second call encodes the other three only."""
    encoder, flags = model
    path, lines = corpus
    output = tmp_path / "v.npy"
    command = [*flags, "--input", str(path), "--output", str(output), "--shard_rows", "7"]
    original, written = encode_corpus._write_shard, []

    def interrupted(folder, number, key, table):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        original(folder, number, key, table)

    monkeypatch.setattr(encode_corpus, "_write_shard", interrupted)
    assert run(encode.main, command) == 130
    assert written == [0, 1] and not output.exists()
    monkeypatch.setattr(
        encode_corpus,
        "_write_shard",
        lambda folder, number, key, table: (written.append(number), original(folder, number, key, table)),
    )
    assert run(encode.main, [*command, "--precision", "int8"]) == 2  # other settings
    assert "holds shards of other settings (precision)" in capsys.readouterr().err.splitlines()[-1]
    assert run(encode.main, command) == 0
    assert written == [0, 1, 2, 3, 4]
    assert_near(np.load(output), encoder.encode(lines))
    assert run(encode.main, command) == 2
    assert "is there already" in capsys.readouterr().err.splitlines()[-1]
    assert run(encode.main, [*command, "--overwrite", "--no_normalize"]) == 0
    assert_near(np.load(output), encoder.encode(lines, normalize=False))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_broken_off_before_its_facts_goes_on(model, corpus, tmp_path, monkeypatch, overwrite):
    """The vectors are in their place, and nothing says yet what made them: the same call writes that."""
    encoder, flags = model
    path, lines = corpus
    output, about = tmp_path / "v.npy", tmp_path / "v.npy.json"
    command = [*flags, "--input", str(path), "--output", str(output)]
    if overwrite:
        assert run(encode.main, command) == 0
        command.append("--no_normalize")
    original = encode_corpus.write_json

    def interrupted(target, value):
        if target == about:
            raise KeyboardInterrupt
        original(target, value)

    with monkeypatch.context() as patch:
        patch.setattr(encode_corpus, "write_json", interrupted)
        assert run(encode.main, [*command, *["--overwrite"] * overwrite]) == 130
    assert output.exists() and not about.exists()
    monkeypatch.setattr(encode_corpus, "_write_shard", None)  # all shards are there
    assert run(encode.main, command) == 0
    assert_near(np.load(output), encoder.encode(lines, normalize=not overwrite))
    assert json.loads(about.read_text())["normalize"] is not overwrite
    assert not (tmp_path / "v.npy.partial").exists()


@pytest.mark.parametrize(
    ("began", "auto", "dtype"),
    [
        (["--compute", "int8"], ["--compute", "auto", "--compute_dev", "none.csv"], "int8"),
        (["--bf16", "true"], ["--compute", "auto"], "bfloat16"),
        (["--bf16", "true"], ["--bf16", "auto"], "bfloat16"),
        (["--bf16", "false"], ["--bf16", "auto"], "float32"),
    ],
)
@pytest.mark.parametrize("shards", [False, True])
def test_work_that_goes_on_keeps_what_auto_chose(model, corpus, tmp_path, monkeypatch, began, auto, dtype, shards):
    """Nothing is measured, on whatever machine it is."""
    output = tmp_path / "v.npy"
    command = [*model[1], "--input", str(corpus[0]), "--output", str(output)]
    if shards:
        assert run(encode.main, [*command, "--shard", "1/2", *began]) == 0
    else:
        assert _broken_off([*command, *began], output, monkeypatch)
    monkeypatch.setattr(computing, "_measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(precision, "bf16_is_fast", lambda **_: pytest.fail("measured"))
    assert run(encode.main, [*command, *auto, *(["--shard", "2/2"] if shards else [])]) == 0
    if shards:
        assert run(encode.main, ["--output", str(output), "--finish"]) == 0
    assert json.loads((tmp_path / "v.npy.json").read_text())["dtype"] == dtype


def test_auto_chooses_anew_with_overwrite(model, corpus, tmp_path, monkeypatch):
    output = tmp_path / "v.npy"
    command = [*model[1], "--input", str(corpus[0]), "--output", str(output)]
    assert _broken_off([*command, "--bf16", "true"], output, monkeypatch)
    monkeypatch.setattr(precision, "bf16_is_fast", lambda **_: False)
    assert run(encode.main, [*command, "--bf16", "auto", "--overwrite"]) == 0
    assert json.loads((tmp_path / "v.npy.json").read_text())["dtype"] == "float32"


def _broken_off(command, output, monkeypatch):
    """All shards of a run that ends before it puts them together."""
    with monkeypatch.context() as patch:
        patch.setattr(encode_corpus, "_merge", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(encode.main, [*command, "--output", str(output)]) == 130
    return sorted(output.with_name(f"{output.name}.partial").glob("shard_*.npy"))


def test_no_shard_is_taken_for_another_one(model, corpus, tmp_path, monkeypatch, tiny_towers):
    """Shards of another model, damaged ones, ones without a name of their own: all are made anew."""
    encoder, flags = model
    path, lines = corpus
    command = [*flags, "--input", str(path), "--shard_rows", "7"]
    other = [tiny_towers("bert")[1] if word == flags[1] else word for word in command]
    foreign = _broken_off(other, tmp_path / "other.npy", monkeypatch)
    output = tmp_path / "v.npy"
    shards = _broken_off(command, output, monkeypatch)
    for shard, theirs in zip(shards, foreign, strict=True):
        (shard.parent / theirs.name).write_bytes(theirs.read_bytes())
        (shard.parent / f"{shard.name.partition('.')[0]}.npy").write_bytes(theirs.read_bytes())  # an older version's
    damaged = bytearray(shards[1].read_bytes())
    damaged[-3] ^= 1
    shards[1].write_bytes(damaged)
    shards[2].write_bytes(shards[2].read_bytes()[:-10])
    shards[3].unlink()
    assert run(encode.main, [*command, "--output", str(output)]) == 0
    assert_near(np.load(output), encoder.encode(lines))


@pytest.mark.parametrize("damage", ["{", "[]", None])
def test_damaged_facts_are_one_line_and_overwrite_mends_them(model, corpus, tmp_path, monkeypatch, capsys, damage):
    """Or they are gone: the shards themselves say what they are."""
    encoder, flags = model
    output = tmp_path / "v.npy"
    command = [*flags, "--input", str(corpus[0]), "--shard_rows", "7"]
    facts = _broken_off(command, output, monkeypatch)[0].with_name("facts.json")
    facts.unlink() if damage is None else facts.write_text(damage)
    command += ["--output", str(output)]
    if damage is not None:
        assert run(encode.main, command) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "facts.json: " in said and "repeat the command with --overwrite" in said
        command.append("--overwrite")
    assert run(encode.main, command) == 0
    assert_near(np.load(output), encoder.encode(corpus[1]))


def test_encode_leaves_alone_what_is_not_its_own(model, corpus, tmp_path, capsys):
    _, flags = model
    output, command = tmp_path / "v.npy", [*flags, "--input", str(corpus[0]), "--output", str(tmp_path / "v.npy")]
    notes = tmp_path / "v.npy.partial" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    assert run(encode.main, [*command, "--overwrite"]) == 2
    assert "did not write notes.txt" in capsys.readouterr().err.splitlines()[-1]
    notes.unlink()
    notes.parent.rmdir()
    notes = tmp_path / "v.npy.json"
    for text in ("mine", '{"my": "notes"}'):
        notes.write_text(text)
        for more, said in (([], "v.npy.json is there already"), (["--overwrite"], "this program did not write it")):
            assert run(encode.main, [*command, *more]) == 2
            assert said in capsys.readouterr().err.splitlines()[-1] and notes.read_text() == text
    notes.unlink()
    output.write_text("mine")
    output.with_name("v.npy.partial").mkdir()  # nothing in it says that the output is a run's
    assert run(encode.main, command) == 2
    assert "v.npy is there already" in capsys.readouterr().err.splitlines()[-1] and output.read_text() == "mine"
    output.unlink()
    with only_one(output):
        assert run(encode.main, command) == 2
    assert "is being written by another process" in capsys.readouterr().err.splitlines()[-1]


def _encode(rank, command):
    encode.main(command)


@pytest.mark.slow
def test_two_processes_share_the_shards(model, corpus, tmp_path):
    encoder, flags = model
    path, lines = corpus
    output = tmp_path / "v.npy"
    command = [*flags, "--input", str(path), "--output", str(output), "--shard_rows", "4"]
    run_processes(_encode, 2, str(tmp_path), command)
    assert_near(np.load(output), encoder.encode(lines))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--output", "v.bin"], "ends in .npy or .parquet"),
        (["--output", "v.npy", "--shard_rows", "0"], "at least 1"),
        (["--output", "v.npy", "--truncate_dim", "33"], "between 1 and"),
        (["--output", "v.npy", "--batch_size", "-1"], "argument --batch_size: is -1; it must be at least 1"),
        (["--output", "v.npy", "--tokens_per_batch", "0"], "argument --tokens_per_batch: is 0"),
        (["--output", "v.npy", "--max_seq_length", "2"], "no room for text beside 2 special tokens; give at least 3"),
        (["--output", "v.npy", "--backend", "onnx"], "belongs to --backend torch"),
    ],
)
def test_wrong_settings_are_one_line(model, corpus, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert run(encode.main, [*model[1], "--input", str(corpus[0]), *flags]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and words in told[0]


def test_search_prints_and_keeps_an_index(model, corpus, tmp_path, monkeypatch, capsys):
    encoder, flags = model
    path, lines = corpus
    index = tmp_path / "index"
    command = [*flags, "--corpus", str(path), "--save_index", str(index)]
    assert run(search.main, [*command, "--query", "the dog", "--top_k", "3"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "the dog" and printed[1].split(maxsplit=1) == ["1.000", "the dog"] and len(printed) == 5
    asked = ["--index", str(index), "--pooling", "mean", "--device", "cpu", "--format", "jsonl"]
    (tmp_path / "queries.txt").write_text("the dog\nred\n")
    assert run(search.main, [*asked, "--input", str(tmp_path / "queries.txt"), "--top_k", "2"]) == 0
    from_file = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    monkeypatch.setattr("sys.stdin", io.StringIO("the dog\n\nred\n"))
    assert run(search.main, [*asked, "--top_k", "2"]) == 0
    typed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    sentences, scores = (
        [[[hit[key] for hit in one["hits"]] for one in of] for of in (typed, from_file)]
        for key in ("sentence", "score")
    )
    assert sentences[0] == sentences[1] and [one["query"] for one in typed] == ["the dog", "red"]
    assert_near(*scores)  # alone and beside another sentence, rounded in another order
    encoder.build_index([line for line in lines if line])
    expected = encoder.search(["the dog", "red"], top_k=2, threshold=-1)
    found = [[hit["score"] for hit in entry["hits"]] for entry in from_file]
    assert_near(found, [[score for _, score in hits] for hits in expected])
    index.rename(tmp_path / ".index.old")  # as a kill in the middle of its replacement leaves it
    assert run(search.main, [*asked, "--query", "red", "--query", "blue", "--threshold", "1.1", "--json"]) == 0
    nothing = [{"query": "red", "hits": []}, {"query": "blue", "hits": []}]
    assert json.loads(capsys.readouterr().out) == {"results": nothing}


def test_search_over_encoded_vectors(model, corpus, tmp_path, capsys):
    _, flags = model
    path, _ = corpus
    vectors = tmp_path / "v.npy"
    assert run(encode.main, [*flags, "--input", str(path), "--output", str(vectors), "--precision", "binary"]) == 0
    command = ["--corpus", str(path), "--vectors", str(vectors), "--query", "the dog", "--top_k", "2"]
    capsys.readouterr()
    assert run(search.main, [*flags, *command]) == 0
    assert [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()[1:3]] == ["the dog"] * 2
    text = path.read_text()
    for changed, words in (
        (text + "one more\n", "33 of them, and the corpus has 34 rows"),
        (text.replace("the dog", "the cat"), "were made of another text"),
    ):
        path.write_text(changed)
        assert run(search.main, [*flags, *command]) == 2
        assert words in capsys.readouterr().err
    path.write_text(text)
    np.save(vectors, np.load(vectors)[::-1])
    assert run(search.main, [*flags, *command]) == 2
    assert "are not those that v.npy.json tells of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "either --corpus FILE or --index"),
        (["--corpus", "nothing.txt"], "needs the encoder"),
        (["--index", "nowhere"], "no index.json"),
        (["--index", "nowhere", "--top_k", "0"], "argument --top_k: is 0; it must be at least 1"),
        (["--index", "nowhere", "--batch_size", "x"], "argument --batch_size: invalid count value: 'x'"),
    ],
)
def test_search_refuses_in_one_line(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert run(search.main, flags) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_exported_graph_encodes(tiny_towers, tiny_tokenizer, tmp_path, capsys, kind):
    """float32: the folder's own vectors; int8: near them."""
    pytest.importorskip("onnxruntime" if kind == "onnx" else kind)
    from transformers import AutoModel

    from cacse_trainer.cli.encoders import GRAPHS
    from cacse_trainer.encoding.saving import clean_tokenizer
    from cacse_trainer.encoding.sentence_transformers import write_modules

    folder = tmp_path / "encoder"
    AutoModel.from_pretrained(tiny_towers("bert")[0]).save_pretrained(folder)
    clean_tokenizer(tiny_tokenizer).save_pretrained(folder)
    write_modules(folder, pooling="cls", hidden_size=32, max_seq_length=16)
    path = write_sentences(tmp_path / "corpus.txt", 20)
    command = ["--model", str(folder), "--input", str(path), "--disable_tqdm", "--output"]
    assert run(encode.main, [*command, str(tmp_path / "v.npy"), "--backend", kind]) == 2
    assert f"--format {kind}" in capsys.readouterr().err
    assert run(export.main, ["--folder", str(folder), "--format", kind]) == 0
    expected = SentenceEncoder(folder).encode(path.read_text().splitlines())
    for backend, nearest in ((kind, 0.99999), (f"{kind}_int8", 0.97)):
        assert run(encode.main, [*command, str(tmp_path / f"{backend}.npy"), "--backend", backend]) == 0
        assert (np.load(tmp_path / f"{backend}.npy") * expected).sum(axis=1).min() > nearest
    assert GRAPHS[kind](folder).similarity("red", "red") == pytest.approx(1, abs=noise(1.0))
