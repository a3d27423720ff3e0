import math

import numpy as np
import pytest
import torch

from cacse_trainer.data.retrieval import RetrievalSet
from cacse_trainer.encoding.embedder import Embedder
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation import retrieval
from cacse_trainer.evaluation.dev_sets import Answers, GradedPairs, Retrieval, as_dev_set
from cacse_trainer.evaluation.retrieval import (
    METRICS,
    bm25_results,
    ranks_of_relevant,
    retrieval_metrics,
    score_vectors,
)

SET = RetrievalSet(
    ["a man plays music", "rain in the city", "unheard"],
    ["a man is playing a guitar", "it rains in the city", "the dog runs", "a man sleeps", "music"],
    [{0: 2.0, 4: 1.0}, {1: 1.0}, {2: 1.0}],
)


def brute_force(scores, graded):
    """The metrics of one query, by sorting all documents."""
    order = sorted(range(len(scores)), key=lambda d: (-scores[d], graded.get(d, 0)))
    gains = [graded.get(d, 0) / math.log2(rank + 2) for rank, d in enumerate(order)]
    ideal = [g / math.log2(rank + 2) for rank, g in enumerate(sorted(graded.values(), reverse=True))]
    hits = [rank for rank, d in enumerate(order) if d in graded]
    return {
        "ndcg@10": sum(gains[:10]) / sum(ideal[:10]),
        "mrr@10": 1 / (hits[0] + 1) if hits[0] < 10 else 0,
        "recall@1": sum(rank < 1 for rank in hits) / len(graded),
        "recall@100": sum(rank < 100 for rank in hits) / len(graded),
    }


def test_by_hand():
    # ranks 2 and 4 of grades 1 and 3: (1/log2 3 + 3/log2 5) / (3 + 1/log2 3)
    ranks = ranks_of_relevant(np.array([0.9, 0.8, 0.7, 0.6]), {1: 1.0, 3: 3.0})
    assert ranks.tolist() == [2, 4]
    found = retrieval_metrics([ranks], [{1: 1.0, 3: 3.0}])
    assert found["ndcg@10"][0] == pytest.approx((1 / math.log2(3) + 3 / math.log2(5)) / (3 + 1 / math.log2(3)))
    assert [found[name][0] for name in METRICS[1:]] == [0.5, 0.0, 1.0]


@pytest.mark.parametrize("levels", [4, 10_000])
def test_equals_brute_force(levels):
    """Few levels make many ties."""
    random = np.random.default_rng(levels)
    for _ in range(40):
        scores = random.integers(levels, size=300) / levels
        chosen = random.choice(300, size=random.integers(1, 15), replace=False)
        graded = {int(d): float(g) for d, g in zip(chosen, random.integers(1, 4, size=len(chosen)), strict=True)}
        found = retrieval_metrics([ranks_of_relevant(scores, graded)], [graded])
        assert {name: values[0] for name, values in found.items()} == pytest.approx(brute_force(scores, graded))


def test_blocks_and_ties_of_vectors(monkeypatch):
    random = np.random.default_rng(0)
    queries, documents = (random.normal(size=(n, 8)).astype(np.float32) for n in (30, 200))
    relevant = [{i: 1.0, 5 * i + 1: 2.0} for i in range(30)]
    whole = score_vectors(queries, documents, relevant)
    monkeypatch.setattr(retrieval, "SCORES_AT_ONCE", 450)  # two queries at once
    for name, values in score_vectors(queries, documents, relevant).items():
        assert values.tolist() == whole[name].tolist()
    constant = score_vectors(np.ones((30, 7)), np.ones((200, 7), np.float32) * np.float32(1 / 3), relevant)
    assert constant["ndcg@10"].max() == constant["recall@100"].max() == 0
    queries[3, 2] = np.nan
    assert np.isnan(score_vectors(queries, documents, relevant)["ndcg@10"]).all()


def test_bm25():
    pytest.importorskip("bm25s")
    found = bm25_results(SET)
    assert found["ndcg@10"][0] == pytest.approx((1 + 2 / math.log2(4)) / (2 + 1 / math.log2(3)))  # the shorter first
    assert found["mrr@10"].tolist() == [1.0, 1.0, 0.2]  # nothing in common: all are equal, the relevant one is last
    chinese = RetrievalSet(["红狐狸"], ["一只狗在跑", "一只红色的狐狸"], [{1: 1.0}])
    assert bm25_results(chinese)["mrr@10"].tolist() == [1.0]


