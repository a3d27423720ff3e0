"""`Encode` as engines call it; on a local Ray with a worker that is killed nothing is lost, and nothing there twice."""

import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli import encode
from cacse_trainer.cli.common import run
from cacse_trainer.data import sources
from cacse_trainer.encoding.vectors.precision import to_precision
from cacse_trainer.errors import UserError
from cacse_trainer.integrations import ray as on_ray
from cacse_trainer.integrations.ray import Encode
from tests.conftest import write_sentences
from tests.tolerances import assert_near


@pytest.fixture
def model(tiny_towers):
    return tiny_towers("bert")[0]


def test_batches_of_columns_and_frames(model):
    pandas = pytest.importorskip("pandas")
    texts = ["the dog", "a man", "the dog"]
    encoder = SentenceEncoder(model, "mean")
    given = {"pooling": "mean", "device": "cpu"}
    made = Encode(model, "body", precision="int8", **given)
    batch = {"id": np.arange(3), "body": np.array(texts, dtype=object)}
    found = made(batch)
    assert list(found) == ["id", "body", "embedding"]
    assert np.array_equal(found["embedding"], to_precision(encoder.encode(texts), "int8"))
    again = pickle.loads(pickle.dumps(Encode(model, "body", "vector", normalize=False, **given)))
    frames = [pandas.DataFrame(batch), pandas.DataFrame(batch).iloc[:0], pandas.DataFrame(batch).iloc[:1]]
    made_of = list(again.frames(frames))
    assert [list(frame.columns) for frame in made_of] == [["id", "body", "vector"]] * 3
    assert_near(np.stack(made_of[0]["vector"]), encoder.encode(texts, normalize=False))
    assert [len(frame) for frame in made_of] == [3, 0, 1]
    assert len(pickle.dumps(made)) < 1_000  # the weights stay where they are
    with pytest.raises(UserError, match="column 'text': the rows have id, body"):
        Encode(model, **given)(batch)
    with pytest.raises(UserError, match="precision"):
        Encode(model, precision="float64")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--engine", "ray", "--shard", "1/2"], "--engine ray: deals out the blocks by itself; leave out --shard"),
        (["--workers", "2"], "--workers: belongs to --engine ray"),
        (["--engine", "ray", "--overwrite"], "--overwrite: does nothing with --engine ray"),
        (["--engine", "ray", "--device", "cuda:0", "cuda:1"], "--engine ray starts an actor a device"),
    ],
)
def test_wrong_flags_are_one_line(model, tmp_path, capsys, more, words):
    path = write_sentences(tmp_path / "corpus.txt", 3)
    flags = ["--model", model, "--pooling", "mean", "--input", str(path), "--output", str(tmp_path / "v.npy")]
    assert run(encode.main, [*flags, *more]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_actors_find_the_model_from_any_folder_and_compute_alike(model, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(model).parent)
    encoder = SentenceEncoder(Path(model).name, "mean")
    recipe = encoder.recipe()
    monkeypatch.chdir(tmp_path)
    assert recipe(device="cpu").fingerprint() == encoder.fingerprint()
    with pytest.raises(UserError, match="each worker would measure and choose by itself"):
        Encode(model, compute="auto")


def test_ray_is_needed_for_nothing_else():
    words = "import sys, cacse_trainer.integrations.ray, cacse_trainer.cli.encode; assert 'ray' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0


def test_without_ray_it_is_one_line(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    path = write_sentences(tmp_path / "corpus.txt", 3)
    flags = ["--model", model, "--pooling", "mean", "--input", str(path), "--output", str(tmp_path / "v.npy")]
    assert run(encode.main, [*flags, "--engine", "ray"]) == 2
    assert "pip install 'cacse-trainer[ray]'" in capsys.readouterr().err


def test_the_handler_of_a_signal_is_not_left_to_ray(monkeypatch, tmp_path):
    def init(**given):
        signal.signal(signal.SIGTERM, lambda number, frame: None)  # as Ray does
        raise ConnectionError("nobody there")

    fake = types.SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setattr(on_ray, "load_ray", lambda: fake)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match="no cluster answers"):
        on_ray.encode_on_ray(None, None, tmp_path / "v.npy", {})
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default they wait for all others
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    ray, handler = on_ray.load_ray(), signal.getsignal(signal.SIGTERM)
    for attempt in range(3):
        try:
            ray.init(num_cpus=2, include_dashboard=False, object_store_memory=10**8, log_to_driver=False)
            break
        except Exception as error:  # its own limit of 30 s for a start, on a machine that does other things
            ray.shutdown()
            if attempt == 2:
                pytest.skip(f"Ray does not start here: {error}")
    yield ray
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)  # Ray puts one of its own there, in this process for good


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_doubles_nothing(cluster, model, tmp_path, monkeypatch, capsys):
    """Rows of a data set; blocks of a corpus, with the vectors of one process bit for bit."""
    killed = [tmp_path / "first", tmp_path / "second"]

    class Dying(Encode):
        def __call__(self, batch):
            found = super().__call__(batch)
            if 50 in batch["id"] and not killed[0].exists():
                killed[0].touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return found

    texts = [f"the dog {number}" for number in range(120)]
    rows = cluster.data.from_items([{"id": i, "text": text} for i, text in enumerate(texts)], override_num_blocks=6)
    how = {"fn_constructor_args": [model], "fn_constructor_kwargs": {"pooling": "mean", "device": "cpu"}}
    found = rows.map_batches(Dying, concurrency=2, batch_size=10, **how).take_all()
    assert killed[0].exists() and sorted(row["id"] for row in found) == list(range(120))
    table = np.stack([row["embedding"] for row in sorted(found, key=lambda row: row["id"])])
    assert_near(table, SentenceEncoder(model, "mean").encode(texts))

    class DyingBlocks(on_ray._EncodeBlocks):
        def __call__(self, batch):
            found = super().__call__(batch)
            if batch["block"][0] == 3 and not killed[1].exists():
                killed[1].touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return found

    monkeypatch.setattr(on_ray, "_EncodeBlocks", DyingBlocks)
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"the dog {number} " * 40 + "\n" for number in range(12_000)))
    assert path.stat().st_size > 5 * sources.BLOCK_BYTES
    flags = ["--model", model, "--pooling", "mean", "--input", str(path), "--device", "cpu", "--disable_tqdm"]
    flags += ["--max_seq_length", "8"]
    assert run(encode.main, [*flags, "--output", str(tmp_path / "r.npy"), "--engine", "ray", "--workers", "2"]) == 0
    assert killed[1].exists() and "12000 vectors of 32 dimensions, float32, in " in capsys.readouterr().out
    assert run(encode.main, [*flags, "--output", str(tmp_path / "s.npy"), "--shard", "1/1"]) == 0
    parts = json.loads((tmp_path / "r.npy.json").read_text())["parts"]
    assert len(parts) > 5 and sum(part["rows"] for part in parts) == 12_000
    for part in parts:
        assert (tmp_path / "r.npy" / part["file"]).read_bytes() == (tmp_path / "s.npy" / part["file"]).read_bytes()
