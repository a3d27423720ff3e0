"""Batches of neighbours: the same rows in another order, near ones together, those of one document apart."""

from collections import Counter

import numpy as np

from cacse_trainer.adaptation.neighbours import beside_neighbours
from cacse_trainer.data.structure import OWN, Row, apart


def topics(count: int, documents_each: int = 1) -> list[Row]:
    """Rows of five topics by turns, the topic's number in the anchor."""
    return [Row(f"{i % 5} {i}", f"text {i}", "title", i // documents_each) for i in range(count)]


def by_topic(texts):
    """Vectors with a direction for each topic, and a length and a bit of noise of their own."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=(len(texts), 5))
    return (1 + np.arange(len(texts)))[:, None] * (np.eye(5)[[int(text[0]) for text in texts]] + noise)


def test_near_rows_stand_together_and_none_is_lost():
    rows = topics(200)
    found = beside_neighbours(rows, 8, by_topic, seed=1)
    assert Counter(found) == Counter(rows) and found != rows
    groups = [found[start : start + 8] for start in range(0, 200, 8)]
    assert all(len({row.anchor[0] for row in group}) == 1 for group in groups)
    order = [group[0].anchor[0] for group in groups]
    assert order != sorted(order)  # the groups are shuffled
    assert found == beside_neighbours(rows, 8, by_topic, seed=1) != beside_neighbours(rows, 8, by_topic, seed=2)


def test_rows_of_one_document_are_no_neighbours():
    rows = topics(60, documents_each=10)
    found = beside_neighbours(rows, 4, by_topic, seed=1)
    assert Counter(found) == Counter(rows)
    batches = [apart(found, 4)[start : start + 4] for start in range(0, 60, 4)]
    assert all(len({row.document for row in batch}) == len(batch) for batch in batches[:10])


def test_own_pairs_have_no_document_and_may_be_neighbours():
    rows = [Row(f"{i % 2} {i}", f"text {i}", "pairs", OWN) for i in range(16)]
    found = beside_neighbours(rows, 8, by_topic, seed=0)
    assert {len({row.anchor[0] for row in found[start : start + 8]}) for start in (0, 8)} == {1}


def test_an_anchor_with_several_answers_is_not_beside_itself():
    rows = [Row(f"{i % 2} question", f"text {i}", "pairs", OWN) for i in range(16)]
    found = beside_neighbours(rows, 8, by_topic, seed=0)
    assert Counter(found) == Counter(rows)
    assert [row.anchor for row in found[:2]] in (["0 question", "1 question"], ["1 question", "0 question"])


def test_one_row_and_size_one_are_left_as_they_are():
    assert beside_neighbours(topics(1), 16, by_topic, seed=0) == topics(1)
    assert beside_neighbours(topics(9), 1, by_topic, seed=0) == topics(9)
    assert beside_neighbours([], 16, by_topic, seed=0) == []
