"""Help and typos without the libraries: what is written down is what the parsers take."""

import json
import runpy
import shlex
import subprocess
import sys

import pytest
from transformers import TrainingArguments

from cacse_trainer.cli.completion import parser_of
from cacse_trainer.cli.main import COMMANDS, main
from cacse_trainer.errors import UserError
from cacse_trainer.settings.command_line import canonical
from cacse_trainer.settings.essentials import ESSENTIALS, WITHOUT_EFFECT
from cacse_trainer.settings.flags import FILE, check_words, help_of, inherited, known_flags
from cacse_trainer.settings.resources import recipes_for
from tests.conftest import ROOT


def test_the_written_flags_are_those_of_the_parsers():
    text = runpy.run_path(str(ROOT / "scripts" / "write_flags.py"))["text"]
    assert FILE.read_text(encoding="utf-8") == text(), "call python scripts/write_flags.py"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_parser_is_known(command):
    flags = {flag for flag in parser_of(command)._option_string_actions if canonical(flag) == flag}
    assert flags <= set(known_flags(command))


def test_inherited_fields_are_those_of_the_installed_version():
    assert set(inherited()) == set(TrainingArguments.__dataclass_fields__) - {"deepspeed_plugin"}
    assert inherited()["learning_rate"][2].startswith("The initial learning rate")


@pytest.mark.parametrize("command", ESSENTIALS)
def test_short_and_full_help(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "112")
    short, full = help_of(command), help_of(command, everything=True)
    assert short.count("\n") <= 80 and max(map(len, short.splitlines())) <= 120
    made = parser_of(command)
    for examples in ESSENTIALS[command].values():
        for example in examples:
            words = shlex.split(example)
            assert not made.parse_known_args(words)[1] and f"  {example}" in short, example
            check_words(command, words)
    shown = [line.split()[0] for line in full.splitlines() if line.startswith("  --")]
    assert len(shown) == len(set(shown)) and set(shown) <= set(known_flags(command))
    assert {example.split()[0] for examples in ESSENTIALS[command].values() for example in examples} <= set(shown)
    assert not {f"--{name}" for name in (*WITHOUT_EFFECT, "gradient_checkpointing")} & set(shown)
    assert all(name in full for name in recipes_for(command))
    assert {"--do_train", "--do_eval"} <= set(shown)  # false means something


@pytest.mark.parametrize(
    ("command", "word", "instead"),
    [
        ("sweep", "--learning-rate=3e-5", "which is here --set learning_rate=VALUE for all runs, or --grid learning_"),
        ("sweep", "--ranking_weight", "--set ranking_weight=VALUE"),
        ("sweep", "--no_export", "--set export=false"),
        ("sweep", "--seed", "did you mean --seeds?"),
        ("sweep", "--lr", "which is here --learning_rate"),
        ("pipeline", "--learning_rate", "--set common.learning_rate=VALUE for all trainings, or STAGE.learning_rate="),
        ("mine", "--learning_rate", "unknown argument '--learning_rate'$"),
    ],
)
def test_a_setting_of_the_runs_is_told_how_to_be_given(command, word, instead):
    with pytest.raises(UserError, match=instead.replace("?", "\\?")):
        check_words(command, [word])


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - set(ESSENTIALS)))
def test_the_other_commands_help_is_short(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "112")
    assert help_of(command).count("\n") <= 80


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--learning-rat", "1"], "unknown argument '--learning_rat'; did you mean --learning_rate?"),
        (["distill", "--hub_tokn=secret"], "unknown argument '--hub_tokn'; did you mean --hub_token?"),
        (["search", "--corpsu", "x"], "did you mean --corpus?"),
        (["train", "--config", "simcse/minlm"], "the nearest are simcse/minilm, "),
        (["sweep", "--config=simcse/minlm"], "the nearest are simcse/minilm, "),
        (["tran"], "no command 'tran'; did you mean train?"),
        (["encode", "a/model"], "'a/model' follows no flag"),
        (
            ["train", "--temp", "0.05", "--pooler_type=cls", "--learning_rat", "1"],
            "'--temp', which is here --contrastive_temperature; unknown argument '--pooler_type', which is here "
            "--pooling; unknown argument '--learning_rat'; did you mean --learning_rate?",
        ),
    ],
)
def test_typos(words, said, capsys):
    assert main(words) == 2
    told = capsys.readouterr().err
    assert said in told and "secret" not in told and len(told.splitlines()) == 1
    assert main([*words, "--json"]) == 2
    assert said in json.loads(capsys.readouterr().out)["error"]


def test_what_is_no_flag_is_left_to_the_command():
    check_words("search", ["--query", "-- what is this --", "--", "--nothing"])
    check_words("train", ["--config", "quickstart", "--no_export", "--lora_init=--odd"])
    with pytest.raises(UserError):
        check_words("train", ["--config", "quickstart", "--nothing"])


def test_nothing_heavy_is_imported():
    """Of every command its help, and typos of all kinds, in one process."""
    code = f"""
import sys
from cacse_trainer.cli.main import main
for name in {[*COMMANDS, "--help", "--version"]}:
    assert main([name, "--help"]) == 0 and main([name, "--help", "all"]) == 0
    assert name.startswith("-") or main([name, "--misspelt", "1"]) == 2
assert main(["tran"]) == main(["train", "--config", "quickstrat"]) == 2
import cacse_trainer
heavy = [name for name in ("torch", "transformers", "numpy", "datasets", "scipy") if name in sys.modules]
print(heavy, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == "[]", done.stderr[-2000:]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["train", "--help"], 0, "--train_file"),
        (["export_static", "--help"], 0, "usage: cacse-trainer export-static"),
        (["train", "--trian_file", "x"], 2, "did you mean --train_file?"),
        (["evaluate", "--task_sett", "sts"], 2, "did you mean --tasks?"),
    ],
)
def test_a_command_run_as_a_module_answers_without_the_libraries_too(words, code, said):
    run = [sys.executable, "-X", "importtime", "-m", f"cacse_trainer.cli.{words[0]}", *words[1:]]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == code and said in done.stdout + " ".join(told)
    assert not any(line.split("|")[-1].strip() in ("torch", "transformers") for line in done.stderr.splitlines())
