"""Pages and charts: self-contained, every figure in its place, nothing taken as markup."""

import doctest
import math
import re
import shlex
from html.parser import HTMLParser

import pytest

from cacse_trainer.report import Section, Series, line_chart, loss_page, page, training, training_page
from cacse_trainer.report.curves import VARIABLES, plot_run
from cacse_trainer.report.page import folded

VOID = {"meta", "br", "img"}


class Nesting(HTMLParser):
    """Fails on tags that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def check_page(text: str) -> list[str]:
    """Well nested, and nothing is loaded from elsewhere; returns the tags."""
    parser = Nesting()
    parser.feed(text)
    assert not parser.open
    for word in ("http:", "https:", "<script", "<link", "src=", "@import", "url("):
        assert word not in text, word
    return parser.seen


def a_report(**changes) -> dict:
    history = [
        {"step": 0, "eval_stsb_spearman": 70.0, "eval_stsb_alignment": 0.2, "eval_stsb_dead_dimensions": 3},
        {"step": 5, "loss": 2.0, "loss_tower_a": 0.5, "loss_cascade": 1.5, "learning_rate": 3e-5, "grad_norm": 7.0},
        {"step": 5, "eval_stsb_spearman": 72.5, "eval_stsb_alignment": 0.25, "eval_stsb_dead_dimensions": 3},
        {"step": 10, "loss": None, "loss_tower_a": 0.4, "loss_cascade": 1.1, "learning_rate": 3e-5, "grad_norm": 6.0},
        {"step": 10, "eval_stsb_spearman": 71.0, "eval_stsb_alignment": 0.3, "eval_stsb_dead_dimensions": 3},
    ]
    return {
        "model": "CacseBertModel",
        "finished": "2026-01-02 03:04",
        "command": "cacse-trainer train --config quickstart --tower_dropout 0.1 0.2",
        "run": {
            "global_batch": 64,
            "gradient_accumulation_steps": 1,
            "effective_negatives": 126,
            "trainable_parameters": 43_958_784,
            "dropout": {"tower_a": [0.1], "cascade": [0.1, 0.2]},
        },
        "data": {"source": "<b>mine</b>.txt", "rows": 4075},
        "metric": "stsb_spearman",
        "baseline": 70.0,
        "best": 72.5,
        "best_step": 5,
        "exported": {"tower_a": {"stsb": 72.25}},
        "steps": 10,
        "wall_seconds": 75.0,
        "peak_memory_gb": 2.5,
        "environment": {"python": "3.11"},
        "given": ["learning_rate"],
        "settings": {"learning_rate": 3e-5, "seed": 42, "logging_steps": 5, "recipe": "quickstart", "hub_token": "x"},
        "log_history": history,
        **changes,
    }


VERDICT = {"set": "stsb", "held_out": False, "start": 78.0, "trained": 72.5, "low": -8.25, "high": -3.5}
VERDICT["outcome"] = "did not help"


def test_the_page_of_a_run_shows_every_figure():
    text = training_page(a_report(), "mine & yours")
    tags = check_page(text)
    assert "mine &amp; yours" in text and "&lt;b&gt;mine&lt;/b&gt;.txt" in text and "<b>mine" not in text
    assert "70.00 before training, best 72.50 at step 5" in text and "+2.50" in text
    assert "--tower_dropout 0.1 0.2" in text and "43.9 M" not in text and "44.0 M" in text
    # loss and two parts, one dev set, two measures of the space, learning rate and gradient: each its own drawing
    assert tags.count("svg") == 8
    for words in ("part: tower_a", "part: cascade", "stsb: Spearman ×100", "alignment", "dead dimensions"):
        assert words in text
    assert "tower_a: 0.1; cascade: 0.1, 0.2" in text
    rows = re.findall(r'<tr><td>([^<]*)</td><td class="n">([^<]*)</td></tr>', text)
    assert rows == [
        ("before training, read as it is trained", "70.00"),
        ("best checkpoint (step 5)", "72.50"),
        ("exported: tower_a", "72.25"),
    ]
    assert text.count("learning rate</td><td>3e-5") == 2  # among the given settings and among all
    assert "hub" not in text


def test_exports_are_linked_and_moved_sentences_shown():
    hits = [[0.5, "a < b"], [0.25, "x" * 400]]
    one = {"sentence": "<i>me", "kept": 3, "of": 10, "before": hits, "after": hits[:1]}
    text = training_page(a_report(moved=[one], exported={"tower a": {}}), "run")
    check_page(text)
    assert '<a href="export/tower%20a/">' in text and '<a href="export/tower%20a/README.md">' in text
    assert "&lt;i&gt;me" in text and "3 of its 10 nearest" in text and "x" * 300 not in text
    assert text.count("<li><span>0.50</span>a &lt; b</li>") == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"best": 69.0}, "Training did not help"),
        ({"best": None, "best_step": None}, "never defined"),
        ({"metric": None}, "No dev set was scored"),
        ({"baseline": None}, "stsb_spearman: best 72.50 at step 5."),
        ({"verdict": VERDICT}, "Training did not help: stsb (the checkpoint was chosen on it) 78.00"),
        (
            {"verdict": {**VERDICT, "held_out": True, "outcome": "unclear"}},
            "Training did not clearly help: stsb (held out)",
        ),
        ({"verdict": {**VERDICT, "held_out": True}, "metric": None}, "Training did not help: stsb (held out) 78.00"),
        ({"verdict": VERDICT}, "72.50 trained (-5.50, 95 % interval [-8.25, -3.50])"),
        (
            {"start": {"name": "S", "pooling": "mean", "scores": {"stsb": 78.0}}},
            '<td>S as it is, mean pooling</td><td class="n">78.00</td>',
        ),
        ({"teacher": {"scores": {"stsb": 80.125}}}, '<td>teacher</td><td class="n">80.12</td>'),
        ({"gpu_memory_gb": 11.04}, "11.0 GB"),
        ({"log_history": [], "exported": {}, "metric": None, "given": []}, "No dev set"),
    ],
)
def test_other_runs(changes, words):
    text = training_page(a_report(**changes), "run")
    check_page(text)
    assert words in text


def test_the_page_of_a_run_with_a_validation_loss():
    history = [{"step": 0, "eval_loss": 2.5}, {"step": 5, "loss": 2.0}, {"step": 10, "eval_loss": 1.75}]
    report = a_report(
        baseline=2.5,
        kept=1.75,
        kept_step=10,
        records=40,
        records_too_long=1,
        answer_tokens=99,
        parameters=1000,
        trainable_parameters=10,
        log_history=history,
    )
    tags = check_page(text := loss_page(report, "mine"))
    assert "2.5000 before training, 1.7500 at step 10" in text and tags.count("svg") == 2
    assert "No validation loss" in loss_page({**report, "kept": None, "baseline": None, "log_history": []}, "mine")


def drawn(line: Series, **more) -> list[tuple[float, float]]:
    """The places of a line's points in its drawing, (right, down) each."""
    chart = line_chart([line], "x", **more)
    (path,) = re.findall(r'<path d="([^"]*)" style="[^"]*stroke: var\(--line-1\)[^"]*linecap', chart)
    return [tuple(map(float, place)) for place in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]


