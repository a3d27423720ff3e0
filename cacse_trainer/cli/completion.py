"""``cacse-trainer completion``: a script for the shell, so that Tab completes commands, flags, recipes and choices.

The script is made once and holds all words: completing starts no Python.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from cacse_trainer.cli.common import OneLineParser, run
from cacse_trainer.cli.main import COMMANDS, MODULES
from cacse_trainer.cli.output import tell
from cacse_trainer.settings.recipes import recipe_names

SHELLS = ("bash", "zsh", "fish")
EPILOG = """examples:
  cacse-trainer completion bash > ~/.local/share/bash-completion/completions/cacse-trainer
  cacse-trainer completion zsh > ~/.zsh/_cacse-trainer            (a folder of $fpath, before compinit)
  cacse-trainer completion fish > ~/.config/fish/completions/cacse-trainer.fish
"""


@dataclass
class Flag:
    """One flag of a command.

    Args:
        name: with its dashes.
        help: one line without quotes and brackets.
        choices: the words that may follow; none where any may.
        takes_value: whether anything follows at all.
    """

    name: str
    help: str
    choices: list[str]
    takes_value: bool


def parser() -> OneLineParser:
    """The command's flags."""
    made = OneLineParser(
        prog="cacse-trainer completion",
        description="Print a script that completes commands, flags, recipes and choices.",
        epilog=EPILOG,
    )
    made.add_argument("shell", choices=SHELLS)
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    shell = parser().parse_args(arguments).shell
    text = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}[shell](all_flags())
    tell(text.rstrip("\n"), {"shell": shell, "script": text})


def parser_of(command: str) -> argparse.ArgumentParser:
    """A command's own parser."""
    return importlib.import_module(f"cacse_trainer.cli.{MODULES.get(command, command)}").parser()


def all_flags() -> dict[str, list[Flag]]:
    """The flags of every command."""
    return {command: flags_of(parser_of(command), command) for command in COMMANDS}


def flags_of(made: argparse.ArgumentParser, command: str) -> list[Flag]:
    """A parser's flags, ``--config`` with the recipes that are meant for the command."""
    found = []
    for action in made._actions:
        choices = [str(choice) for choice in action.choices or []]
        if action.dest == "config":
            choices = recipes_for(command)
        text = re.sub(r"[^\w ,.;/=+<>-]", "", (action.help or "").split("%(")[0]).strip()
        # transformers gives --learning-rate beside --learning_rate; one is enough to offer
        for name in [name for name in action.option_strings if "-" not in name.lstrip("-")]:
            found.append(Flag(name, text[:90], choices, action.nargs != 0))
    return found


def recipes_for(command: str) -> list[str]:
    """The recipes of a command: those in the folder of its name; for others all that are in none."""
    own = {"distill": "distill/", "pipeline": "pipeline/", "instruct": "instruct/"}
    if command in own:
        return [name for name in recipe_names() if name.startswith(own[command])]
    return [name for name in recipe_names() if not name.startswith(tuple(own.values()))]


def bash_script(flags: dict[str, list[Flag]]) -> str:
    """For bash: files where no choices are known."""
    words = [f'        {name}) words="{" ".join(flag.name for flag in found)}" ;;' for name, found in flags.items()]
    values = [
        f'        "{name} {flag.name}") words="{" ".join(flag.choices)}" ;;'
        for name, found in flags.items()
        for flag in found
        if flag.choices
    ]
    newline = "\n"
    return f"""# bash completion of cacse-trainer
_cacse_trainer() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{" ".join(flags)} --help --version" -- "$current"))
        return
    fi
    case "${{COMP_WORDS[1]}} $previous" in
{newline.join(values)}
    esac
    if [ -z "$words" ] && [ "${{COMP_WORDS[1]}} $COMP_CWORD" = "completion 2" ]; then
        words="{" ".join(SHELLS)}"
    fi
    if [ -z "$words" ] && [[ "$current" == -* ]]; then
        case "${{COMP_WORDS[1]}}" in
{newline.join(words)}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o bashdefault -o default -F _cacse_trainer cacse-trainer
"""


def zsh_script(flags: dict[str, list[Flag]]) -> str:
    """For zsh, with the flags' help beside them."""
    commands = "\n".join(f"        '{name}:{_zsh(COMMANDS[name])}'" for name in flags)
    cases = []
    for name, found in flags.items():
        specs = []
        for flag in found:
            after = (
                f":value:({' '.join(flag.choices)})" if flag.choices else ":value:_files" if flag.takes_value else ""
            )
            specs.append(f"'*{flag.name}[{_zsh(flag.help)}]{after}'")
        if name == "completion":
            specs.append(f"'1:shell:({' '.join(SHELLS)})'")
        cases.append(f"        {name}) _arguments {' '.join(specs)} '*:file:_files' ;;")
    newline = "\n"
    return f"""#compdef cacse-trainer
_cacse_trainer() {{
    local -a commands
    commands=(
{commands}
    )
    if (( CURRENT == 2 )); then
        _describe 'command' commands
        return
    fi
    local command="${{words[2]}}"
    shift words
    (( CURRENT-- ))
    case "$command" in
{newline.join(cases)}
    esac
}}
if [ "$funcstack[1]" = "_cacse-trainer" ]; then _cacse_trainer "$@"; else compdef _cacse_trainer cacse-trainer; fi
"""


def _zsh(text: str) -> str:
    """A help text without the letters that mean something to ``_arguments``."""
    return re.sub(r"[\[\]:'\\]", "", text)


def fish_script(flags: dict[str, list[Flag]]) -> str:
    """For fish."""
    lines = ["# fish completion of cacse-trainer", "complete -c cacse-trainer -f -n __fish_use_subcommand"]
    for name in flags:
        what = COMMANDS[name].replace("'", r"\'")
        lines.append(f"complete -c cacse-trainer -n __fish_use_subcommand -a {name} -d '{what}'")
    for name, found in flags.items():
        condition = f"-n '__fish_seen_subcommand_from {name}'"
        for flag in found:
            kind = "-l" if flag.name.startswith("--") else "-s"
            value = f" -xa '{' '.join(flag.choices)}'" if flag.choices else " -r" if flag.takes_value else ""
            words = f"complete -c cacse-trainer {condition} {kind} {flag.name.lstrip('-')}"
            lines.append(f"{words}{value} -d '{flag.help}'")
        if name == "completion":
            lines.append(f"complete -c cacse-trainer {condition} -fa '{' '.join(SHELLS)}'")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run(main))
