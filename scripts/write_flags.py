#!/usr/bin/env python
"""Write ``cacse_trainer/settings/flags.json``: the flags of all commands, for help without the libraries.

    python scripts/write_flags.py

To be called when a flag or its help has changed; ``tests/settings/test_flags.py`` says so.
"""

import argparse
import json
from typing import Any

from transformers import TrainingArguments

from cacse_trainer.cli.completion import parser_of
from cacse_trainer.cli.main import COMMANDS
from cacse_trainer.settings.command_line import canonical
from cacse_trainer.settings.flags import FILE
from cacse_trainer.settings.recipes import RecipeParser

TITLES = {"options": "settings", "positional arguments": "what"}


def described() -> dict[str, Any]:
    """What the file holds: by command what it does, its flags by group with what they take, and other spellings."""
    return {command: describe(command, parser_of(command)) for command in COMMANDS}


def describe(command: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The flags of a command, but those that its training inherits from transformers as they are."""
    kinds = parser.dataclass_types if isinstance(parser, RecipeParser) else ()
    trainings = [kind for kind in kinds if issubclass(kind, TrainingArguments)]
    ours = [base for kind in trainings for base in kind.__mro__ if base.__module__.startswith("cacse_trainer.")]
    own = {name for base in ours for name in vars(base).get("__annotations__", {})}
    theirs = {name for kind in trainings for name in TrainingArguments.__dataclass_fields__} - own
    groups: dict[str, list[list[str]]] = {}
    also, seen, needed = [], set(), []
    for group in parser._action_groups:
        for action in group._group_actions:
            if isinstance(action, argparse._HelpAction) or action.dest in theirs:
                continue
            names = [name for name in action.option_strings if canonical(name) == name]
            if action.dest in seen:
                also += names
                continue
            seen.add(action.dest)
            also += names[1:]
            shown = names[0] if names else action.dest
            if action.required:
                needed.append(f"{shown} {takes(action)}".strip() if names else shown.upper())
            title = TITLES.get(str(group.title), str(group.title))
            groups.setdefault(title, []).append([shown, takes(action), what(action)])
    usage = " ".join([command, *needed, "[--config RECIPE] [--setting value …]" if trainings else "[options]"])
    if "output" in groups:
        groups["output"] = groups.pop("output")  # last
    return {
        "usage": usage,
        "what": parser.description or "",
        "epilog": parser.epilog or "",
        "inherits": bool(trainings),
        "groups": groups,
        "also": also,
    }


def takes(action: argparse.Action) -> str:
    """The values of a flag, for a person."""
    if action.nargs == 0 or not action.option_strings:
        return ""
    if isinstance(action.default, bool) and action.nargs == "?":
        return "[true|false]"
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    value = str(action.metavar or "|".join(map(str, action.choices or ())) or action.dest.split("_")[-1].upper())
    return f"{value} [...]" if action.nargs in ("+", "*") else value


def what(action: argparse.Action) -> str:
    """What a flag does, with its default where the text does not say it."""
    text = " ".join((action.help or "").split()).replace("%%", "%")
    shown = action.default not in (None, False, "", [], argparse.SUPPRESS) and "efault" not in text
    default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
    return f"{text} (default: {default})" if shown else text


def text() -> str:
    """The file's text: a line a flag, so that a change of one is a change of a line."""
    commands = []
    for command, told in described().items():
        groups = told.pop("groups")
        lines = [f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in told.items()]
        for title, flags in groups.items():
            shown = ",\n".join(f"   {json.dumps(flag, ensure_ascii=False)}" for flag in flags)
            lines.append(f"  {json.dumps(title)}: [\n{shown}\n  ]")
        place = len(told)
        inside = ",\n".join(lines[:place]) + ',\n "groups": {\n' + ",\n".join(lines[place:]) + "\n }"
        commands.append(f"{json.dumps(command)}: {{\n{inside}\n}}")
    return "{\n" + ",\n".join(commands) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
