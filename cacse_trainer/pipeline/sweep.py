"""A sweep: one recipe trained with several seeds and a grid of settings, a process and a folder each run.

The record ``sweep.json`` holds each run's hash of settings and inputs (see `Stage.fingerprint`): finished runs are
skipped, broken ones go on where they stopped. Several runs may go at once, each with a GPU of its own.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cacse_trainer.errors import RunError, UserError
from cacse_trainer.files import write_json
from cacse_trainer.pipeline.runner import command_line, plan
from cacse_trainer.pipeline.stages import Stage
from cacse_trainer.settings.command_line import is_secret

logger = logging.getLogger(__name__)

RECORD = "sweep.json"
LONGEST_NAME = 40
SECONDS_BETWEEN_LOOKS = 0.2


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
        if not separator or not field or not found:
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


def run_sweep(root: Path, runs: Sequence[SweepRun], *, parallel: int, gpus: Sequence[str]) -> dict[str, Any]:
    """Do the runs that are not finished; returns the record.

    Args:
        root: the sweep's folder.
        runs: all of them.
        parallel: how many at once.
        gpus: each of the runs at once sees one, by turns; none: they compute on the CPU, its cores shared.

    Raises:
        UserError: a run's input is wrong (the others are stopped), or its folder holds something else.
        RunError: runs failed otherwise, after the others are done.
    """
    root.mkdir(parents=True, exist_ok=True)
    record = read_sweep(root)
    waiting = []
    for stage, fingerprint, todo in plan([run.stage for run in runs], record):
        if todo == "skip":
            logger.info("%s: finished before, skipped", stage.name)
            continue
        if todo in ("redo", "run") and stage.folder.is_dir() and any(stage.folder.iterdir()):
            raise UserError(
                f"sweep {root}: {stage.name} was made with other settings or inputs; choose another --output_dir, or "
                "--overwrite to do such runs anew"
            )
        waiting.append((stage, fingerprint, todo))
    running: dict[int, _Process] = {}
    failed: list[str] = []
    total, started = len(waiting), 0
    try:
        while waiting or running:
            for slot in range(parallel):
                if slot not in running and waiting:
                    stage, fingerprint, todo = waiting.pop(0)
                    started += 1
                    spent = record.get(stage.name, {}).get("seconds", 0.0)
                    record[stage.name] = {"fingerprint": fingerprint, "seconds": spent, "finished": False}
                    write_json(root / RECORD, record)
                    logger.info("%s: run %d of %d, log in %s", stage.name, started, total, root / f"{stage.name}.log")
                    running[slot] = _Process(stage, root, _environment(slot, parallel, gpus), resume=todo == "resume")
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for slot, process in list(running.items()):
                code = process.popen.poll()
                if code is None:
                    continue
                del running[slot]
                entry = record[process.stage.name]
                entry["seconds"] += time.time() - process.started
                entry["finished"] = code == 0
                write_json(root / RECORD, record)
                if code == 2:
                    raise UserError(f"{process.stage.name}: {process.last_error()}")
                if code != 0:
                    failed.append(process.stage.name)
                    logger.error("%s ended with %d: %s", process.stage.name, code, process.last_error())
                else:
                    logger.info("%s: done in %.0f s", process.stage.name, entry["seconds"])
    finally:
        for process in running.values():  # an interrupted sweep leaves no run behind
            process.popen.terminate()
        for process in running.values():
            process.popen.wait()
            record[process.stage.name]["seconds"] += time.time() - process.started
            write_json(root / RECORD, record)
    if failed:
        raise RunError(f"sweep: {len(failed)} of {total} runs failed: {', '.join(failed)}; their logs are in {root}")
    return record


def read_sweep(root: Path) -> dict[str, Any]:
    """The record of a sweep's folder."""
    path = root / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def forget_changed(root: Path, runs: Sequence[SweepRun]) -> None:
    """Remove the folders of runs whose settings or inputs have changed, and of those that are not recorded."""
    record = read_sweep(root)
    for stage, _, todo in plan([run.stage for run in runs], record):
        if todo in ("redo", "run") and stage.folder.is_dir():
            shutil.rmtree(stage.folder)
            record.pop(stage.name, None)
    if root.is_dir():
        write_json(root / RECORD, record)


class _Process:
    """A run's process; what it says goes to its log."""

    def __init__(self, stage: Stage, root: Path, environment: dict[str, str], *, resume: bool):
        self.stage, self.started = stage, time.time()
        self.log = root / f"{stage.name}.log"
        self._start = self.log.stat().st_size if self.log.is_file() else 0
        words = command_line(stage, root, resume=resume)
        with self.log.open("ab") as file:
            self.popen = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment
            )

    def last_error(self) -> str:
        with self.log.open("rb") as file:
            file.seek(self._start)
            lines = file.read().decode(errors="replace").splitlines()
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return told[-1] if told else f"see {self.log}"


def _environment(slot: int, parallel: int, gpus: Sequence[str]) -> dict[str, str]:
    environment = dict(os.environ)
    if gpus:  # one, or the trainer would spread each batch over all that it sees
        environment["CUDA_VISIBLE_DEVICES"] = str(gpus[slot % len(gpus)])
    elif parallel > 1 and "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // parallel))
    return environment


def _short(value: Any) -> str:
    """A value as part of a folder's name; where something had to go, with a few letters of its hash."""
    text = str(value)
    safe = re.sub(r"[^\w.+-]+", "_", text.rpartition("/")[2])[-LONGEST_NAME:]
    return safe if safe == text else f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
