"""A pipeline's stages: read from its recipe, turned into command lines, and hashed with everything they read.

    output_dir: runs/small
    common:                      # settings of all training stages, under their own
      train_file: sample:sentences.txt
    stages:
      tower_a: {config: simcse/minilm, seed: 1}
      joint: {config: cacse/minilm, tower_a: stage:tower_a/export/encoder}

``stage:NAME/REST`` is a path in the output of an earlier stage. A stage's hash covers its settings, the contents of the
files and folders that they name, and the hashes of the stages that they refer to.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.files import delete_folder, foreign, keep_secret, sha256_of
from cacse_trainer.runs.folder import clear_run, foreign_in_exports, foreign_in_stage
from cacse_trainer.settings.command_line import hand_over, is_secret
from cacse_trainer.settings.distillation import EncoderChoice
from cacse_trainer.settings.recipes import read_recipe, texts_in
from cacse_trainer.settings.resources import find_recipe, nearest, resolve_resource

STAGE = "stage:"
FILES = (".log", ".json", ".html", ".md")
"""Endings of what lies beside the stages' folders: their logs, the record, the reports."""
COMMANDS = {name: name for name in ("pairs", "distill", "evaluate", "export")}
COMMANDS |= dict.fromkeys(("tower_a", "tower_b", "joint"), "train")
"""The commands of the stages that need not name theirs."""
TRAINING = frozenset({"train", "distill"})
WRITES = {
    "pairs": ("pairs.csv", "pairs.csv.partial", "pairs.csv.progress.json"),
    "evaluate": ("results.json", "tables.*", "scores.png", "*.npz"),
}
"""The names of what these commands leave in their folder; trainings and exports are known by more than that."""
PROOF = {
    "pairs": "pairs.csv",
    "train": "training_report.json",
    "distill": "training_report.json",
    "evaluate": "results.json",
}
"""What a finished stage leaves in its folder; an export leaves folders."""


@dataclass
class Stage:
    """One stage.

    Args:
        name: of the stage and of its folder.
        command: of `cacse-trainer`.
        settings: its flags by name, references not yet resolved; among them ``config``, a recipe.
        folder: its output.
        needs: the stages that it refers to.
        processes: for training: several go through torch's launcher.

    Raises:
        UserError: the name would lead out of the output folder.
    """

    name: str
    command: str
    settings: dict[str, Any]
    folder: Path
    needs: list[str] = field(default_factory=list)
    processes: int = 1

    def __post_init__(self) -> None:
        if not self.name or re.search(r"^\.|[/\\:\0]", self.name) or self.name.endswith(FILES):
            raise UserError(
                f"stage {self.name!r}: its name is that of a folder in the output folder; use letters, digits, _ and -"
            )

    def effective_settings(self) -> dict[str, Any]:
        """The recipe's settings with the stage's own on top."""
        config = self.settings.get("config")
        base = read_recipe(find_recipe(config)) if config is not None else {}
        return {**base, **{name: value for name, value in self.settings.items() if name != "config"}}

    def flags(self, root: Path) -> list[str]:
        """The command's flags, with references as paths below ``root``."""
        words: list[str] = []
        for name, value in {**self.settings, "output_dir": str(self.folder)}.items():
            value = _resolved(value, root)
            if value is None or (isinstance(value, bool) and self.command not in TRAINING):
                words += [f"--{name}"] if value else []
            elif isinstance(value, list) and name == "model":  # evaluate takes several, each with its flag
                words += [word for item in value for word in (f"--{name}", _word(item))]
            else:
                words += [f"--{name}", *(map(_word, value) if isinstance(value, list) else [_word(value)])]
        return words

    def fingerprint(self, earlier: Mapping[str, str]) -> str:
        """Hash of the settings and of everything that they name; ``earlier``: the hashes of the stages before."""
        settings = self.effective_settings()
        settings.pop("output_dir", None)
        digest = hashlib.sha256(repr((self.command, sorted(settings.items(), key=lambda item: item[0]))).encode())
        for name in self.needs:
            digest.update(earlier[name].encode())
        for text in texts_in(settings):
            digest.update(_content(text).encode())
        return digest.hexdigest()[:24]

    @property
    def trains(self) -> bool:
        """Whether its folder is that of a run."""
        return self.command in TRAINING

    def foreign(self) -> list[Path]:
        """What lies in the folder and was not left by the command."""
        if self.trains:
            return foreign_in_stage(self.folder)
        return (
            foreign_in_exports(self.folder) if self.command == "export" else foreign(self.folder, WRITES[self.command])
        )

    def clear(self) -> None:
        """Delete what the command left in the folder, in which there is nothing else."""
        (clear_run if self.trains else delete_folder)(self.folder)

    def is_finished(self) -> bool:
        """Whether the folder holds what the command leaves last."""
        if self.command in PROOF:
            return (self.folder / PROOF[self.command]).is_file()
        return any(self.folder.glob("*/README.md"))


