"""What README, docs and examples promise: their fenced blocks, and checks that their commands are real."""

import re
import shlex
from pathlib import Path

from cacse_trainer.cli import distill, main, train
from cacse_trainer.cli.completion import parser_of
from cacse_trainer.runs.methods import check_used
from cacse_trainer.settings.recipes import parse_run
from cacse_trainer.settings.resources import recipe_names
from tests.conftest import ROOT

PROGRAMS = {"pip", "python", "bash", "make", "torchrun", "cacse-trainer"}


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language; "" for those of none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [code for found, code in fenced if found == language]


def commands(path: Path) -> list[list[str]]:
    """The commands in a document's bash blocks, redirections left out."""
    text = "\n".join(blocks(path.read_text(encoding="utf-8"), "bash")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [line[: line.index(">")] if ">" in line else line for line in lines if line]


def check_command(command: list[str], tmp_path: Path) -> None:
    """The program is a known one, its script or target exists, and its flags and recipes parse."""
    program, *arguments = command
    assert program in PROGRAMS, program
    if program == "bash":
        assert (ROOT / arguments[0]).is_file(), arguments[0]
        if arguments[0] in ("run_unsup_example.sh", "run_distill.sh"):
            flags = arguments[1:]
            if "--nproc" in flags:  # the script's own
                flags = flags[: flags.index("--nproc")] + flags[flags.index("--nproc") + 2 :]
            name = "train" if "unsup" in arguments[0] else "distill"
            default = "quickstart" if name == "train" else "distill/quickstart"
            check_flags(name, flags if "--config" in flags else ["--config", default, *flags], tmp_path)
    elif program == "python":
        assert (ROOT / arguments[0]).is_file() or arguments[0] == "-m", arguments[0]
    elif program == "make":
        assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text()
    elif program == "torchrun":
        module = arguments.index("-m")
        check_flags(arguments[module + 1].removeprefix("cacse_trainer.cli."), arguments[module + 2 :], tmp_path)
    elif program == "cacse-trainer":
        check_flags(arguments[0], arguments[1:], tmp_path)


def check_flags(name: str, flags: list[str], tmp_path: Path) -> None:
    """A subcommand with flags that its own parser takes; recipes through `parse_run`, as when it runs."""
    if name in ("--help", "--version"):
        return
    assert name in main.COMMANDS, name
    if {"--help", "-h"} & set(flags):
        return
    if "--config" in flags:
        recipe = flags[flags.index("--config") + 1]
        assert recipe in recipe_names() or recipe == "my_recipe.yaml", recipe
        if recipe == "my_recipe.yaml":
            flags = [flag for flag in flags if flag not in ("--config", recipe)]
    if name in ("train", "distill"):
        module = train if name == "train" else distill
        own = ["--output_dir", str(tmp_path)] if "--output_dir" not in flags else []
        parsed = parse_run(module.parser(), [*flags, *own])
        if name == "train":
            check_used(parsed)
    else:
        _, unknown = parser_of(name).parse_known_args(flags)
        assert not unknown, unknown
