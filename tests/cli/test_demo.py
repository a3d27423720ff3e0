"""`cacse-trainer demo`: what its buttons compute, and the page in a real browser."""

import logging
import shutil

import numpy as np
import pytest

from cacse_trainer import SentenceEncoder
from cacse_trainer.cli import demo as command
from cacse_trainer.cli.common import run
from cacse_trainer.demo.page import EXAMPLES, Demo, serve
from cacse_trainer.demo.views import label_places, principal_components, score_table
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


def test_labels_of_the_map_do_not_cover_each_other():
    points = np.array([[0.0, 0.0], [0.01, 0.0], [0.0, 0.001], [1.0, 1.0], [0.99, 1.0]])
    lines = ["a sentence about something"] * 5
    places = label_places(lines, points)
    for i, (_, _, (_, y), side) in enumerate(places):
        assert side == ("left" if places[i][1][0] < 0.5 else "right")
        assert all(abs(y - other[2][1]) >= 0.04 for other in places[i + 1 :] if other[3] == side)


def test_what_the_buttons_compute(encoders, tmp_path):
    demo = Demo(encoders, str(write_sentences(tmp_path / "corpus.txt", 30)))
    tables = demo.similarity("the dog", "a cat\n\nthe dog\n")
    assert len(tables) == 2 and all(table.index("the dog") < table.index("a cat") for table in tables)
    assert tables[0].count("1.000") == 1
    line = (tmp_path / "corpus.txt").read_text().splitlines()[4]
    assert all(line in table.split("</tr>")[0] for table in demo.search(line, 3, -1, None))
    (tmp_path / "other.csv").write_text("id,body\n1,red\n2,blue\n")
    with pytest.raises(UserError, match="which of its columns"):
        demo.index(str(tmp_path / "other.csv"))
    session = demo.index(str(tmp_path / "other.csv"), "body")
    assert all("red" in table for table in demo.search("red", 1, -1, session))
    assert len(demo.matrices("the dog\na cat")) == 2 and len(demo.maps("the dog\na cat\nred")) == 2
    assert "&lt;b&gt;" in score_table([("<b>", 0.5)], "red") and "Nothing above" in score_table([], "red")


def test_wrong_input_is_told(encoders):
    demo = Demo(encoders)
    with pytest.raises(UserError, match="nothing to search"):
        demo.search("red", 5, 0, None)
    with pytest.raises(UserError, match="at least 3 sentences"):
        demo.maps("red\nblue")
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
        tab("Side by side")
        click("#pairs")
        for i in range(2):
            wait.until(lambda _, i=i: browser.find_elements(By.CSS_SELECTOR, f"#matrix-{i} img"))
        tab("Map")
        click("#map")
        for i in range(2):
            wait.until(lambda _, i=i: browser.find_elements(By.CSS_SELECTOR, f"#points-{i} img"))
        find("#map-text textarea").clear()
        find("#map-text textarea").send_keys("red")
        click("#map")
        wait.until(lambda _: "at least 3 sentences" in find("body").text)
        assert browser.find_elements(By.CSS_SELECTOR, "#points-0 img")  # what was drawn stays
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
