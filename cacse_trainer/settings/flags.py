"""Help, and the flags of every command, without the libraries: they would take seconds to say a line.

``flags.json`` holds our own flags; ``scripts/write_flags.py`` writes it from the commands' parsers, and a test compares
it with them. The fields that a training inherits from transformers are read from the installed version's source.
"""

import ast
import importlib.util
import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cacse_trainer.errors import UserError
from cacse_trainer.settings.command_line import canonical, refuse_unknown
from cacse_trainer.settings.essentials import ESSENTIALS, FORMER, WITHOUT_EFFECT
from cacse_trainer.settings.resources import find_recipe, recipes_for

FILE = Path(__file__).with_name("flags.json")
Flag = tuple[str, str, str]
"""A flag, what it takes, and what it does."""
COLUMN = 38
BY_SET = {
    "sweep": "--set {name}={value} for all runs, or --grid {name}=V,V for one a value",
    "pipeline": "--set common.{name}={value} for all trainings, or STAGE.{name}={value} for one",
}
"""Commands that train by others, and how a setting of theirs is given."""


@cache
def _described() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


@cache
def inherited() -> dict[str, Flag]:
    """The fields of the installed transformers' `TrainingArguments`, by name, read from their source."""
    spec = importlib.util.find_spec("transformers")
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise UserError("the package transformers is not installed; pip install transformers")
    tree = ast.parse((Path(folders[0]) / "training_args.py").read_text(encoding="utf-8"))
    found: dict[str, Flag] = {}
    for kind in tree.body:
        if isinstance(kind, ast.ClassDef) and kind.name == "TrainingArguments":
            for node in kind.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                    found[node.target.id] = _field(node)
    return found


def _field(node: ast.AnnAssign) -> Flag:
    name, hint = ast.unparse(node.target), ast.unparse(node.annotation)
    given = {word.arg: word.value for word in node.value.keywords} if isinstance(node.value, ast.Call) else {}
    metadata = given.get("metadata")
    told = ""
    if isinstance(metadata, ast.Dict):
        for key, value in zip(metadata.keys, metadata.values, strict=True):
            if ast.unparse(key or value) == "'help'" and isinstance(value, ast.Constant):
                told = " ".join(str(value.value).split()).replace("%%", "%")
    default = ast.unparse(given["default"]) if "default" in given else "None"
    plain = hint.replace(" | None", "").replace("None | ", "")
    takes = "[true|false]" if plain == "bool" else "V [V ...]" if "list[" in plain else name.split("_")[-1].upper()
    return f"--{name}", takes, told + (f" (default: {default})" if default not in ("None", "False", "''") else "")


def known_flags(command: str) -> list[str]:
    """Every flag of a command, as it is spelt with underscores."""
    told = _described()[command]
    known = [flag for group in told["groups"].values() for flag, *_ in group if flag.startswith("-")] + told["also"]
    if told["inherits"]:
        known += [spelt for name in inherited() for spelt in (f"--{name}", f"--no_{name}")]
    return [*known, "--help", "-h"]


def _takes_words(command: str) -> bool:
    return any(not flag.startswith("-") for group in _described()[command]["groups"].values() for flag, *_ in group)


def check_words(command: str, arguments: Sequence[str]) -> None:
    """Refuse a misspelt flag or recipe; whatever passes is judged by the command itself.

    Raises:
        UserError: with the nearest known ones, see `refuse_unknown`.
    """
    known, unknown = known_flags(command), []
    if arguments and not arguments[0].startswith("-") and not _takes_words(command):
        raise UserError(f"command line: {arguments[0]!r} follows no flag (cacse-trainer {command} --help)")
    for place, word in enumerate(arguments):
        name, equals, value = canonical(word).partition("=")
        if word == "--":
            break
        if not name.startswith("--") or any(letter.isspace() for letter in name):
            continue
        if name not in known:
            unknown.append(name)
        if name == "--config":
            recipe = value if equals else next(iter(arguments[place + 1 :]), "-")
            if not recipe.startswith("-"):
                find_recipe(recipe)
    if unknown:
        refuse_unknown(unknown, known, _settings_of_runs(command, unknown))


def _settings_of_runs(command: str, flags: Sequence[str]) -> dict[str, str]:
    """Of the flags those of the trainings that a command runs, and how each is given there."""
    if command not in BY_SET:
        return {}
    theirs = {flag for one in ("train", "distill") for flag in known_flags(one)}
    found = {}
    for flag in theirs.intersection(flags) - {"--seed"}:  # a sweep's own --seeds is nearest
        switched_off = flag.startswith("--no_")
        name, value = flag.removeprefix("--no_" if switched_off else "--"), "false" if switched_off else "VALUE"
        found[flag] = BY_SET[command].format(name=name, value=value)
    return found


def help_of(command: str, everything: bool = False) -> str:
    """A command's help: the settings that matter, where there are too many, else (or with ``everything``) all."""
    told = _described()[command]
    columns = max(80, min(shutil.get_terminal_size((112, 24)).columns, 120))
    lines = textwrap.wrap(f"usage: cacse-trainer {told['usage']}", columns, subsequent_indent="  ")
    lines += ["", *(line for paragraph in told["what"].split("\n") for line in _wrapped(paragraph, columns, ""))]
    if command in ESSENTIALS and not everything:
        for title, examples in ESSENTIALS[command].items():
            lines += [
                "",
                f"{title}:",
                *(line for flag, what in examples.items() for line in _entry(flag, what, columns)),
            ]
        lines += [
            "",
            told["epilog"].rstrip(),
            "",
            f"cacse-trainer {command} --help all: every setting, and the recipes.",
        ]
        return "\n".join(lines) + "\n"
    for title, flags in _groups(command):
        lines += ["", f"{title}:"]
        for flag, takes, what in flags:
            lines += _entry(f"{flag} {takes}".rstrip(), what, columns)
    if command in ESSENTIALS:
        lines += ["", "recipes:", *_wrapped(", ".join(recipes_for(command)), columns)]
    return "\n".join([*lines, "", told["epilog"].rstrip()]).rstrip() + "\n"


def _groups(command: str) -> Iterator[tuple[str, list[Flag]]]:
    told = _described()[command]
    shown = set()
    for title, group in told["groups"].items():
        kept = [(flag, takes, what) for flag, takes, what in group if flag.removeprefix("--") not in WITHOUT_EFFECT]
        shown |= {flag.removeprefix("--") for flag, *_ in group}
        yield title, kept
    if told["inherits"]:
        fields = inherited()
        passed = {f"{old}{end}" for old, new in FORMER.items() if new in fields for end in ("", "_kwargs")}
        left = [flag for name, flag in fields.items() if name not in {*shown, *WITHOUT_EFFECT, *passed}]
        yield f"of transformers {version('transformers')}, as its TrainingArguments", left


def _entry(flag: str, what: str, columns: int) -> list[str]:
    lines = textwrap.wrap(what, columns - COLUMN - 2) or [""]
    first = [f"  {flag:<{COLUMN - 2}}  {lines[0]}".rstrip()] if len(flag) <= COLUMN - 2 else [f"  {flag}"]
    rest = lines[1:] if len(flag) <= COLUMN - 2 else lines
    return [*first, *(f"{'':<{COLUMN + 2}}{line}" for line in rest)]


def _wrapped(text: str, columns: int, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False) or [""]
