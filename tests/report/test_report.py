"""Pages and charts: self-contained, every figure in its place, nothing taken as markup."""

import doctest
import html
import math
import re
import shlex
from html.parser import HTMLParser

import pytest

from cacse_trainer.report import Section, Series, line_chart, loss_page, page, svg, table, training, training_page
from cacse_trainer.report.page import command

VOID = {"meta", "line", "circle", "polyline", "br", "img"}


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
    rows = re.findall(r"<tr><td>([^<]*)</td><td class=n>([^<]*)</td></tr>", text)
    assert rows == [("before training", "70.00"), ("best checkpoint (step 5)", "72.50"), ("exported: tower_a", "72.25")]
    assert text.count("learning rate</td><td>3e-5") == 2  # among the given settings and among all
    assert "hub" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"best": 69.0}, "Training did not help"),
        ({"best": None, "best_step": None}, "never defined"),
        ({"metric": None}, "No dev set was scored"),
        ({"baseline": None}, "stsb_spearman: best 72.50 at step 5."),
        ({"teacher": {"scores": {"stsb": 80.125}}}, "<td>teacher</td><td class=n>80.12</td>"),
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


def test_a_chart_puts_points_where_they_belong():
    """Two points at the ends of both axes: the corners of the drawing."""
    text = line_chart([Series("loss", [(0, 1.0), (10, 3.0)])], "loss")
    left, right = svg.LEFT, svg.WIDTH - svg.RIGHT
    top, bottom = svg.TOP, svg.HEIGHT - svg.BOTTOM
    assert f'points="{left:.1f},{bottom:.1f} {right:.1f},{top:.1f}"' in text
    assert "<title>loss: 3 at step 10</title>" in text and "legend" not in text


def test_gaps_constants_and_nothing():
    assert line_chart([Series("x", [(0, None), (1, math.nan)])], "x") == ""
    assert line_chart([], "x") == ""
    constant = line_chart([Series("a", [(0, 3.0), (5, 3.0)]), Series("b<", [(0, 3.0), (5, None)])], "count")
    assert ">2<" in constant and ">4<" in constant and "b&lt;" in constant and "legend" in constant
    assert "nan" not in constant
    many = line_chart([Series("a", [(i, i) for i in range(100)])], "many")
    assert "<circle" not in many


def test_a_long_command_has_a_flag_a_line_and_means_the_same():
    words = ["cacse-trainer", "train", "--train_file", "my text.txt", *(f"--flag_{i}={i}" for i in range(12))]
    shown = html.unescape(command(shlex.join(words)).removeprefix("<pre>").removesuffix("</pre>"))
    assert shown.count("\n") == 13 and shlex.split(shown.replace("\\\n", " ")) == words
    assert command("cacse-trainer train --check") == "<pre>cacse-trainer train --check</pre>"


def test_tables_and_sections():
    assert table(["a"], []) == ""
    assert "Empty" not in page("t", "", "", [Section("Empty", "")])
    check_page(page("t", "l", "", [Section("Full", table(["<i>"], [["<u>"]]))]))


@pytest.mark.parametrize("module", [svg, training])
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0
