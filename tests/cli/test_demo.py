"""`cacse-trainer demo`: what its buttons compute, and the page in a real browser."""

import doctest
import logging
import re
import shutil

import numpy as np
import pytest

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli import demo as command
from cacse_trainer.cli.common import run
from cacse_trainer.demo import corpus as demo_corpus
from cacse_trainer.demo.corpus import read_corpus
from cacse_trainer.demo.page import EXAMPLES, Demo, serve
from cacse_trainer.demo.views import (
    clusters,
    map_figure,
    matrix_figure,
    principal_components,
    rank_table,
    score_table,
)
from cacse_trainer.errors import UserError
from tests.conftest import write_sentences


@pytest.fixture
def encoders(tiny_towers):
    return {name: SentenceEncoder(folder, "mean") for name, folder in zip("AB", tiny_towers("bert")[:2], strict=True)}


def test_principal_components_of_points_in_a_plane():
    """Four corners of a 4 × 2 rectangle, turned into 5 dimensions: the sides are the components, variances 4 : 1."""
    corners = np.array([[2, 1], [2, -1], [-2, 1], [-2, -1]], dtype=float)
    turned = corners @ np.linalg.qr(np.random.default_rng(0).normal(size=(5, 2)))[0].T + 7
    points, shares = principal_components(turned)
    np.testing.assert_allclose(np.abs(points), np.abs(corners), atol=1e-9)
    np.testing.assert_allclose(shares, [0.8, 0.2], atol=1e-9)
    assert np.isfinite(principal_components(np.ones((3, 5)))[1]).all()  # all the same: no variance


def test_a_map_has_a_colour_a_group_and_its_points_know_their_rows():
    points, shares = np.arange(12.0).reshape(6, 2), np.array([0.5, 0.25])
    sentences = [f"sentence <{i}>" for i in range(6)]
    figure = map_figure(sentences, range(10, 16), points, shares, list("abacab"), "red")
    assert [trace.name for trace in figure.data] == ["a", "b", "c"] and figure.layout.showlegend
    assert len({trace.marker.color for trace in figure.data}) == 3 and list(figure.data[1].customdata) == [11, 15]
    assert figure.data[0].hovertext[1] == "sentence &lt;2&gt;<br><i>a</i>"
    numbers = map_figure(sentences, range(6), points, shares, np.arange(6.0), "red")
    assert list(numbers.data[0].marker.color) == [0, 1, 2, 3, 4, 5] and numbers.data[0].marker.showscale
    alone = map_figure(sentences, range(6), points, shares, [""] * 6, "red")
    assert not alone.layout.showlegend and alone.data[0].marker.color == "red"
    grounds = {one.layout.paper_bgcolor for one in (figure, numbers, matrix_figure(sentences, np.eye(6)))}
    assert grounds == {"rgba(0,0,0,0)"}  # the page's own ground, light or dark


def test_clusters_are_named_after_their_centre():
    """Two bundles of directions."""
    vectors = np.repeat(np.eye(2), 5, axis=0) + 0.05 * np.random.default_rng(0).normal(size=(10, 2))
    found = clusters(vectors, [f"s{i}" for i in range(10)], 2)
    assert len(set(found[:5])) == len(set(found[5:])) == 1 and found[0] != found[5]
    assert int(found[0].partition(" s")[2]) < 5 <= int(found[5].partition(" s")[2])


def test_ranks_in_two_models():
    cosines = [np.array([0.9, 0.5, 0.1, 0.0]), np.array([0.2, 0.5, 0.9, 0.0])]
    table = rank_table(["first", "second", "third", "fourth"], cosines, ["A", "B"], 1)
    rows = re.findall(r"<td[^>]*>([^<]*)</td>", table)
    assert rows == ["3", "1", "↑ 2", "third", "1", "3", "↓ 2", "first"]


def test_a_corpus_with_what_it_is_coloured_by(tmp_path):
    (tmp_path / "c.csv").write_text(
        "id,body,topic\n" + "".join(f"{i},text {i},t{i % 3}\n" for i in range(20)) + "20,,t\n"
    )
    sentences, columns = read_corpus(str(tmp_path / "c.csv"), "body")
    assert (
        len(sentences) == 20
        and columns["topic"][:3] == ["t0", "t1", "t2"]
        and columns["id"].tolist() == list(range(20))
    )
    assert doctest.testmod(demo_corpus).failed == 0


def test_what_the_buttons_compute(encoders, tmp_path):
    demo = Demo(encoders, str(write_sentences(tmp_path / "corpus.txt", 30)))
    *tables, ranks = demo.similarity("the dog", "a cat\n\nthe dog\n")
    assert len(tables) == 2 and all(table.index("the dog") < table.index("a cat") for table in (*tables, ranks))
    assert tables[0].count("1.000") == 1
    line = (tmp_path / "corpus.txt").read_text().splitlines()[4]
    *tables, ranks = demo.search(line, 3, -1, None)
    assert all(line in table.split("</tr>")[0] for table in tables) and line in ranks.split("</tr>")[1]
    (tmp_path / "other.csv").write_text("id,body\n1,red\n2,blue\n")
    with pytest.raises(UserError, match="which of its columns"):
        demo.load(str(tmp_path / "other.csv"))
    session = demo.load(str(tmp_path / "other.csv"), "body")
    assert all("red" in table for table in demo.search("red", 1, -1, session))
    assert len(demo.matrices("the dog\na cat")) == 2
    typed, figures = demo.maps("the dog\na cat\nred", "clusters", None)
    assert len(figures) == 2 and typed.sentences == ["the dog", "a cat", "red"]
    mapped, figures = demo.maps("", None, session)
    assert mapped is session and len(figures[1].data[0].x) == 2
    chosen, first, second, ranks = demo.neighbours(0, session)
    assert "red" in chosen and all("blue" in one and "red" not in one for one in (first, second, ranks))
    assert len(demo.maps(" ", "clusters", None)[1][0].data) == 1  # thirty sentences bear their own names
    assert "&lt;b&gt;" in score_table([("<b>", 0.5)], "red") and "Nothing above" in score_table([], "red")


