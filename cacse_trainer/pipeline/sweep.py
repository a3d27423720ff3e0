"""A sweep: one recipe trained with several seeds and a grid of settings, a process and a folder each run.

Several runs may go at once, each with a GPU of its own; see `run_stages`.
"""

import hashlib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cacse_trainer.errors import UserError
from cacse_trainer.pipeline.stages import Stage
from cacse_trainer.settings.command_line import is_secret

LONGEST_NAME = 40


@dataclass
class SweepRun:
    """One run of a sweep.

    Args:
        stage: its settings, command and folder.
        point: the values of the grid's fields.
        seed: its seed.
    """

    stage: Stage
    point: dict[str, Any]
    seed: int


def parse_grid(entries: Sequence[str]) -> dict[str, list[Any]]:
    """``field=value,value`` each → the values by field, as YAML reads them (a list value in brackets).

    Raises:
        UserError: no values, or a field given twice.
    """
    grid: dict[str, list[Any]] = {}
    for entry in entries:
        field, separator, values = entry.partition("=")
        field = field.replace("-", "_")
        if is_secret(field):
            raise UserError(f"--grid {field}: a secret is no setting to try; give --set {field}=VALUE")
        try:
            found = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError as error:
            raise UserError(f"--grid {entry}: cannot be read; give FIELD=VALUE,VALUE") from error
        if not separator or not re.fullmatch(r"[\w-]+", field) or not found:
            raise UserError(f"--grid {entry}: give FIELD=VALUE,VALUE")
        if field in grid or field in ("seed", "output_dir"):
            raise UserError(f"--grid {field}: " + ("is given twice" if field in grid else "use --seeds, --output_dir"))
        grid[field] = found
    return grid


def sweep_runs(
    config: str,
    command: str,
    root: Path,
    *,
    seeds: Sequence[int],
    grid: Mapping[str, Sequence[Any]],
    settings: Mapping[str, Any],
) -> list[SweepRun]:
    """Every point of the grid with every seed, the seeds of a point one after the other.

    Args:
        config: the recipe.
        command: ``train`` or ``distill``.
        root: the sweep's folder.
        seeds, grid: what varies.
        settings: what all runs have instead of the recipe's.

    Raises:
        UserError: two runs would be the same.
    """
    runs = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        for seed in seeds:
            name = "_".join([*(f"{field}-{_short(value)}" for field, value in point.items()), f"seed-{seed}"])
            stage = Stage(name, command, {"config": config, **settings, **point, "seed": seed}, root / name)
            runs.append(SweepRun(stage, point, seed))
    names = [run.stage.name for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"sweep: the run {twice} is asked for twice; give each seed and each value once")
    return runs


def slots(parallel: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """The variables of each of the runs at once.

    Args:
        parallel: how many at once.
        gpus: each sees one, by turns, or the trainer would spread each batch over all; none: they compute on the CPU,
            its cores shared.
    """
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": str(gpus[slot % len(gpus)])} for slot in range(parallel)]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // parallel))
    return [{"OMP_NUM_THREADS": threads} if parallel > 1 else {}] * parallel


def _short(value: Any) -> str:
    """A value as part of a folder's name; where something had to go, with a few letters of its hash."""
    text = str(value)
    safe = re.sub(r"[^\w.+-]+", "_", text.rpartition("/")[2])[-LONGEST_NAME:]
    return safe if safe == text else f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
