"""Runs a pipeline's stages one after the other, each in a process of its own, and remembers what is done.

A process a stage: memory is given back, a crash ends one stage, and what runs is what the command line would run. The
record ``pipeline.json`` holds each stage's hash and time; a stage whose hash is recorded and whose output is there is
skipped, an interrupted one is resumed, one whose hash has changed is done anew.
"""

import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from cacse_trainer.errors import RunError, UserError
from cacse_trainer.files import write_json
from cacse_trainer.pipeline.stages import TRAINING, Stage

logger = logging.getLogger(__name__)

RECORD = "pipeline.json"


class StageError(RunError):
    """A stage ended with an error; the message says which, and where its log is."""


def read_record(root: Path) -> dict[str, dict[str, Any]]:
    """What is recorded of the stages, by name."""
    path = root / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def plan(stages: Sequence[Stage], record: dict[str, dict[str, Any]]) -> list[tuple[Stage, str, str]]:
    """Each stage with its hash and what is to be done: ``skip``, ``resume``, ``redo`` or ``run``."""
    hashes: dict[str, str] = {}
    planned = []
    for stage in stages:
        fingerprint = hashes[stage.name] = stage.fingerprint(hashes)
        before = record.get(stage.name)
        if before is None:
            todo = "run"
        elif before["fingerprint"] != fingerprint:
            todo = "redo"
        else:
            todo = "skip" if stage.is_finished() else "resume"
        planned.append((stage, fingerprint, todo))
    return planned


def run_stages(root: Path, stages: Sequence[Stage], only: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Run what is to be run; returns the record.

    Args:
        root: the pipeline's output folder.
        stages: in order.
        only: run these, if they need to be; the others are left as they are.

    Raises:
        UserError: a stage's input is wrong, or a folder of its name is there that the pipeline did not make.
        StageError: a stage failed otherwise.
    """
    root.mkdir(parents=True, exist_ok=True)
    record = read_record(root)
    for stage, fingerprint, todo in plan(stages, record):
        if only and stage.name not in only:
            continue
        if todo == "skip":
            logger.info("stage %s: finished before, skipped", stage.name)
            continue
        if todo == "run" and stage.folder.is_dir() and any(stage.folder.iterdir()):
            raise UserError(
                f"stage {stage.name}: {stage.folder} is there, and no stage of this pipeline made it; move it"
            )
        if todo == "redo":
            logger.info("stage %s: its settings or inputs have changed, done anew", stage.name)
            shutil.rmtree(stage.folder, ignore_errors=True)
        spent = record[stage.name]["seconds"] if todo == "resume" else 0.0
        entry = {"fingerprint": fingerprint, "command": stage.command, "seconds": spent, "finished": False}
        record[stage.name] = entry
        write_json(root / RECORD, record)
        logger.info("stage %s: %s", stage.name, {"resume": "going on"}.get(todo, "starting"))
        started = time.time()
        try:
            run_command(stage, root, resume=todo == "resume")
        finally:
            entry["seconds"] = spent + time.time() - started
            write_json(root / RECORD, record)
        entry["finished"] = True
        write_json(root / RECORD, record)
        logger.info("stage %s: done in %.0f s", stage.name, entry["seconds"])
    return record


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


def run_command(stage: Stage, root: Path, *, resume: bool) -> None:
    """Run a stage's process; what it says goes to the terminal and to ``STAGE.log``.

    Raises:
        UserError: the process ended with 2, with its own line.
        StageError: it ended with anything else but 0.
    """
    log = root / f"{stage.name}.log"
    words = command_line(stage, root, resume=resume)
    last_error = ""
    with log.open("ab") as file, subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None  # for the type checker: it is a pipe
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                text = line.decode(errors="replace")
                sys.stderr.write(text)
                if text.startswith("error: "):
                    last_error = text.removeprefix("error: ").strip()
        except BaseException:
            process.terminate()  # an interrupted pipeline leaves no stage running
            process.wait()
            raise
    if process.returncode == 2:
        raise UserError(f"stage {stage.name}: {last_error}")
    if process.returncode != 0:
        raise StageError(f"stage {stage.name} ended with {process.returncode}: {last_error or 'see its log'} ({log})")
