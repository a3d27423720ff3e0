"""Recipes: a YAML file and the command line's flags become the argument dataclasses; flags win.

A recipe holds any field of the dataclasses, flat. Unknown keys and flags are errors that name the nearest known one.
Values go through the same conversion as flags (YAML reads ``3e-5`` as a string).
"""

from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments

from cacse_trainer.errors import UserError
from cacse_trainer.settings.distillation import EncoderChoice
from cacse_trainer.settings.resources import CHECKOUT, INSTALLED, nearest


class _Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults beside the flags, and the examples as they were written."""


class RecipeParser(HfArgumentParser):
    """`HfArgumentParser` whose errors are one line, and which takes no abbreviations."""

    def __init__(self, dataclass_types: Any, **kwargs: Any):
        super().__init__(dataclass_types, allow_abbrev=False, formatter_class=_Help, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        raise UserError(f"command line: {message}")


def recipe_folders() -> list[Path]:
    """Where named recipes are looked for: the checkout's ``configs``, then the installed package's."""
    folders = (CHECKOUT / "configs", INSTALLED / "configs")
    return [folder for folder in folders if folder.is_dir()]


def recipe_names() -> list[str]:
    """Names of the recipes that ``--config`` takes, such as ``cacse/bert_base``."""
    names = {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in recipe_folders()
        for path in folder.rglob("*.yaml")
    }
    return sorted(name for name in names if not name.startswith("accelerate/"))


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by name.

    Raises:
        UserError: neither exists.
    """
    if Path(name).is_file():
        return Path(name)
    for folder in recipe_folders():
        candidate = folder / f"{name.removesuffix('.yaml')}.yaml"
        if candidate.is_file():
            return candidate
    known = recipe_names()
    raise UserError(f"no recipe {name!r}: neither a file nor one of {', '.join(known)}{nearest(name, known)}")


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which would take the last of two equal keys without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
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
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"recipe {path}: {' '.join(str(error).split())}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"recipe {path}: must be a mapping of field: value, got {type(found).__name__}")
    return {str(name): value for name, value in found.items()}


MAPPINGS = {name for name, hint in get_type_hints(TrainingArguments).items() if dict in (hint, *get_args(hint))}
"""Fields whose value may be a mapping, such as ``lr_scheduler_kwargs``."""


def _admits_none(dataclass_types: Sequence[type]) -> dict[str, bool]:
    """Which fields may be null: those whose type says so (read anew: HfArgumentParser rewrites the fields' types)."""
    return {
        name: type(None) in get_args(hint) for kind in dataclass_types for name, hint in get_type_hints(kind).items()
    }


def _converted(value: Any, action: Action, where: str, optional: bool = True) -> Any:
    """A YAML value, converted as the flag would be."""
    if value is None:
        if not optional:
            raise UserError(f"{where}: takes a value, got null; leave the key out for its default")
        return None
    if value is False and action.choices is not None and "no" in action.choices:
        value = "no"  # which YAML reads as false
    is_list = action.nargs in ("+", "*")
    if isinstance(value, list) != is_list and not (is_list and not isinstance(value, dict)):
        raise UserError(f"{where}: takes {'a list' if is_list else 'one value'}, got {value!r}")
    if isinstance(value, dict) and action.dest in MAPPINGS:
        return value

    def one(item: Any) -> Any:
        if isinstance(item, dict) and action.type is EncoderChoice:
            try:
                return EncoderChoice(item)
            except ArgumentTypeError as error:
                raise UserError(f"{where}: {error}") from error
        if isinstance(item, (list, dict)):
            raise UserError(f"{where}: takes plain values, got {item!r}")
        if isinstance(item, float) and item.is_integer() and action.type is int:
            item = int(item)
        try:
            converted = action.type(str(item)) if callable(action.type) else str(item)
        except (ValueError, TypeError) as error:
            kind = getattr(action.type, "__name__", "value")
            raise UserError(f"{where}: {item!r} is no {kind}") from error
        except Exception as error:  # argparse.ArgumentTypeError of transformers' boolean reader
            raise UserError(f"{where}: {error}") from error
        if action.choices is not None and converted not in action.choices:
            raise UserError(f"{where}: {item!r} is none of {', '.join(map(str, action.choices))}")
        return converted

    if is_list:
        return [one(item) for item in (value if isinstance(value, list) else [value])]
    return one(value)


def recipe_parser(dataclass_types: Sequence[type], *, prog: str, description: str, epilog: str = "") -> RecipeParser:
    """The parser of a command with recipes: the dataclasses' fields, ``--config``, ``--quiet`` and ``--json``."""
    parser = RecipeParser(list(dataclass_types), prog=prog, description=description, epilog=epilog)
    parser.add_argument("--config", metavar="RECIPE", help=f"a YAML file, or one of {', '.join(recipe_names())}")
    output = parser.add_argument_group("output")
    output.add_argument("--quiet", action="store_true", help="warnings, errors and the result only; no progress")
    output.add_argument("--json", action="store_true", help="the result as one JSON object on standard output")
    return parser


def parse_run(
    dataclass_types: Sequence[type], arguments: Sequence[str], *, prog: str, description: str, epilog: str = ""
) -> tuple[Any, ...]:
    """``--config RECIPE`` and flags → one instance of each dataclass, and the recipe's name last.

    Args:
        dataclass_types: the dataclasses whose fields are the keys of the recipe and the flags.
        arguments: the command line after the command's name.
        prog, description, epilog: for ``--help``.

    Raises:
        UserError: an unknown key or flag, a value of the wrong type, or a combination that a dataclass refuses.
    """
    parser = recipe_parser(dataclass_types, prog=prog, description=description, epilog=epilog)
    known_actions = {action.dest: action for action in parser._actions}
    config_parser = RecipeParser([], add_help=False)
    config_parser.add_argument("--config")
    config = config_parser.parse_known_args(list(arguments))[0].config
    if config is not None and not {"-h", "--help"} & set(arguments):
        path = find_recipe(config)
        defaults = {}
        for name, value in read_recipe(path).items():
            if name not in known_actions or name in ("config", "help", "quiet", "json"):
                raise UserError(f"recipe {path}: unknown key {name!r}{nearest(name, list(known_actions))}")
            defaults[name] = _converted(
                value, known_actions[name], f"recipe {path}: {name}", _admits_none(dataclass_types).get(name, True)
            )
            known_actions[name].required = False
        parser.set_defaults(**defaults)
    try:
        *parsed, rest, unknown = parser.parse_args_into_dataclasses(
            args=list(arguments), return_remaining_strings=True, look_for_args_file=False
        )
    except UserError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"settings: {' '.join(str(error).split())}") from error
    if unknown:
        flags = [f"--{name}" for name in known_actions]
        raise UserError(f"command line: unknown argument {unknown[0]!r}{nearest(unknown[0], flags)}")
    if rest.quiet:
        for group in parsed:
            if hasattr(group, "disable_tqdm"):
                group.disable_tqdm = True
    return (*parsed, rest.config)
