"""Pairs to be graded are spread over the cosines; every answer is on the disk, and a restart goes on."""

import doctest
import json

import numpy as np
import pytest

from cacse_trainer import load_pairs
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation import grading
from cacse_trainer.evaluation.grading import Grading, Pair, nearly_same, sample_pairs, some_sentences

PAIRS = [Pair("a cat", "a dog", 0.5), Pair("red house", "blue house", 0.75), Pair("rain", "snow", 0.25)]


def fan(count: int) -> tuple[list[str], np.ndarray]:
    """Sentences whose vectors are spread over a half circle, so that most cosines lie at its ends."""
    angles = np.linspace(0, np.pi, count)
    return [f"word{i} thing{i} number{i}" for i in range(count)], np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_pairs_are_spread_over_the_cosines():
    """As many from each tenth of the range, whatever the number of pairs in it; so is every beginning of them."""
    sentences, vectors = fan(120)
    pairs = sample_pairs(sentences, vectors, 60)
    cosines = np.array([pair.cosine for pair in pairs])
    counts, _ = np.histogram(cosines[cosines > -0.96], 5)
    assert len(pairs) == 60 and counts.min() >= 9 and cosines.max() < 0.99
    assert np.histogram(cosines[:20], 5, (-1, 1))[0].min() >= 2
    used = [sentence for pair in pairs for sentence in pair[:2]]
    assert max(used.count(sentence) for sentence in used) <= 3 and len({frozenset(pair[:2]) for pair in pairs}) == 60
    assert pairs == sample_pairs(sentences, vectors, 60) != sample_pairs(sentences, vectors, 60, seed=1)


def test_near_duplicates_are_no_pairs():
    sentences = ["The pump of the old house does not start.", "the pump of the old  house does not start.", "It rains."]
    vectors = np.array([[1, 0], [0.96, 0.28], [0, 1]])
    pairs = sample_pairs(sentences, vectors, 10)
    assert len(pairs) == 2 and all("It rains." in pair[:2] for pair in pairs)
    with pytest.raises(UserError, match="give more text"):
        sample_pairs(["a", "b"], np.array([[1.0, 0], [1, 0]]), 5)
    with pytest.raises(UserError, match="1 pairs to grade"):
        sample_pairs(["a", "b"], np.eye(2), 5)
    assert not nearly_same("the pump starts", "the pump does not start")


def test_sentences_are_distinct_and_drawn_from_all_of_the_text():
    assert some_sentences(["A  b", " ", "a b", "c\td"]) == ["a b", "c d"]
    drawn = some_sentences(map(str, range(1000)), most=100)
    assert len(drawn) == 100 and 300 < np.mean([int(one) for one in drawn]) < 700


def test_answers_are_on_the_disk_at_once_and_a_restart_goes_on(tmp_path):
    output = tmp_path / "mine.tsv"
    first = Grading.begin(output, PAIRS, {"model": "m"})
    first.grade(0, 4)
    first.skip(1)
    assert output.read_text() == "sentence1\tsentence2\tscore\na cat\ta dog\t4\n"
    second = Grading(output)
    assert second.current == 2 and second.counts == {"pairs": 3, "graded": 1, "skipped": 1, "left": 1}
    assert (
        second.undo() and second.current == 1 and json.loads((tmp_path / "mine.tsv.json").read_text())["skipped"] == []
    )
    second.grade(1, 0)
    second.grade(1, 2)  # replaced, as by a second click
    second.grade(2, 1)
    assert second.current is None and load_pairs(output)["score"] == [4.0, 2.0, 1.0]
    assert second.undo() and second.undo() and second.undo() and not second.undo()
    assert output.read_text() == "sentence1\tsentence2\tscore\n" and second.current == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.tsv", "mine.tsv.json"]


def test_what_a_person_writes_into_the_file_stays(tmp_path):
    output = tmp_path / "mine.tsv"
    Grading.begin(output, PAIRS).grade(0, 4)
    output.write_text("sentence1\tsentence2\tscore\na cat\ta dog\t4.5\nmy own\tpair\t3\n")
    again = Grading(output)
    again.grade(1, 0)
    assert output.read_text().splitlines()[1:] == ["a cat\ta dog\t4.5", "my own\tpair\t3", "red house\tblue house\t0"]


def test_wrong_files_are_told(tmp_path):
    output = tmp_path / "mine.tsv"
    with pytest.raises(UserError, match="ends in"):
        Grading.begin(tmp_path / "mine.csv", PAIRS)
    Grading.begin(output, PAIRS)
    with pytest.raises(UserError, match="is there already"):
        Grading.begin(output, PAIRS)
    output.write_text("a\tb\n")
    with pytest.raises(UserError, match="its first line"):
        Grading(output)
    output.write_text("sentence1\tsentence2\tscore\na\tb\n")
    with pytest.raises(UserError, match="line 2: 2 fields"):
        Grading(output)
    (tmp_path / "mine.tsv.json").write_text('{"pairs": [["a", 3, 0.5]], "skipped": []}')
    with pytest.raises(UserError, match="is damaged"):
        Grading(output)


def test_examples():
    found = doctest.testmod(grading)
    assert found.attempted > 0 and found.failed == 0
