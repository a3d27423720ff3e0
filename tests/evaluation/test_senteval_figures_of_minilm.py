"""The known figures of all-MiniLM-L6-v2, through the whole road that `evaluate` takes."""

import pytest
import torch

from cacse_trainer.encoding.encoder import SentenceEncoder
from cacse_trainer.evaluation.results import ResultStore
from cacse_trainer.evaluation.senteval_suite import Scoring, run_tasks

STS = ["STS12", "STS13", "STSBenchmark"]
KNOWN = {
    "mean": {"STS12": 72.36, "STS13": 80.60, "test": 82.03, "dev": 86.72},
    "cls": {"STS12": 75.06, "STS13": 76.45, "test": 73.50, "dev": 79.73},
}


def tasks_of(encoder: SentenceEncoder, names, data, folder) -> dict:
    store = ResultStore(folder, model=encoder.name, pooling=encoder.pooling, settings={})
    run_tasks(encoder, names, data / "senteval", store, Scoring(), progress=False)
    return store.tasks


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_similarity(minilm, shared_data, tmp_path, pooling):
    tasks = tasks_of(SentenceEncoder(minilm, pooling, "cpu"), STS, shared_data, tmp_path)
    parts = tasks["STSBenchmark"]["subsets"]
    found = {name: tasks[name]["spearman"] for name in STS[:2]}
    found.update({part: parts[part]["spearman"] for part in ("test", "dev")})
    assert found == pytest.approx(KNOWN[pooling], abs=0.02)


@pytest.mark.slow
def test_transfer(minilm, shared_data, tmp_path):
    """On vectors that are not scaled to length 1, as the original toolkit's figures are."""
    tasks = tasks_of(SentenceEncoder(minilm, device="cpu"), ["MR", "TREC", "MRPC"], shared_data, tmp_path)
    assert tasks["MR"]["acc"] == pytest.approx(76.34, abs=0.5)
    assert tasks["TREC"]["acc"] == pytest.approx(90.0, abs=1.2)
    assert tasks["MRPC"]["acc"] == pytest.approx(72.35, abs=1.2)


@pytest.mark.slow
def test_bf16_loses_little(minilm, shared_data, tmp_path):
    encoder = SentenceEncoder(minilm, device="cpu", dtype=torch.bfloat16)
    assert tasks_of(encoder, ["STS13"], shared_data, tmp_path)["STS13"]["spearman"] == pytest.approx(80.60, abs=0.05)
