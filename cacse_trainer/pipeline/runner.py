"""Runs stages, each in a process of its own, and remembers what is done: one after the other, or several at once.

A process a stage: memory is given back, a crash ends one stage, and what runs is what the command line would run. The
record (``pipeline.json``, ``sweep.json``) holds each stage's hash and time; a stage whose hash is recorded and whose
output is there is skipped, an interrupted one is resumed, one whose hash has changed is done anew.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from cacse_trainer.errors import RunError, UserError
from cacse_trainer.files import only_one, read_object, refuse_foreign, write_json
from cacse_trainer.pipeline.stages import TRAINING, Stage

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.2
BEGINNINGS = {"run": "starting", "resume": "going on", "redo": "its settings or inputs have changed, done anew"}
Record = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """What is run: how it is called and how its parts depend on each other.

    Args:
        name: of the whole and of its record.
        part: what one stage is called.
        independent: the other stages go on where one fails, and none speaks to the terminal.
    """

    name: str
    part: str
    independent: bool


PIPELINE, SWEEP = Kind("pipeline", "stage", independent=False), Kind("sweep", "run", independent=True)


def read_record(root: Path, kind: Kind = PIPELINE) -> Record:
    """What is recorded of the stages, by name.

    Raises:
        UserError: the record is damaged.
    """
    path = root / f"{kind.name}.json"
    if not path.is_file():
        return {}
    mend = f"delete it, and the folders of the {kind.part}s that are to be made anew"
    record = read_object(path, mend)
    for name, entry in record.items():
        known = isinstance(entry, dict) and "fingerprint" in entry and isinstance(entry.get("seconds"), (int, float))
        if not known:
            raise UserError(f"{path}: is damaged ({kind.part} {name}); {mend}")
    return record


def write_record(root: Path, record: Record, kind: Kind = PIPELINE) -> None:
    """Record what became of the stages."""
    write_json(root / f"{kind.name}.json", record)


def plan(stages: Sequence[Stage], record: Record) -> list[tuple[Stage, str, str]]:
    """Each stage with its hash and what is to be done: ``skip``, ``resume``, ``redo`` or ``run``."""
    hashes: dict[str, str] = {}
    planned = []
    for stage in stages:
        fingerprint = hashes[stage.name] = stage.fingerprint(hashes)
        before = record.get(stage.name)
        if before is None:
            todo = "run"
        elif before.get("fingerprint") != fingerprint:
            todo = "redo"
        else:
            todo = "skip" if stage.is_finished() else "resume"
        planned.append((stage, fingerprint, todo))
    return planned


def run_stages(
    root: Path,
    stages: Sequence[Stage],
    only: Sequence[str] | None = None,
    *,
    kind: Kind = PIPELINE,
    replace: bool = True,
    environments: Sequence[Mapping[str, str]] = ({},),
) -> Record:
    """Run what is to be run, in order; returns the record.

    Args:
        root: the output folder of the whole.
        stages: those that others need before these.
        only: run these, if they need to be; the others are left as they are.
        kind: `PIPELINE` or `SWEEP`.
        replace: do those anew whose settings or inputs have changed; otherwise refuse.
        environments: variables of each stage that runs at the same time; as many run at once.

    Raises:
        UserError: a stage's input is wrong (the others are stopped), its folder holds what no stage here made, or
            another process runs the stages.
        RunError: stages failed otherwise; of independent ones, after the others are done.
    """
    root.mkdir(parents=True, exist_ok=True)
    with only_one(root / f"{kind.name}.json"):
        return _run_stages(root, stages, only, kind, replace, environments)


def _run_stages(
    root: Path,
    stages: Sequence[Stage],
    only: Sequence[str] | None,
    kind: Kind,
    replace: bool,
    environments: Sequence[Mapping[str, str]],
) -> Record:
    record = read_record(root, kind)
    planned = [entry for entry in plan(stages, record) if not only or entry[0].name in only]
    waiting = [entry for entry in planned if _is_due(entry[0], entry[2], kind, replace)]
    total, failed = len(waiting), []
    running: dict[int, _Process] = {}

    def note(stage: Stage, **found: Any) -> None:
        record[stage.name] = {**record.get(stage.name, {}), **found}
        write_record(root, record, kind)

    try:
        while waiting or running:
            for slot in range(len(environments)):
                if slot not in running and waiting:
                    stage, fingerprint, todo = waiting.pop(0)
                    where = f"{total - len(waiting)} of {total}, log in {root / stage.name}.log"
                    logger.info("%s %s: %s, %s", kind.part, stage.name, BEGINNINGS[todo], where)
                    if todo == "redo" and stage.folder.is_dir():
                        stage.clear()
                    spent = record[stage.name]["seconds"] if todo == "resume" else 0.0
                    note(stage, fingerprint=fingerprint, command=stage.command, seconds=spent, finished=False)
                    running[slot] = _Process(stage, root, environments[slot], resume=todo == "resume", spent=spent)
            codes = {slot: process.poll(echo=not kind.independent) for slot, process in running.items()}
            if all(code is None for code in codes.values()):
                time.sleep(SECONDS_BETWEEN_LOOKS)
            for slot, code in codes.items():
                if code is None:
                    continue
                process = running.pop(slot)
                name = process.stage.name
                note(process.stage, seconds=process.seconds(), finished=code == 0)
                if code == 0:
                    logger.info("%s %s: done in %.0f s", kind.part, name, process.seconds())
                elif code == 2:
                    raise UserError(f"{kind.part} {name}: {process.last_error}")
                else:
                    message = f"{kind.part} {name} ended with {code}: {process.last_error} ({process.log})"
                    if not kind.independent:
                        raise RunError(message)
                    logger.error("%s", message)
                    failed.append(name)
    finally:
        for process in running.values():  # what is interrupted leaves no process behind
            process.popen.terminate()
        for process in running.values():
            process.popen.wait()
            note(process.stage, seconds=process.seconds())
    if failed:
        names = ", ".join(failed)
        raise RunError(f"{kind.name}: {len(failed)} of {total} {kind.part}s failed: {names}; their logs are in {root}")
    return record


def _is_due(stage: Stage, todo: str, kind: Kind, replace: bool) -> bool:
    """Whether a planned stage must run; refuses to put it where something else is."""
    if todo == "skip":
        logger.info("%s %s: finished before, skipped", kind.part, stage.name)
    elif todo != "resume" and stage.folder.is_dir() and any(stage.folder.iterdir()):
        where = f"{kind.part} {stage.name}: {stage.folder}"
        if todo == "run":
            raise UserError(f"{where} is there, and no {kind.part} of this {kind.name} made it; move it")
        if not replace:
            raise UserError(
                f"{where} was made with other settings or inputs; choose another --output_dir, or --overwrite to do "
                f"such {kind.part}s anew"
            )
        refuse_foreign(stage.folder, stage.foreign())
    return todo != "skip"


def command_line(stage: Stage, root: Path, *, resume: bool) -> list[str]:
    """The words of a stage's process."""
    launcher = [sys.executable, "-m"]
    if stage.processes > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(stage.processes), "-m"]
    words = [*launcher, f"cacse_trainer.cli.{stage.command}", *stage.flags(root)]
    if resume and stage.command in TRAINING:
        has_checkpoint = stage.folder.is_dir() and get_last_checkpoint(str(stage.folder)) is not None
        words += ["--resume_from_checkpoint", "last"] if has_checkpoint else ["--overwrite_output_dir", "true"]
    return words


