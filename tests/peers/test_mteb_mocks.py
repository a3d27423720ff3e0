"""mteb's own mock tasks, one of each kind for text, through the adapter and into the results."""

import math

import pytest

from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.evaluation.results import ResultStore

mocks = pytest.importorskip("mteb.mocks")


@pytest.mark.slow
def test_every_kind_of_task(tiny_towers, tmp_path):
    from cacse_trainer.evaluation.mteb_adapter import run_mteb

    encoder = SentenceEncoder(tiny_towers("bert")[0], "mean", device="cpu")
    kept = ResultStore(tmp_path, model=encoder.name, pooling=encoder.pooling, settings={})
    tasks = mocks.MOCK_TASK_TEST_GRID
    run_mteb(encoder, tasks, kept, progress=False)
    assert kept.mteb.keys() == {task.metadata.name for task in tasks} and len(tasks) > 20
    assert all(math.isfinite(entry["main_score"]) for entry in kept.mteb.values())
