"""One understanding of a command line: hyphens, equals signs, what was given, and secrets."""

import os

import pytest

from cacse_trainer.cli.completion import parser_of
from cacse_trainer.cli.main import COMMANDS
from cacse_trainer.errors import UserError
from cacse_trainer.files import write_text
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.settings.command_line import OneLineParser, hand_over, is_secret
from cacse_trainer.settings.recipes import Parsed, RecipeParser, parse_run

KINDS = [ModelArguments, DataArguments, CacseTrainingArguments]
TOKEN = "hf_" + "secret" * 5
SPELLINGS = [
    ["--hub_token", TOKEN],
    ["--hub-token", TOKEN],
    [f"--hub_token={TOKEN}"],
    [f"--hub-token={TOKEN}"],
    ["--hub_token", f"{TOKEN}2", "--hub-token", TOKEN],
]


def parsed(*flags: str) -> Parsed:
    return parse_run(RecipeParser(KINDS, prog="cacse-trainer train"), flags)


def small_parser() -> OneLineParser:
    made = OneLineParser(prog="cacse-trainer small")
    made.add_argument("folder", nargs="?")
    made.add_argument("--top_k", type=int)
    made.add_argument("--set", nargs="+", default=[])
    return made


def test_hyphens_and_equals_signs_are_one_spelling():
    found = parsed("--config", "quickstart", "--learning-rate=2e-5", "--max_steps", "3", "--no-export", "--run_name=-1")
    assert found.groups[2].learning_rate == 2e-5 and found.groups[2].export is False
    assert found.flags == ["learning_rate", "max_steps", "export", "run_name"]
    assert {"tower_a", "cascade_start_layer"} <= set(found.from_recipe) and "adam_beta1" not in found.given()
    words = "cacse-trainer train --config quickstart --learning_rate 2e-5 --max_steps 3 --no_export --run_name=-1"
    assert found.command == words.split()
    settings = small_parser().parse_args(["here", "--top-k=5"])
    assert (settings.folder, settings.top_k) == ("here", 5)


def test_a_switch_that_is_on_by_default_is_read_from_a_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("export: false\neval_on_start: false\n")
    args = parsed("--config", str(path)).groups[2]
    assert args.export is False and args.eval_on_start is False


def test_the_command_begins_anew():
    assert parsed("--seed", "1", "--resume-from-checkpoint", "last").command == [
        "cacse-trainer",
        "train",
        "--seed",
        "1",
    ]


def test_which_flags_are_secrets():
    flags = {action.dest for name in COMMANDS for action in parser_of(name)._actions}
    assert {flag for flag in flags if is_secret(flag)} == {"hub_token"}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_command_shows_a_secret(spelling, tmp_path):
    found = parsed("--seed", "1", *spelling, "--max_steps", "2")
    assert found.command == ["cacse-trainer", "train", "--seed", "1", "--max_steps", "2"]
    assert found.groups[2].hub_token == TOKEN
    write_text(tmp_path / "a.txt", f"by some way: {TOKEN}")
    assert (tmp_path / "a.txt").read_text() == "by some way: ***"


def test_secrets_among_settings_that_are_values(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    settings = [f"common.hub_token={TOKEN}", f"joint.hub-token={TOKEN}"]
    words = ["--set", settings[0], "a.seed=1", f"--set={settings[1]}", "--top_k", "2"]
    assert small_parser().command(words) == ["cacse-trainer", "small", "--set", "a.seed=1", "--top_k", "2"]
    fields = {"hub-token": TOKEN, "seed": 1}
    hand_over(fields)
    assert fields == {"seed": 1} and os.environ["HF_TOKEN"] == TOKEN


@pytest.mark.parametrize("arguments", [[f"--hub_tokn={TOKEN}"], ["--hub_token", TOKEN, "--top_k", TOKEN]])
def test_no_error_shows_a_secret(arguments):
    made = small_parser()
    made.add_argument("--hub_token")
    with pytest.raises(UserError) as caught:
        made.parse_args(arguments)
    assert TOKEN not in str(caught.value) and caught.value.args[0].startswith("command line: ")


def test_an_unknown_flag_is_told_with_the_nearest():
    for unknown in ("--topk", "--top-kk"):
        with pytest.raises(UserError, match="did you mean --top_k"):
            small_parser().parse_args([unknown, "1"])
