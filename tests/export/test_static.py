"""A static table: the formula by hand, and the libraries that load the folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli import encode, export_static, search
from cacse_trainer.cli.common import run
from cacse_trainer.encoding.members import load_members
from cacse_trainer.encoding.sentence_transformers import write_modules
from cacse_trainer.encoding.vectors.precision import normalized
from cacse_trainer.errors import UserError
from cacse_trainer.export import static
from cacse_trainer.export.graphs import read_pooling
from cacse_trainer.models.pretrained import load_config
from tests.conftest import WORDS
from tests.tolerances import assert_near

SENTENCES = ["a man is playing", "The  DOG", "", "a red house, with a zebra", "the cat and the dog are not in the park"]


@pytest.fixture(scope="module")
def encoder(tiny_towers) -> SentenceEncoder:
    return SentenceEncoder(tiny_towers("bert")[0], "cls", "cpu")


@pytest.fixture(scope="module")
def table(encoder, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("static") / "table"
    static.export_static(encoder, folder, dims=8)
    return str(folder)


def by_hand(encoder, dims: int, shares: np.ndarray, sif: float) -> dict[str, np.ndarray]:
    """The rows of the words: each through the model between its special tokens, PCA by SVD, weights."""
    model, tokenizer = AutoModel.from_pretrained(encoder.name).eval(), AutoTokenizer.from_pretrained(encoder.name)
    with torch.inference_mode():
        states = [model(**tokenizer(word, return_tensors="pt")).last_hidden_state[0, 0] for word in WORDS]
    vectors = torch.stack(states).double().numpy()
    centred = vectors - vectors.mean(axis=0)
    found = centred @ np.linalg.svd(centred)[2][:dims].T
    found = found * np.sign(found[np.abs(found).argmax(axis=0), range(dims)])
    return dict(zip(WORDS, found * (sif / (sif + shares))[:, None], strict=True))


def rows_of(folder, words=WORDS) -> dict[str, np.ndarray]:
    encoder = SentenceEncoder(folder, device="cpu")
    return dict(zip(words, encoder.vectors(list(words)), strict=True))


def test_the_formula_by_hand(encoder, table):
    rank = 1 / (np.arange(len(WORDS)) + 2)
    expected, found = by_hand(encoder, 8, rank / rank.sum(), 1e-4), rows_of(table)
    for word in WORDS:
        assert np.allclose(found[word], expected[word], atol=1e-7, rtol=1e-3)
    mean = SentenceEncoder(table, device="cpu").vectors(["the dog dog"])[0]
    assert np.allclose(mean, (found["the"] + 2 * found["dog"]) / 3, atol=1e-8)


def test_weights_of_a_text(encoder, tmp_path):
    text = ["the dog and the cat", "the man"]
    static.export_static(encoder, tmp_path / "table", dims=8, text=text, sif=0.01)
    counts = np.array([" ".join(text).split().count(word) for word in WORDS])
    expected, found = by_hand(encoder, 8, counts / counts.sum(), 0.01), rows_of(tmp_path / "table")
    for word in WORDS:
        assert np.allclose(found[word], expected[word], atol=1e-5, rtol=1e-3)
    assert np.linalg.norm(found["the"]) < 0.1 * np.linalg.norm(found["flute"])


def test_words_of_a_text_have_rows_of_their_own(tmp_path, tiny_towers):
    """A word that the tokenizer cuts is found whole, and only where it stands by itself."""
    source = AutoTokenizer.from_pretrained(tiny_towers("bert")[0])
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[:-1], "##dog"]) + "\n")
    tokenizer = type(source)(vocab=str(vocabulary), model_max_length=64)
    AutoModel.from_pretrained(tiny_towers("bert")[0]).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    encoder = SentenceEncoder(tmp_path / "start", "mean", "cpu")
    text = ["the Reddog is in the park", "a reddog, a catdog and the reddog", "a catdog a bigdog"]
    report = static.export_static(encoder, tmp_path / "table", dims=32, text=text, words=2)
    assert report["words"] == 2 and report["vocabulary"] == len(WORDS) + 2
    made = SentenceEncoder(tmp_path / "table", device="cpu")
    ids = made.tokenizer(["RedDog, catdog", "reddogdog bigdog"])["input_ids"]
    known = len(tokenizer)
    assert [i for i in ids[0] if i >= known] == [known, known + 1] and max(ids[1]) < known


def test_the_libraries_load_the_folder(table):
    """The same directions as `SentenceEncoder`; what the tokenizer does not know says nothing in each of them."""
    library, model2vec = pytest.importorskip("sentence_transformers"), pytest.importorskip("model2vec")
    found = SentenceEncoder(table, device="cpu").encode(SENTENCES)
    theirs = library.SentenceTransformer(table, device="cpu").encode(SENTENCES)
    assert_near(normalized(theirs), found)
    assert_near(normalized(model2vec.StaticModel.from_pretrained(table).encode(SENTENCES)), found)


@pytest.mark.parametrize("saved_by", ["sentence_transformers", "model2vec"])
def test_their_folders_load_here(table, tmp_path, saved_by):
    library = pytest.importorskip(saved_by)
    if saved_by == "model2vec":
        model = library.StaticModel.from_pretrained(table)
        model.normalize = True
        model.save_pretrained(tmp_path)
    else:
        model = library.SentenceTransformer(table, device="cpu")
        model.save(str(tmp_path))
    made = SentenceEncoder(tmp_path, device="cpu")
    assert_near(made.encode(SENTENCES), SentenceEncoder(table, device="cpu").encode(SENTENCES))
    assert made.normalizes == (saved_by == "model2vec")


def test_every_command_takes_the_folder(table, tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text("the dog\na red house\na man is playing\n")
    given = ["--model", table, "--device", "cpu", "--disable_tqdm"]
    output = tmp_path / "v.npy"
    assert run(encode.main, [*given, "--input", str(tmp_path / "corpus.txt"), "--output", str(output)]) == 0
    assert np.load(output).shape == (3, 8)
    index = str(tmp_path / "index")
    assert run(search.main, [*given, "--corpus", str(tmp_path / "corpus.txt"), "--save_index", index]) == 0
    assert run(search.main, ["--index", index, "--query", "red house", "--top_k", "1"]) == 0
    assert "a red house" in capsys.readouterr().out.split("\n")[-3]


def test_the_command(encoder, tmp_path, capsys):
    output = tmp_path / "table"
    flags = ["--model", encoder.name, "--pooling", "cls", "--output_dir", str(output), "--dims", "8", "--disable_tqdm"]
    assert run(export_static.main, [*flags, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["vocabulary"], report["dims"], report["words"]) == (len(WORDS), 8, 0)
    assert 0.5 < report["explained_variance"] <= 1
    assert run(export_static.main, flags) == 0  # one of its own is replaced
    assert f"{output}: {len(WORDS)} tokens" in capsys.readouterr().out
    (output / "mine.txt").write_text("kept")
    assert run(export_static.main, flags) == 2 and "did not write mine.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dims": 0}, "dims 0"),
        ({"sif": 1.0}, "between 0 and 1"),
        ({"words": 3}, "give one"),
        ({"text": [""]}, "no token"),
    ],
)
def test_wrong_settings_are_told(encoder, tmp_path, wrong, message):
    with pytest.raises(UserError, match=message):
        static.export_static(encoder, tmp_path / "table", **wrong)
    assert not (tmp_path / "table").exists()


def test_a_table_does_not_replace_its_own_encoder(tmp_path, tiny_towers):
    folder = tmp_path / "above" / "encoder"
    shutil.copytree(tiny_towers("bert")[0], folder)
    for place in (folder, folder.parent):
        with pytest.raises(UserError, match="holds the model itself"):
            static.export_static(SentenceEncoder(folder, pooling="mean"), place)
    assert (folder / "config.json").is_file()


def test_lower_casing_outside_of_the_tokenizer_is_refused(tiny_towers, tmp_path):
    folder = tiny_towers("bert")[0]
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    write_modules(tmp_path, pooling="cls", hidden_size=32, max_seq_length=32)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 32, "do_lower_case": true}')
    with pytest.raises(UserError, match="do_lower_case"):
        static.export_static(SentenceEncoder(tmp_path, device="cpu"), tmp_path / "table")


def test_what_a_table_has_not_is_told(table):
    with pytest.raises(UserError, match="static table, which takes no pooling"):
        SentenceEncoder(table, "mean")
    with pytest.raises(UserError, match="has no place in a sum"):
        load_members(table)
    with pytest.raises(UserError, match="has no transformer"):
        load_config(table)
    with pytest.raises(UserError, match="no exported encoder folder"):
        read_pooling(Path(table))


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file(encoder, tmp_path, missing):
    static.export_static(encoder, tmp_path / "table", dims=4)
    (tmp_path / "table" / missing).write_bytes(b"")
    with pytest.raises(UserError, match=f"{missing}.*is empty"):
        SentenceEncoder(tmp_path / "table")
    (tmp_path / "table" / missing).unlink()
    with pytest.raises(UserError, match=f"no {missing}"):
        SentenceEncoder(tmp_path / "table")
