"""Makes ``senteval`` importable from a checkout, and the fixtures of its tests."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _make_importable() -> None:
    spec = importlib.util.find_spec("senteval")
    if spec is None or spec.origin is None:  # absent, or this very folder taken for a namespace package
        sys.modules.pop("senteval", None)
        sys.path.insert(0, str(ROOT / "SentEval"))


_make_importable()

from senteval_samples import embed, write_all  # noqa: E402  (its writers read senteval's tables)


@pytest.fixture
def batcher():
    """The encoder as a SentEval batcher."""
    return lambda params, batch: embed(batch)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory) -> Path:
    """A data folder with every task's files."""
    return write_all(tmp_path_factory.mktemp("data"))
