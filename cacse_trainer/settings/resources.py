"""What ships with the program, recipes too, and what installed packages carry: names to paths; the nearest of names."""

import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from cacse_trainer.errors import UserError

INSTALLED = Path(__file__).resolve().parent.parent
"""The package's own folder."""
CHECKOUT = INSTALLED.parent
"""The checkout, where the package runs from one."""
RECIPES = (CHECKOUT / "configs", INSTALLED / "configs")
"""Where named recipes are looked for: the checkout's, then the installed package's."""
SAMPLE = "sample:"
PACKAGE = "package:"


def nearest(name: str, known: Sequence[str]) -> str:
    """``; did you mean X?`` or nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def resolve_resource(value: str) -> str:
    """``sample:FILE`` and ``package:NAME/FOLDER`` → a path; anything else as it is.

    The package is looked up, not imported: none of its code runs.

    Raises:
        UserError: the package or the file is not there.
    """
    if value.startswith(SAMPLE):
        name = value.removeprefix(SAMPLE)
        for folder in (CHECKOUT / "examples" / "sample", INSTALLED / "sample"):
            if (folder / name).is_file():
                return str(folder / name)
        raise UserError(f"{value}: the shipped sample has no file {name}")
    if value.startswith(PACKAGE):
        package, _, inside = value.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"{value}: the package {package} is not installed; pip install {package.replace('_', '-')}")
        found = Path(spec.submodule_search_locations[0]) / inside
        if not found.exists():
            raise UserError(f"{value}: the package {package} has no {inside}")
        return str(found)
    return value


def public_name(name: str) -> str:
    """A hub id as it is, a local folder by its last part."""
    if name.startswith(PACKAGE):
        return name.removeprefix(PACKAGE).partition("/")[0]
    return Path(name).name if Path(name).exists() else name


def recipe_folders() -> list[Path]:
    """Those of `RECIPES` that are there."""
    return [folder for folder in RECIPES if folder.is_dir()]


def recipe_names() -> list[str]:
    """Names of the recipes that ``--config`` takes, such as ``cacse/bert_base``."""
    names = {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in recipe_folders()
        for path in folder.rglob("*.yaml")
    }
    return sorted(name for name in names if not name.startswith("accelerate/"))


def recipes_for(command: str) -> list[str]:
    """The recipes of a command: those in the folder of its name; for others all that are in none."""
    own = {name: f"{name}/" for name in ("adapt", "distill", "pipeline", "instruct")}
    if command in own:
        return [name for name in recipe_names() if name.startswith(own[command])]
    return [name for name in recipe_names() if not name.startswith(tuple(own.values()))]


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
    close = ", ".join(difflib.get_close_matches(name, recipe_names(), n=3, cutoff=0.0))
    raise UserError(
        f"no recipe {name!r}, and no such file; the nearest are {close} (cacse-trainer train --help all lists them)"
    )
