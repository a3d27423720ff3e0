#!/usr/bin/env python
"""Write ``docs/reference/settings.md``: every setting of the trainings, with its default, from the commands' parsers.

    python scripts/write_settings.py

To be called when a setting, its help or its default has changed; ``tests/test_docs.py`` says so.
"""

import argparse
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from cacse_trainer.cli.completion import parser_of
from cacse_trainer.settings.command_line import canonical
from cacse_trainer.settings.essentials import WITHOUT_EFFECT

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "settings.md"
TITLES = {
    ("train", "model"): "Model and objective",
    ("train", "data"): "Text, dev sets, length",
    ("train", "settings"): "The run",
    ("train", "output"): "Output",
    ("distill", ""): "Distillation",
    ("adapt", ""): "Adaptation",
    ("instruct", ""): "Teaching a language model",
}
"""Sections: a command and the group of its flags; ``""``: what the commands before it have not, or have otherwise."""
HEAD = """# Settings

Every setting of `cacse-trainer train`, `distill`, `adapt` and `instruct`, with its default: a flag on the command line,
a key of a [recipe](recipes.md), a field of the settings classes in Python. `cacse-trainer train --help` shows the
thirty that matter most. `–` is nothing; `scripts/write_settings.py` writes this page.
"""
TABLE = ("| setting | what | default |", "|---|---|---|")


def text() -> str:
    """The page."""
    seen: set[tuple[str, str]] = set()
    sections, theirs = dict[str, list[str]](), list[str]()
    for command in ("train", "distill", "adapt", "instruct"):
        for title, action, own in actions(command):
            place = (command, title) if (command, title) in TITLES else (command, "")
            line = row(action)
            if (action.dest, line) in seen:
                continue
            seen.add((action.dest, line))
            if own:
                sections.setdefault(TITLES[place], []).append(line)
            elif command == "train":
                theirs.append(line)
    shown = [HEAD, *("\n".join([f"## {title}\n", *TABLE, *sections[title], ""]) for title in TITLES.values())]
    shown.append("\n".join([heading(), *TABLE, *theirs, ""]))
    return "\n".join(shown)


def heading() -> str:
    """Of the last section, which is transformers' own."""
    return f"## Of transformers {version('transformers')}, as its TrainingArguments\n"


def actions(command: str) -> Iterator[tuple[str, argparse.Action, bool]]:
    """A training's flags with their group's title, each once, and whether the setting is ours."""
    parser: Any = parser_of(command)
    trainings = [kind for kind in parser.dataclass_types if issubclass(kind, TrainingArguments)]
    ours = [base for kind in trainings for base in kind.__mro__ if base.__module__.startswith("cacse_trainer.")]
    own = {name for base in ours for name in vars(base).get("__annotations__", {})}
    inherited = {name for kind in trainings for name in TrainingArguments.__dataclass_fields__} - own
    seen = {"help", "config", *WITHOUT_EFFECT}
    for group in parser._action_groups:
        for action in group._group_actions:
            if action.option_strings and action.dest not in seen:
                seen.add(action.dest)
                title = "settings" if group.title == "options" else str(group.title)
                yield title, action, action.dest not in inherited


def row(action: argparse.Action) -> str:
    """A setting's line of a table."""
    name = next(name for name in action.option_strings if canonical(name) == name).removeprefix("--")
    told = " ".join((action.help or "").replace("%%", "%").split())
    told = re.sub(r" ?\(default: [^()]*\)$", "", told)
    for character in "\\*<>|":
        told = told.replace(character, f"\\{character}")
    choices = ", ".join(f"`{choice}`" for choice in action.choices or ())
    told = f"{told} One of {choices}." if choices and len(action.choices or ()) < 12 else told
    return f"| `{name}` | {told.strip()} | {default_of(action)} |"


def default_of(action: argparse.Action) -> str:
    """A default as it is typed."""
    value = action.default
    if value in (None, argparse.SUPPRESS) or value in ([], "", {}):
        return "–"
    typed = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"`{typed.lower() if isinstance(value, bool) else typed}`"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