_process_control: Any = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
PARENT_DEATH_SIGNAL = 1


def _end_with_parent() -> None:
    """Between fork and start of a stage's process: it gets SIGTERM when this one ends, in whatever way."""
    _process_control(PARENT_DEATH_SIGNAL, signal.SIGTERM)


class _Process:
    """A stage's process, ``spent`` seconds after earlier starts; what it says goes to ``STAGE.log``, read again."""

    def __init__(self, stage: Stage, root: Path, environment: Mapping[str, str], *, resume: bool, spent: float):
        self.stage, self.spent, self.started = stage, spent, time.time()
        self.log = root / f"{stage.name}.log"
        self.last_error = "see its log"
        self._read = self.log.stat().st_size if self.log.is_file() else 0
        words = command_line(stage, root, resume=resume)
        with self.log.open("ab") as file:
            self.popen = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def seconds(self) -> float:
        """What all starts took so far."""
        return self.spent + time.time() - self.started

    def poll(self, *, echo: bool) -> int | None:
        """The exit code, None while it runs; what it has said since the last look is read and, if wanted, echoed."""
        code = self.popen.poll()
        with self.log.open("rb") as file:
            file.seek(self._read)
            lines = file.read().splitlines(keepends=True)
        if code is None and lines and not lines[-1].endswith(b"\n"):
            del lines[-1]  # not whole yet
        self._read += sum(map(len, lines))
        for line in lines:
            text = line.decode(errors="replace")
            if echo:
                sys.stderr.write(text)
            if text.startswith("error: "):
                self.last_error = text.removeprefix("error: ").strip()
        return code