def test_a_chart_puts_points_where_they_belong():
    """Two points at the ends of both axes, the one in the middle of them halfway."""
    (left, bottom), (middle, half), (right, top) = drawn(Series("loss", [(0, 1.0), (5, 2.0), (10, 3.0)]))
    assert left < middle < right and top < half < bottom
    assert middle - left == pytest.approx(right - middle, abs=1e-4)
    assert half - top == pytest.approx(bottom - half, abs=1e-4)
    longer = drawn(Series("loss", [(0, 1.0), (10, 3.0)]), x_end=20)
    assert longer[1][0] < right  # room for the steps that the line does not reach


def test_gaps_constants_and_nothing():
    assert line_chart([Series("x", [(0, None), (1, math.nan)])], "x") == ""
    assert line_chart([], "x") == ""
    constant = line_chart([Series("a", [(0, 3.0), (5, 3.0)]), Series(r"b<$\no$", [(0, 3.0), (5, None)])], "count")
    assert r"b&lt;$\no$" in constant and ">a<" in constant and "nan" not in constant
    assert ">a<" not in line_chart([Series("a", [(0, 3.0), (5, 3.0)])], "one line has no legend")
    dots = [line_chart([Series("a", [(i, i) for i in range(n)])], "x").count("<use") for n in (5, 100)]
    assert dots[0] == dots[1] + 5  # a dot a point, unless there are many


def test_a_drawing_takes_colours_and_font_from_its_page():
    """And names nothing that another drawing on the page names, too, except what is the same there."""
    text = line_chart([Series("a", [(0, 1.0), (5, 3.0)])], "x", reference=("start <", 2.0), mark=(5, 3.0), note="n & m")
    assert not any(colour in text for colour in VARIABLES) and "font-family" not in text
    assert all(f"var({name})" in text for name in ("--soft", "--rule", "--good", "--line-1"))
    assert "start &lt;" in text and "n &amp; m" in text
    assert not re.search(r' id="\w+_\d', text) and text == line_chart(
        [Series("a", [(0, 1.0), (5, 3.0)])], "x", reference=("start <", 2.0), mark=(5, 3.0), note="n & m"
    )


def test_the_picture_beside_the_page(tmp_path):
    """Losses and dev scores; also of a run without either."""
    for name, history in (("full", a_report()["log_history"]), ("empty", [])):
        plot_run(tmp_path / f"{name}.png", history, ["eval_stsb_spearman"] if history else [])
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_long_command_has_a_flag_a_line_and_means_the_same():
    words = ["cacse-trainer", "train", "--train_file", "my text.txt", *(f"--flag_{i}={i}" for i in range(12))]
    shown = folded(shlex.join(words))
    assert shown.count("\n") == 13 and shlex.split(shown.replace("\\\n", " ")) == words
    assert folded("cacse-trainer train --check") == "cacse-trainer train --check"


def test_tables_and_sections():
    assert "Empty" not in page("t", "", [Section("Empty", "a note", rows=[], head=["a"], charts=[""])])
    text = page("t", "l", [Section("Full", rows=[["<u>", "1"]], head=["<i>", "n"], numeric=[1])])
    check_page(text)
    assert '<tr><th>&lt;i&gt;</th><th class="n">n</th></tr>' in text
    assert '<tr><td>&lt;u&gt;</td><td class="n">1</td></tr>' in text


def test_examples():
    found = doctest.testmod(training)
    assert found.attempted > 0 and found.failed == 0
