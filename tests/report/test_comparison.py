"""Runs in one page: paired intervals where both keep their answers, curves overlaid, settings that differ."""

import doctest
import json

import numpy as np
import pytest

from cacse_trainer.cli import report as command
from cacse_trainer.cli.common import run
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.answers import ANSWERS, paired_differences, read_answers, write_answers
from cacse_trainer.evaluation.compare import difference_of
from cacse_trainer.evaluation.dev_sets import Answers, as_dev_set
from cacse_trainer.evaluation.moved import most_moved, sample
from cacse_trainer.report import comparison, line_chart
from cacse_trainer.report.comparison import differing, overlaid
from tests.report.test_report import a_report, check_page

GOLD = np.arange(40.0)


def a_run(folder, noise: float, **changes):
    """A finished run with its answers: the gold scores, disturbed."""
    folder.mkdir()
    cosines = GOLD + noise * np.random.default_rng(0).normal(size=len(GOLD))
    score = 100 * np.corrcoef(cosines, GOLD)[0, 1]
    report = a_report(**{"trained": {"scores": {"stsb": score}}, **changes})
    (folder / "training_report.json").write_text(json.dumps(report))
    (folder / "report.html").touch()
    arrays = {"cosine": cosines, "gold": GOLD, "subset": np.full(len(GOLD), "all"), "data": np.array("same")}
    np.savez(folder / ANSWERS, **{f"stsb/{name}": values for name, values in arrays.items()})
    return folder


def test_runs_side_by_side(tmp_path, capsys, monkeypatch):
    """The interval is that of a comparison of the pairs; the page lies elsewhere, and its links find the runs' own."""
    monkeypatch.chdir(tmp_path)
    changed = {"settings": {"learning_rate": 1e-4, "seed": 42, "logging_steps": 5, "output_dir": "b"}}
    folders = [a_run(tmp_path / "a", 30.0), a_run(tmp_path / "b", 5.0, **changed)]
    output = tmp_path / "pages" / "both.html"
    assert run(command.main, ["a", "b", "--output", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    arrays = [read_answers(folder / ANSWERS)["stsb"]["cosine"] for folder in folders]
    wanted = difference_of("stsb", *arrays, GOLD)
    told = found["differences"]["b"]["stsb"]
    assert (told["low"], told["high"]) == (pytest.approx(wanted.low), pytest.approx(wanted.high)) and told["low"] > 0
    assert found["settings"] == {"learning_rate": {"a": 3e-5, "b": 1e-4}, "recipe": {"a": "quickstart", "b": None}}
    text = output.read_text()
    tags = check_page(text)
    assert "clear" in text and f"[{wanted.low:+.2f}, {wanted.high:+.2f}]" in text and 'href="../b/report.html"' in text
    assert tags.count("svg") == 2 and text.count('class="keys"') == 2
    assert run(command.main, ["a", "b", "--output", str(output)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_without_answers_and_wrong_folders(tmp_path, capsys):
    folders = [a_run(tmp_path / name, 5.0) for name in "ab"]
    (folders[1] / ANSWERS).unlink()
    page, found = comparison.compare_runs(folders, tmp_path)
    assert found["differences"]["b"] == {} and "[" not in page.split("<body>")[1].split("<figure")[0]
    (folders[1] / ANSWERS).write_bytes(b"no zip")
    with pytest.raises(UserError, match="is damaged"):
        comparison.compare_runs(folders, tmp_path)
    for given, words in (
        ([folders[0]], "two runs"),
        ([folders[0], folders[0]], "given twice"),
        ([folders[0], tmp_path], "no finished run"),
    ):
        assert run(command.main, [*map(str, given), "--output", str(tmp_path / "x.html")]) == 2
        assert words in capsys.readouterr().err


def test_answers_of_another_set_are_not_paired(tmp_path):
    first, second = a_run(tmp_path / "a", 5.0), a_run(tmp_path / "b", 9.0)
    stored = dict(np.load(second / ANSWERS))
    np.savez(second / ANSWERS, **{**stored, "stsb/data": np.array("other")})
    assert paired_differences(first / ANSWERS, second / ANSWERS) == {"stsb": None}
    page, numbers = comparison.compare_runs([first, second], tmp_path)
    assert "another set" in page and numbers["differences"]["b"] == {}


def test_answers_of_both_kinds_of_sets(tmp_path, search_set):
    """Written by a run as it reads its sets, and read again."""
    sets, embedder = {"s": as_dev_set(search_set)}, Embedder()
    for name, values in (("a", [0.0, 0.5]), ("b", [0.5, 1.0])):
        write_answers(tmp_path / name, sets, {"s": Answers(np.array(values), {})}, embedder)
    (row,) = paired_differences(tmp_path / "a", tmp_path / "b").values()
    assert (row.first, row.second, row.low, row.high) == (25.0, 75.0, 50.0, 50.0)


class Embedder:
    """As much of one as tells sets apart."""

    query_prompt = document_prompt = ""


@pytest.fixture
def search_set():
    from cacse_trainer.data.retrieval import RetrievalSet

    return RetrievalSet(["red", "blue"], ["a red house", "a blue house", ""], [{0: 1.0}, {1: 1.0}])


def test_seeds_are_a_band_around_their_mean():
    history = [[{"step": step, "eval_d_spearman": value + step} for step in (0, 5)] for value in (60.0, 64.0)]
    seeds = [{"log_history": one, "steps": 5} for one in history]
    (chart,) = overlaid({"x": seeds, "y": seeds[:1]}, dev=True)
    assert chart.count("fill-opacity") == 1 and "shaded from the least" in chart
    assert "fill-opacity" not in overlaid({"x": seeds[:1], "y": seeds[1:]}, dev=True)[0]
    assert overlaid({"x": seeds}, dev=False) == [""]
    many = line_chart([comparison.Series(f"run {i}", [(0, i), (1, i)]) for i in range(6)], "d", wide=True)
    assert many.count("dashed") == 2 and ">run 5<" not in many.split("<svg")[1]


def test_settings_that_say_where_a_run_lies_do_not_differ():
    assert differing({"a": {"output_dir": "a", "x": 1}, "b": {"output_dir": "b", "x": 1}}) == {}


def test_the_most_moved_sentence_is_the_one_with_other_neighbours():
    """Two groups of twelve; after training one sentence of the first lies in the second."""
    random = np.random.default_rng(0)
    sentences = [f"s{i}" for i in range(24)]
    before = np.repeat(np.eye(2), 12, axis=0) + 0.01 * random.normal(size=(24, 2))
    after = before.copy()
    after[3] = 2 * before[20] + 0.001
    moved = most_moved(sentences, before, 3 * after)
    assert moved[0]["sentence"] == "s3" and moved[0]["kept"] == 0 and moved[0]["of"] == 10
    assert {text for _, text in moved[0]["before"]} <= set(sentences[:12])
    assert {text for _, text in moved[0]["after"]} <= set(sentences[12:])
    assert most_moved(sentences, before, 5 * before) == [] and most_moved(["a"], before[:1], before[:1]) == []


def test_sentences_that_are_looked_at_are_those_of_the_sets(search_set):
    sets = {"s": as_dev_set(search_set)}
    assert sample(sets) == ["a red house", "a blue house"] and len(sample(sets, most=1)) == 1


def test_examples():
    found = doctest.testmod(comparison)
    assert found.attempted > 0 and found.failed == 0
