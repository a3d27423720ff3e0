"""What people have from an earlier version: it loads, goes on to the same numbers and gives the same vectors.

The files are those of tests/fixtures/older_files.tar.xz, which the script beside them made with version 0.1.0.
"""

import json
import math
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli.main import main
from tests.fixtures.make_older_files import (
    ARCHIVE,
    ENCODE,
    EXPORTS,
    INDEX,
    PIPELINE,
    PLACE,
    RESUMED,
    SENTENCES,
    SWEEP,
    command_of,
    numbers,
)
from tests.tolerances import noise

FOLDERS = {name: f"finished/{name}/export/{export}" for name, export in EXPORTS.items()} | {
    "ensemble": "ensemble/ensemble"
}


MASKED = ("simcse", "diffcse")
"""Those whose masks were drawn from torch's random state: they go on, with other masks."""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The archive's folder, with its place filled in."""
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*.json"):
        if PLACE in (text := path.read_text()):
            path.write_text(text.replace(PLACE, str(folder)))
    return folder


@pytest.fixture(autouse=True)
def older(unpacked, monkeypatch) -> Path:
    """The same, as the current folder: the recorded commands name relative paths."""
    monkeypatch.chdir(unpacked)
    return unpacked


@pytest.fixture
def vectors(older) -> dict[str, np.ndarray]:
    """Those of `SENTENCES` that each export gave."""
    with np.load(older / "expected.npz") as stored:
        return dict(stored)


def check(path: str, expected: np.ndarray) -> None:
    found = SentenceEncoder(path, device="cpu").encode(SENTENCES, normalize=False)
    assert np.abs(found - expected).max() <= noise(expected)


@pytest.mark.parametrize("name", FOLDERS)
def test_exports_give_the_same_vectors(name, vectors):
    """Through `SentenceEncoder`, and through sentence-transformers, whose files the folder brings."""
    check(FOLDERS[name], vectors[name])
    library = pytest.importorskip("sentence_transformers")
    loaded = library.SentenceTransformer(FOLDERS[name], device="cpu", trust_remote_code=name == "ensemble")
    assert np.abs(loaded.encode(SENTENCES) - vectors[name]).max() <= noise(vectors[name])


@pytest.mark.parametrize("path", ["finished/cacse", "finished/cacse/checkpoint-2"])
def test_runs_and_checkpoints_export_anew(path, vectors, tmp_path):
    assert main(["export", "--checkpoint", path, "--output_dir", str(tmp_path)]) == 0
    check(str(tmp_path / "ensemble"), vectors["cacse"])


def test_a_run_of_an_adapter_is_an_encoder(vectors):
    check("finished/decoder", vectors["decoder"])


@pytest.mark.parametrize("name", RESUMED)
def test_an_interrupted_run_goes_on_to_the_same_numbers(name, older, tmp_path):
    """From step 2 to step 4: weights, optimiser, data order and random state are those of then.

    A score is made of ranks and has no noise; a loss of a temperature τ = 0.05 has 1/τ times that of its cosines, and
    Adam's step, which divides by the gradient's size, moves no parameter by more than it would have moved.
    """
    if not torch.backends.mkl.is_available():
        pytest.skip("the files were made with MKL's random numbers, of which torch makes attention's dropout")
    cache = {path.name: path.read_bytes() for path in (older / "cache").iterdir()}
    folder = tmp_path / "run"
    shutil.copytree(older / "interrupted" / name, folder)
    assert main([*command_of(name, str(folder)), "--resume_from_checkpoint", "last"]) == 0
    found, expected = numbers(folder), json.loads((older / "expected.json").read_text())[name]
    assert found.keys() == expected.keys()
    for step, values in expected.items():
        assert found[step].keys() == values.keys() and all(map(math.isfinite, found[step].values()))
        for key, value in values.items() if name not in MASKED else ():
            bound = 1e-9 if "spearman" in key else noise(max(1.0, abs(value))) / 0.05
            assert found[step][key] == pytest.approx(value, abs=bound), (step, key)
    assert {path.name: path.read_bytes() for path in (older / "cache").iterdir()} == cache  # read, and not made anew


def test_a_finished_run_is_known_as_one(capsys):
    assert main(command_of("cacse", "finished/cacse")) == 2
    assert "holds a finished run" in capsys.readouterr().err


def test_indexes_and_vectors(older, capsys):
    """An index finds its encoder and every sentence; encoded vectors are searched as they are, or made again."""
    text = (older / "inputs" / "text.txt").read_text().splitlines()
    for flags in (["search", "--index", "index"], [*INDEX, "--vectors", "vectors.npy"]):
        assert main([*flags, "--query", text[5], "--top_k", "1", "--json"]) == 0
        (hit,) = json.loads(capsys.readouterr().out)["results"][0]["hits"]
        assert hit["sentence"] == text[5] and hit["score"] == pytest.approx(1, abs=1e-6 + noise(1.0))
    assert main([*ENCODE, "--output", "again.npy"]) == 0
    expected = np.load("vectors.npy")
    assert np.abs(np.load("again.npy") - expected).max() <= noise(expected)
    again, before = (json.loads(Path(f"{name}.npy.json").read_text()) for name in ("again", "vectors"))
    assert again.items() >= before.items() and again.keys() - before.keys() == {"rows_sha256", "crc32"}


@pytest.mark.parametrize(("command", "record"), [(PIPELINE, "pipeline/pipeline.json"), (SWEEP, "sweep/sweep.json")])
def test_finished_stages_and_runs_are_skipped(command, record, older, capfd):
    before = (older / record).read_text()
    assert main([*command, "--plan"]) == 0
    assert all("skip" in line.split()[:2] for line in capfd.readouterr().out.splitlines())
    assert main(command) == 0
    assert (older / record).read_text() == before