def test_wrong_input_is_told(encoders):
    demo = Demo(encoders)
    with pytest.raises(UserError, match="nothing to search"):
        demo.search("red", 5, 0, None)
    with pytest.raises(UserError, match="at least 3 sentences"):
        demo.maps("red\nblue", None, None)
    with pytest.raises(UserError, match="at most 100"):
        demo.matrices("red\n" * 101)
    with pytest.raises(UserError, match="write a sentence"):
        demo.similarity(" ", "red")
    with pytest.raises(UserError, match="not 3"):
        Demo({**encoders, "C": encoders["A"]})


def test_the_command_refuses_in_one_line(tiny_towers, capsys):
    assert run(command.main, ["--model", "a", "--model", "b", "--model", "c"]) == 2
    assert "not 3" in capsys.readouterr().err
    pytest.importorskip("gradio")
    flags = ["--model", tiny_towers("bert")[0], "--pooling", "mean", "--corpus", "absent.txt"]
    assert run(command.main, flags) == 2
    assert "absent.txt: no such file" in capsys.readouterr().err


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium that can reach this machine only; what it was asked to load is recorded."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with its driver on this machine (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,1000",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield started
    finally:
        started.quit()


@pytest.mark.slow
def test_the_page_in_a_browser(browser, tiny_towers, tmp_path):
    """Every tab of the page is used; nothing is asked of another machine, and the console has no error."""
    import json

    pytest.importorskip("gradio")
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    logging.getLogger("httpx").setLevel(logging.WARNING)
    models = {name: SentenceEncoder(folder, "mean") for name, folder in zip("AB", tiny_towers("bert")[:2], strict=True)}
    path = write_sentences(tmp_path / "corpus.txt", 40)
    page, address = serve(Demo(models, str(path)), "127.0.0.1", 0)
    try:
        browser.get(address)
        wait = WebDriverWait(browser, 60)
        find = lambda selector: browser.find_element(By.CSS_SELECTOR, selector)  # noqa: E731

        def click(selector: str) -> None:
            wait.until(lambda _: find(selector).is_displayed())
            find(selector).click()

        def tab(name: str) -> None:
            button = f"//button[@role='tab' and normalize-space()='{name}']"
            wait.until(lambda _: browser.find_elements(By.XPATH, button))
            next(one for one in browser.find_elements(By.XPATH, button) if one.is_displayed()).click()

        def shown(selector: str, words: str) -> bool:
            return any(words in one.text for one in browser.find_elements(By.CSS_SELECTOR, selector))

        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#compare"))
        click("#compare")
        for i in range(2):
            wait.until(lambda _, i=i: shown(f"#similarity-{i} .scores", EXAMPLES[1]))
        tab("Search")
        assert shown("#status", "40")
        line = path.read_text().splitlines()[7]
        find("#query textarea, #query input").send_keys(line)
        click("#search")
        for i in range(2):
            wait.until(lambda _, i=i: shown(f"#hits-{i} .scores tr:first-child", line))
        tab("Pairs")
        click("#pairs")
        for i in range(2):
            wait.until(lambda _, i=i: browser.find_elements(By.CSS_SELECTOR, f"#matrix-{i} .main-svg"))
        tab("Map")
        click("#map")
        for i in range(2):
            wait.until(lambda _, i=i: browser.find_elements(By.CSS_SELECTOR, f"#points-{i} .points path"))
        dot = browser.find_elements(By.CSS_SELECTOR, "#points-0 .points path")[3]
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", dot)
        ActionChains(browser).move_to_element(dot).pause(0.3).click().perform()
        wait.until(lambda _: shown("#near-1 .scores", ".") or shown("#near-1 .scores", "0"))
        assert find("#chosen .chosen").text in path.read_text() and shown("#near-ranks", "change")
        find("#map-text textarea").send_keys("red")
        click("#map")
        wait.until(lambda _: "at least 3 sentences" in find("body").text)
        assert browser.find_elements(By.CSS_SELECTOR, "#points-0 .points path")  # what was drawn stays
        tab("Search")
        click("#own-corpus button")
        (tmp_path / "mine.txt").write_text("red house\nblue house\n")
        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#corpus input[type=file]"))
        find("#corpus input[type=file]").send_keys(str(tmp_path / "mine.txt"))
        wait.until(lambda _: shown("#status", "Searching 2 sentences"))
        click("#search")
        wait.until(lambda _: shown("#hits-0 .scores", "blue house"))
        asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        addresses = {
            entry["params"]["request"]["url"] for entry in asked if entry["method"] == "Network.requestWillBeSent"
        }
        outside = {one for one in addresses if one.startswith(("http", "ws")) and not one.startswith(address)}
        assert not outside
        errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert not errors
    finally:
        page.close()