def read_stages(recipe: Path, output_dir: str | None, changes: Mapping[str, Any]) -> tuple[Path, list[Stage]]:
    """A pipeline's output folder and stages.

    Args:
        recipe: the YAML file.
        output_dir: instead of the recipe's.
        changes: values by ``stage.field`` or ``common.field``.

    Raises:
        UserError: unknown keys or commands, or a reference to no earlier stage.
    """
    fields = read_recipe(recipe)
    unknown = set(fields) - {"output_dir", "common", "stages"}
    if unknown or not isinstance(fields.get("stages"), dict):
        what = f"unknown key {sorted(unknown)[0]!r}" if unknown else "no stages"
        raise UserError(f"pipeline {recipe}: {what}; a pipeline has output_dir, common and stages")
    groups: dict[str, dict[str, Any]] = {}
    for name, settings in {"common": fields.get("common"), **fields["stages"]}.items():
        if settings is not None and not isinstance(settings, dict):
            what = "common" if name == "common" else f"stage {name}"
            raise UserError(f"pipeline {recipe}: {what} must be a mapping of settings, got {settings!r}")
        groups[str(name)] = {str(field): value for field, value in (settings or {}).items()}
    if not isinstance(fields.get("output_dir"), str | None):
        raise UserError(f"pipeline {recipe}: output_dir must be a folder's name, got {fields['output_dir']!r}")
    for target, value in changes.items():
        group, separator, setting = target.partition(".")
        if not separator or group not in groups:
            raise UserError(f"--set {target}: give STAGE.FIELD=VALUE{nearest(group, list(groups))}")
        groups[group][setting] = value
    for settings in groups.values():
        hand_over(settings)
    root = Path(output_dir or fields.get("output_dir") or "runs/pipeline")
    common = groups.pop("common")
    stages: list[Stage] = []
    for name, own in groups.items():
        command = own.pop("command", COMMANDS.get(name))
        if command not in COMMANDS.values():
            raise UserError(
                f"pipeline {recipe}: stage {name} needs command: one of {', '.join(sorted(set(COMMANDS.values())))}"
            )
        processes = own.pop("processes", 1)
        if not isinstance(processes, int) or processes < 1:
            raise UserError(f"pipeline {recipe}: stage {name}: processes must be a number from 1, got {processes!r}")
        settings = {**common, **own} if command in TRAINING else own
        needs = _references(settings)
        for needed in needs:
            if needed not in [stage.name for stage in stages]:
                raise UserError(f"pipeline {recipe}: stage {name} refers to {STAGE}{needed}, which is no earlier stage")
        stages.append(Stage(name, command, settings, root / name, needs, processes))
    return root, stages


def parse_change(text: str) -> tuple[str, Any]:
    """``stage.field=value`` → the target and the value as YAML reads it.

    Raises:
        UserError: there is no field or no value.
    """
    target, separator, value = text.partition("=")
    if not separator or not re.fullmatch(r"([^.]+\.)?[\w-]+", target):
        raise UserError(f"--set {text if not separator else target}: give STAGE.FIELD=VALUE (of a sweep: FIELD=VALUE)")
    group, dot, setting = target.rpartition(".")
    if is_secret(target):
        keep_secret(value)
    with user_errors(f"--set {target}: the value is no YAML", yaml.YAMLError, RecursionError):
        return f"{group}{dot}{setting.replace('-', '_')}", yaml.safe_load(value)


def _references(settings: dict[str, Any]) -> list[str]:
    """The stages that texts such as ``stage:tower_a/export``, ``dev=stage:…`` and ``path=stage:…`` refer to."""
    found = []
    for text in texts_in(settings):
        for part in text.split(","):
            place = part.rpartition("=")[2]
            if place.startswith(STAGE):
                found.append(place.removeprefix(STAGE).partition("/")[0])
    return sorted(set(found))


def _resolved(value: Any, root: Path) -> Any:
    """A value with its references as paths; a mapping becomes the text that its flag takes."""
    if isinstance(value, dict):
        return str(EncoderChoice({name: _resolved(item, root) for name, item in value.items()}))
    if isinstance(value, list):
        return [_resolved(item, root) for item in value]
    return value.replace(STAGE, f"{root}/") if isinstance(value, str) and STAGE in value else value


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _content(text: str) -> str:
    """Hash of the file or folder that a text names; nothing for other texts."""
    place = text.rpartition("=")[2] if not Path(text).exists() else text
    if place.startswith(STAGE) or not place:
        return ""
    path = Path(resolve_resource(place)).expanduser()
    if path.is_file():
        return sha256_of(path)
    if path.is_dir() and (path / "config.json").is_file():
        return "".join(sha256_of(file) for file in sorted(path.rglob("*")) if file.is_file())
    return ""
