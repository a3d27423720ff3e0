"""`cacse-trainer grade`: in the terminal and in a real browser; what it writes is a dev file."""

import io
import json

import pytest

from cacse_trainer.cli import grade as command
from cacse_trainer.cli.common import run
from cacse_trainer.demo.grading import grade_in_terminal, serve_grading, shown
from cacse_trainer.evaluation.grading import Grading, Pair
from tests.cli.test_demo import browser  # noqa: F401  # a fixture
from tests.conftest import write_sentences

PAIRS = [Pair("a <cat>", "a dog", 0.5), Pair("red house", "blue house", 0.75), Pair("rain", "snow", 0.25)]


def test_in_the_terminal_and_again(tiny_towers, tmp_path, monkeypatch, capsys):
    """The pairs are chosen once; the second time neither text nor model is needed."""
    text, output = write_sentences(tmp_path / "text.txt", 40), tmp_path / "new" / "mine.tsv"
    flags = ["--output", str(output), "--plain"]
    monkeypatch.setattr("sys.stdin", io.StringIO("5\n0\nx\ns\nq\n"))
    begin = ["--input", str(text), "--model", tiny_towers("bert")[0], "--pooling", "mean", "--pairs", "6"]
    assert run(command.main, [*flags, *begin]) == 0
    assert "2 of 6 pairs graded, 1 skipped" in capsys.readouterr().out
    assert len(output.read_text().splitlines()) == 3
    monkeypatch.setattr("sys.stdin", io.StringIO("3\n"))  # and the end of the input
    assert run(command.main, [*flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["graded"] == 3
    assert [row.split("\t")[2] for row in output.read_text().splitlines()[1:]] == ["5", "0", "3"]
    for other in (["--pairs", "9"], ["--seed=1"], ["--input", "other.txt"]):
        assert run(command.main, [*flags, *other]) == 2
        assert f"was begun with {other[0].partition('=')[0]} " in capsys.readouterr().err


def test_it_refuses_in_one_line(tmp_path, capsys):
    for flags, words in (
        (["--output", str(tmp_path / "a.tsv")], "give --input and --model"),
        (["--output", str(tmp_path / "a.csv"), "--input", "x", "--model", "m"], "ends in .tsv"),
    ):
        assert run(command.main, [*flags, "--plain"]) == 2
        assert words in capsys.readouterr().err


def test_undo_in_the_terminal(tmp_path):
    grading, said = Grading.begin(tmp_path / "mine.tsv", PAIRS), []
    answers = iter("1u2s4")
    grade_in_terminal(grading, lambda prompt: next(answers), said.append)
    assert (tmp_path / "mine.tsv").read_text().splitlines()[1:] == ["a <cat>\ta dog\t2", "rain\tsnow\t4"]
    assert any("[3 of 3]" in text for text in said)


def test_what_is_written_by_hand_meanwhile_stays(tmp_path):
    grading = Grading.begin(tmp_path / "mine.tsv", PAIRS)
    grading.grade(0, 5)
    with (tmp_path / "mine.tsv").open("a") as file:
        file.write("my own\tpair\t3\n")
    grading.grade(1, 2)
    rows = (tmp_path / "mine.tsv").read_text().splitlines()[1:]
    assert rows == ["a <cat>\ta dog\t5", "my own\tpair\t3", "red house\tblue house\t2"]


def test_what_the_page_shows(tmp_path):
    grading = Grading.begin(tmp_path / "mine.tsv", PAIRS)
    page, number = shown(grading)
    assert "a &lt;cat&gt;" in page and number == "0" and "3 left" in page
    for i in range(3):
        grading.grade(i, i)
    page, number = shown(grading)
    assert "All pairs are done" in page and "--dev_file" in page and number == ""


@pytest.mark.slow
def test_the_page_in_a_browser(browser, tmp_path):  # noqa: F811
    """Buttons and keys; two presses before the next pair comes are one answer; nothing is asked of another machine."""
    pytest.importorskip("gradio")
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    grading = Grading.begin(tmp_path / "mine.tsv", PAIRS)
    page, address = serve_grading(grading, "127.0.0.1", 0)
    try:
        browser.get(address)
        wait = WebDriverWait(browser, 60)

        def shows(words: str) -> None:
            wait.until(lambda _: any(words in one.text for one in browser.find_elements(By.CSS_SELECTOR, "#pair")))

        shows("a <cat>")
        browser.find_element(By.CSS_SELECTOR, "#grade-5").click()
        shows("red house")
        ActionChains(browser).send_keys("s").perform()
        shows("rain")
        ActionChains(browser).send_keys("u").perform()
        shows("red house")
        ActionChains(browser).send_keys("3").perform()
        shows("rain")
        ActionChains(browser).send_keys("1").perform()
        shows("All pairs are done")
        rows = [row.split("\t")[2] for row in (tmp_path / "mine.tsv").read_text().splitlines()[1:]]
        assert rows == ["5", "3", "1"]
        asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = {entry["params"]["request"]["url"] for entry in asked if entry["method"] == "Network.requestWillBeSent"}
        assert not {url for url in urls if url.startswith(("http", "ws")) and not url.startswith(address)}
    finally:
        page.close()
