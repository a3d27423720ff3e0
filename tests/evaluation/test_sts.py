"""Scoring graded pairs: known figures of a real model, order, truncation, the health figures by hand."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from cacse_trainer.data import load_pairs
from cacse_trainer.encoding.embedder import Embedder, length_limit, token_budget_batches
from cacse_trainer.evaluation.health import alignment, average_cosine, dead_dimensions, uniformity
from cacse_trainer.evaluation.sts import SpearmanMetric, score_pairs


def test_minilm_on_sts_b_dev(minilm, shared_data):
    """CLS pooling of all-MiniLM-L6-v2 scores 79.73 on STS-B dev."""
    model, tokenizer = AutoModel.from_pretrained(minilm).eval(), AutoTokenizer.from_pretrained(minilm)
    pairs = load_pairs(shared_data / "senteval/downstream/STS/STSBenchmark/sts-dev.csv")
    scores = score_pairs(Embedder(lambda **x: model(**x).last_hidden_state[:, 0], tokenizer, 512, "cpu"), pairs)
    assert scores["spearman"] == pytest.approx(79.73, abs=0.02)
    assert len(pairs) == 1500


def bag_of_ids(input_ids, attention_mask, token_type_ids=None):
    """A stand-in for an encoder: the sum and the number of the real tokens' ids."""
    real = input_ids * attention_mask
    return torch.stack([real.sum(1), attention_mask.sum(1)], dim=1)


def test_each_distinct_sentence_once_and_in_order(tiny_tokenizer):
    seen = []

    def embed(**inputs):
        seen.append(inputs["input_ids"].shape)
        return bag_of_ids(**inputs)

    sentences = ["a man", "the dog is running in the park", "", "a man", "red"] * 3
    vectors = Embedder(embed, tiny_tokenizer, 6, "cpu", tokens_per_batch=12).vectors(sentences)
    assert sum(shape[0] for shape in seen) == 4
    assert all(shape[0] * shape[1] <= 12 for shape in seen)
    for sentence, vector in zip(sentences, vectors, strict=True):
        ids = tiny_tokenizer(sentence, truncation=True, max_length=6)["input_ids"]
        assert vector.tolist() == [sum(ids), len(ids)]
    assert vectors.dtype == np.float32


def test_token_budget():
    batches = [batch.tolist() for batch in token_budget_batches([3, 9, 2, 20, 1], 10)]
    assert batches == [[3], [1], [0, 2, 4]]  # 20 alone, 9 alone, then 3 rows of 3


def test_length_limits(tiny_towers, tiny_tokenizer):
    bert, roberta = (AutoModel.from_pretrained(tiny_towers(kind)[0]).config for kind in ("bert", "roberta"))
    assert length_limit(tiny_tokenizer, bert) == 64
    assert length_limit(tiny_tokenizer, roberta) == 63  # positions start behind padding_idx 0


def test_metric_without_the_hub():
    metric = SpearmanMetric(keep_in_memory=True)
    assert metric.compute(predictions=[1, 2, 3, 4], references=[1, 2, 4, 3])["spearman"] == pytest.approx(0.8)
    assert math.isnan(
        SpearmanMetric(keep_in_memory=True).compute(predictions=[1, 1, 1], references=[1, 2, 3])["spearman"]
    )
    undefined = SpearmanMetric(keep_in_memory=True).compute(predictions=[float("nan"), 1, 2], references=[1, 2, 3])
    assert math.isnan(undefined["pearson"])


def test_health_by_hand():
    x = np.eye(2)
    assert alignment(x, x[::-1]) == pytest.approx(2.0)  # orthogonal unit vectors are √2 apart
    assert uniformity(x) == pytest.approx(-4.0)  # log exp(-2·2)
    assert average_cosine(np.array([[1.0, 0], [0, 2], [1, 1]])) == pytest.approx((0 + 2 * 0.5**0.5) / 3)
    assert dead_dimensions(np.array([[1.0, 5, 0], [2, 5, 1], [3, 5, 2]])) == 1
    assert dead_dimensions(np.ones((3, 4))) == 4
    assert math.isnan(alignment(x[:0], x[:0])) and math.isnan(uniformity(x[:1])) and math.isnan(average_cosine(x[:1]))
