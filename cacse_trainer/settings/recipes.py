"""Recipes: a YAML file and the command line's flags become the argument dataclasses; flags win.

A recipe holds any field of the dataclasses, flat. Unknown keys and flags are errors that name the nearest known one.
Values go through the same conversion as flags (YAML reads ``3e-5`` as a string).
"""

import sys
from argparse import Action, ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.files import keep_secret
from cacse_trainer.settings.command_line import OneLineParser, is_secret, number
from cacse_trainer.settings.distillation import EncoderChoice
from cacse_trainer.settings.flags import help_of
from cacse_trainer.settings.resources import find_recipe, nearest


class RecipeParser(OneLineParser, HfArgumentParser):
    """The parser of a command with recipes: the fields of dataclasses, and ``--config``."""

    def __init__(self, dataclass_types: Sequence[type], **kwargs: Any):
        super().__init__(dataclass_types, **kwargs)
        self.add_argument("--config", metavar="RECIPE", help="a YAML file, or the name of a recipe")

    def format_help(self) -> str:
        """The settings that matter, as ``cacse-trainer COMMAND --help`` tells them without the libraries."""
        return help_of(self.prog.split()[-1])

    def field_actions(self) -> dict[str, Action]:
        """How each field is read from words; of a switch's two flags the one that takes a value."""
        names = {field.name for kind in self.dataclass_types for field in fields(kind)}
        return {action.dest: action for action in reversed(self._actions) if action.dest in names}


@dataclass(frozen=True)
class Parsed:
    """What a command line and its recipe say.

    Args:
        groups: an instance of each dataclass.
        recipe: the recipe's name or path, if any.
        flags: the fields that the command line gives.
        from_recipe: those that the recipe gives; what is dropped for a flag's sake is taken out (`runs.methods`).
        command: the words that do the same anew, without secrets (see `OneLineParser.command`).
    """

    groups: tuple[Any, ...]
    recipe: str | None = None
    flags: list[str] = field(default_factory=list)
    from_recipe: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def given(self) -> list[str]:
        """What recipe and command line give; all else is a default."""
        return list(dict.fromkeys([*self.from_recipe, *self.flags]))


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which would take the last of two equal keys without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no plain word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_recipe(path: Path) -> dict[str, Any]:
    """The fields of a recipe file.

    Raises:
        UserError: the file is no YAML mapping.
    """
    with user_errors(f"recipe {path}", yaml.YAMLError, RecursionError):
        found = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"recipe {path}: must be a mapping of field: value, got {type(found).__name__}")
    return {str(name): value for name, value in found.items()}


def texts_in(value: Any) -> list[str]:
    """Every text in a value of a recipe, however deep."""
    if isinstance(value, (dict, list)):
        return [text for item in (value.values() if isinstance(value, dict) else value) for text in texts_in(item)]
    return [value] if isinstance(value, str) else []


def _converted(value: Any, action: Action, where: str, hint: Any) -> Any:
    """A YAML value, converted as the flag would be; null and mappings where the field's type has them."""
    if value is None:
        if type(None) not in get_args(hint):
            raise UserError(f"{where}: takes a value, got null; leave the key out for its default")
        return None
    if value is False and action.choices is not None and "no" in action.choices:
        value = "no"  # which YAML reads as false
    is_list = action.nargs in ("+", "*")
    if isinstance(value, list) != is_list and not (is_list and not isinstance(value, dict)):
        raise UserError(f"{where}: takes {'a list' if is_list else 'one value'}, got {value!r}")
    if isinstance(value, dict) and dict in (hint, *get_args(hint)):
        return value

    def one(item: Any) -> Any:
        is_choice = isinstance(item, dict) and action.type is EncoderChoice
        if isinstance(item, (list, dict)) and not is_choice:
            raise UserError(f"{where}: takes plain values, got {item!r}")
        if isinstance(item, float) and item.is_integer() and action.type is int:
            item = int(item)
        read: Any = number if action.type is float else action.type if callable(action.type) else str
        try:
            converted = read(item if is_choice else str(item))
        except (ValueError, TypeError) as error:
            kind = getattr(action.type, "__name__", "value")
            raise UserError(f"{where}: {item!r} is no {kind}") from error
        except ArgumentTypeError as error:
            raise UserError(f"{where}: {error}") from error
        if action.choices is not None and converted not in action.choices:
            raise UserError(f"{where}: {item!r} is none of {', '.join(map(str, action.choices))}")
        return converted

    if is_list:
        return [one(item) for item in (value if isinstance(value, list) else [value])]
    return one(value)


def parse_run(parser: RecipeParser, arguments: Sequence[str]) -> Parsed:
    """``--config RECIPE`` and flags → the settings, and what gave them.

    Args:
        parser: of the dataclasses whose fields are the keys of the recipe and the flags.
        arguments: the command line after the command's name.

    Raises:
        UserError: an unknown key or flag, a value of the wrong type, or a combination that a dataclass refuses.
    """
    hints = {name: hint for kind in parser.dataclass_types for name, hint in get_type_hints(kind).items()}
    actions = parser.field_actions()
    told = parser.parse_args(arguments)
    flags = list(dict.fromkeys(name for name, _ in parser.given(arguments) if name in actions))
    values: dict[str, Any] = {}
    if told.config is not None:
        path = find_recipe(told.config)
        for name, value in read_recipe(path).items():
            if name not in actions:
                raise UserError(f"recipe {path}: unknown key {name!r}{nearest(name, list(actions))}")
            if is_secret(name):
                for text in texts_in(value):
                    keep_secret(text)
            values[name] = _converted(value, actions[name], f"recipe {path}: {name}", hints[name])
    from_recipe = list(values)
    values.update({name: getattr(told, name) for name in flags})
    every, saved = values.get("eval_steps"), values.get("save_steps")
    if "eval_steps" in flags and "save_steps" in from_recipe and "save_steps" not in flags and every and saved % every:
        del values["save_steps"]  # the best step must have been saved: it follows eval_steps, as without a recipe
        from_recipe.remove("save_steps")
    if told.quiet or not sys.stderr.isatty():
        values["disable_tqdm"] = True
    with user_errors("settings", TypeError, ImportError):
        groups = parser.parse_dict(values)
    return Parsed(groups, told.config, flags, from_recipe, parser.command(arguments))
