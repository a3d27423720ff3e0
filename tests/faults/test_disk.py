"""A disk that fills up: one line, nothing lost, and once there is room the run ends as if nothing had been."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from cacse_trainer.cli import train
from cacse_trainer.cli.common import run
from cacse_trainer.training.checkpoints import damage, list_checkpoints
from tests.faults.runs import finish, kill, outcome, prepare, start, wait_for


@pytest.fixture
def small_disk(tmp_path):
    """``small_disk(megabytes)`` makes a disk of that size, or gives the one there is that size; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(megabytes: int) -> Path:
        remount = "remount," if os.path.ismount(folder) else ""
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{remount}size={megabytes}M", "tmpfs", str(folder)], capture_output=True
        )
        if done.returncode != 0:
            pytest.skip("a small disk can be mounted by root only")
        return folder

    yield make
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, small_disk, capsys):
    """Each checkpoint takes about 0.7 MB; the third finds no place beside the first two."""
    command = [*prepare(tmp_path / "parts"), "--save_total_limit", "9", "--output_dir"]
    assert run(train.main, [*command, str(tmp_path / "whole")]) == 0
    folder = small_disk(2) / "run"
    capsys.readouterr()
    assert run(train.main, [*command, str(folder)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Traceback"))]
    assert len(lines) == 1 and "could not be written" in lines[0] and "is whole; make room" in lines[0], lines
    kept = list_checkpoints(folder)
    assert kept and all(damage(path) is None for path in kept)
    assert not (folder / "checkpoint.partial").exists()
    again = [*command, str(folder), "--resume_from_checkpoint", "last"]
    assert run(train.main, again) == 1  # still full: the same line, and still nothing lost
    assert [path.name for path in list_checkpoints(folder)] == [path.name for path in kept]
    small_disk(64)
    assert run(train.main, again) == 0
    assert outcome(folder) == outcome(tmp_path / "whole")


@pytest.mark.parametrize("step", ["save", "tokenizer", "move"])
def test_an_error_of_the_disk_at_any_place_of_a_checkpoint(tmp_path, monkeypatch, capsys, step):
    """The optimizer's file breaks off, as torch or tokenizers say it; or the list of files cannot be written."""
    command = [*prepare(tmp_path / "parts"), "--output_dir", str(tmp_path / "run"), "--max_steps", "4"]
    if step != "move":
        save = torch.save
        broken = RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file")
        bare = Exception("No space left on device (os error 28)")

        def fail(value, path, *args, **kwargs):
            if "checkpoint-4" in str(path) and "optimizer" in str(path):
                raise broken if step == "save" else bare
            return save(value, path, *args, **kwargs)

        monkeypatch.setattr(torch, "save", fail)
    else:
        from cacse_trainer.training import checkpoints

        write = checkpoints.write_manifest

        def fail(folder):
            if folder.name == "checkpoint-4":
                raise OSError(28, "No space left on device")
            write(folder)

        monkeypatch.setattr(checkpoints, "write_manifest", fail)
    assert run(train.main, command) == 1
    said = capsys.readouterr().err
    assert "the checkpoint of step 4 could not be written" in said and "checkpoint-2 is whole" in said
    assert "Traceback" not in said
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    monkeypatch.undo()
    assert run(train.main, [*command, "--resume_from_checkpoint", "last", "--export", "false"]) == 0


def test_a_full_disk_elsewhere_is_one_line(tmp_path, monkeypatch, capsys):
    """The export and the report are written after the training: their failure costs neither weights nor checkpoint."""
    command = [*prepare(tmp_path / "parts"), "--output_dir", str(tmp_path / "run"), "--max_steps", "2"]

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device", "export")

    monkeypatch.setattr("cacse_trainer.export.encoders.write_modules", fail)
    assert run(train.main, command) == 1
    said = capsys.readouterr().err
    assert "error: a file could not be written" in said and "Traceback" not in said
    assert (tmp_path / "run" / "model.safetensors").is_file()
    monkeypatch.undo()
    assert run(train.main, [*command, "--resume_from_checkpoint", "last"]) == 0
    assert (tmp_path / "run" / "export" / "tower_a" / "model.safetensors").is_file()


def test_a_killed_export_leaves_the_older_one_and_is_simply_run_again(tmp_path):
    """Killed as soon as the second folder is begun; the folders of an earlier export are whole at every moment."""
    command = [*prepare(tmp_path / "parts"), "--output_dir", str(tmp_path / "run"), "--max_steps", "2"]
    assert run(train.main, [*command, "--export", "false"]) == 0
    arguments = ["--checkpoint", str(tmp_path / "run"), "--output_dir", str(tmp_path / "out")]
    module, log, out = "cacse_trainer.cli.export", tmp_path / "log", tmp_path / "out"
    assert finish(start(arguments, log, module)) == 0, log.read_text()
    before = {str(path): path.read_bytes() for path in out.rglob("*.safetensors")}
    process = start(arguments, log, module)
    wait_for(out / ".tower_a.partial", process)
    assert kill(process) in (-signal.SIGKILL, 0)
    assert {str(path): path.read_bytes() for path in out.glob("[!.]*/*.safetensors")} == before
    assert finish(start(arguments, log, module)) == 0
    assert {str(path): path.read_bytes() for path in out.rglob("*.safetensors")} == before
    assert sorted(path.name for path in out.iterdir()) == ["ensemble", "tower_a", "tower_b"]
