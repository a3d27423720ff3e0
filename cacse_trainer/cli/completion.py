"""``cacse-trainer completion``: a script for the shell, so that Tab completes commands, flags, recipes and choices.

The script is made once, by shtab from the commands' own parsers, and holds all words: completing starts no Python.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

import shtab

from cacse_trainer.cli.common import OneLineParser, command_parser, run
from cacse_trainer.cli.main import COMMANDS, MODULES
from cacse_trainer.cli.output import tell
from cacse_trainer.settings.resources import recipes_for

SHELLS = ("bash", "zsh", "fish")
FILES = {shell: how for shell, how in shtab.FILE.items() if shell != "bash"}
"""How a shell completes a file; bash does so by itself where the script knows nothing."""
EPILOG = """examples:
  cacse-trainer completion bash > ~/.local/share/bash-completion/completions/cacse-trainer
  cacse-trainer completion zsh > ~/.zsh/_cacse-trainer            (a folder of $fpath, before compinit)
  cacse-trainer completion fish > ~/.config/fish/completions/cacse-trainer.fish
"""


def parser() -> OneLineParser:
    """The command's flags."""
    made = command_parser("completion", "Print a script that completes commands, flags, recipes and choices.", EPILOG)
    made.add_argument("shell", choices=SHELLS)
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    shell = parser().parse_args(arguments).shell
    text = script(shell)
    tell(text.rstrip("\n"), {"shell": shell, "script": text})


def parser_of(command: str) -> argparse.ArgumentParser:
    """A command's own parser."""
    return importlib.import_module(f"cacse_trainer.cli.{MODULES.get(command, command)}").parser()


def script(shell: str) -> str:
    """The script of a shell."""
    root = argparse.ArgumentParser(prog="cacse-trainer")
    root.add_argument("--version", action="version", help="say which version this is")
    commands = root.add_subparsers()
    for name, what in COMMANDS.items():
        made = parser_of(name)
        for action in made._actions:
            # transformers gives --learning-rate beside --learning_rate; one is enough to offer
            action.option_strings = [flag for flag in action.option_strings if "-" not in flag.lstrip("-")]
            if action.dest == "config":
                action.choices = recipes_for(name)
            elif action.choices is None and action.nargs != 0:
                action.complete = FILES  # type: ignore[attr-defined]  # where shtab looks for it
        commands.add_parser(name, help=what, parents=[made], add_help=False)
    text = shtab.complete(root, shell)
    return text.replace("complete -o bashdefault ", "complete -o bashdefault -o default ")


if __name__ == "__main__":
    sys.exit(run(main))