def test_bm25_is_an_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(UserError, match=r"pip install 'cacse-trainer\[adapt\]"):
        bm25_results(SET)


def tiny_embedder(tiny_towers, tiny_tokenizer, **more):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_towers("bert")[0]).eval()

    def embed(**inputs):
        return model(**inputs).last_hidden_state[:, 0]

    return Embedder(embed, tiny_tokenizer, 32, "cpu", **more)


def test_dev_set(tiny_towers, tiny_tokenizer):
    dev_set = as_dev_set(SET)
    assert isinstance(dev_set, Retrieval)
    assert as_dev_set(dev_set) is dev_set
    embedder = tiny_embedder(tiny_towers, tiny_tokenizer)
    answers, scores = dev_set.read(embedder), dev_set.scores(embedder)
    assert answers.scores == {name: scores[name] for name in METRICS}
    assert scores["ndcg@10"] == pytest.approx(100 * answers.values.mean())
    prompted = tiny_embedder(tiny_towers, tiny_tokenizer, query_prompt="the dog ", document_prompt="music ")
    by_hand = score_vectors(
        embedder.vectors(["the dog " + query for query in SET.queries]),
        embedder.vectors(["music " + document for document in SET.documents]),
        SET.relevant,
    )
    assert dev_set.read(prompted).values.tolist() == by_hand["ndcg@10"].tolist()


def test_difference():
    first, second = (Answers(np.array(values), {}) for values in ([0.1, 0.5] * 50, [0.2, 0.6] * 50))
    found = Retrieval(SET).difference("docs", first, second)
    assert (found.first, found.second, found.is_clear) == (pytest.approx(30), pytest.approx(40), True)
    assert found.low == pytest.approx(10)
    assert found.high == pytest.approx(10)
    assert Retrieval(SET).difference("docs", first, first).is_clear is False


def test_graded_pairs(tiny_towers, tiny_tokenizer):
    from datasets import Dataset

    pairs = Dataset.from_dict(
        {"sentence1": ["the dog runs", "rain", "a man"], "sentence2": ["a dog", "music", "a man sleeps"]}
        | {"score": [4.0, 0.5, 3.0]}
    )
    dev_set, embedder = as_dev_set(pairs), tiny_embedder(tiny_towers, tiny_tokenizer)
    assert isinstance(dev_set, GradedPairs)
    answers, scores = dev_set.read(embedder), dev_set.scores(embedder)
    assert answers.scores == pytest.approx({name: scores[name] for name in ("spearman", "pearson")})
    assert dev_set.difference("sts", answers, answers).difference == 0


def test_equals_sentence_transformers(tiny_towers, tiny_tokenizer, tmp_path):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    from cacse_trainer.encoding.encoder import SentenceEncoder
    from cacse_trainer.encoding.sentence_transformers import write_modules

    try:
        from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    except ImportError:
        from sentence_transformers.evaluation import InformationRetrievalEvaluator

    model = AutoModel.from_pretrained(tiny_towers("bert")[0])
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    write_modules(tmp_path, pooling="mean", hidden_size=model.config.hidden_size, max_seq_length=32)
    words = [word for word in tiny_tokenizer.get_vocab() if word.isalpha()]
    random = np.random.default_rng(3)
    texts = list(dict.fromkeys(" ".join(random.choice(words, size=random.integers(2, 9))) for _ in range(160)))
    queries, documents = texts[:20], texts[20:]
    relevant = [dict.fromkeys(random.choice(len(documents), size=n % 3 + 1).tolist(), 1.0) for n in range(20)]
    answers = Retrieval(RetrievalSet(queries, documents, relevant)).read(
        SentenceEncoder(tmp_path, device="cpu").embedder
    )
    evaluator = InformationRetrievalEvaluator(
        {str(i): query for i, query in enumerate(queries)},
        {str(i): document for i, document in enumerate(documents)},
        {str(i): {str(d) for d in graded} for i, graded in enumerate(relevant)},
        precision_recall_at_k=[1, 100],
        ndcg_at_k=[10],
        mrr_at_k=[10],
    )
    with torch.no_grad():
        theirs = evaluator(SentenceTransformer(str(tmp_path), device="cpu"))
    for name in METRICS:
        assert answers.scores[name] == pytest.approx(100 * theirs[f"cosine_{name}"]), name
