"""SIGTERM, Ctrl-C, damaged checkpoints, left-over temporary folders, two runs in one folder: nothing is lost."""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cacse_trainer.cli import train
from cacse_trainer.cli.common import run
from cacse_trainer.data.sentences import load_sentences
from cacse_trainer.errors import UserError
from cacse_trainer.files import give_back, private_folder, take
from cacse_trainer.training import trainer as trainer_module
from cacse_trainer.training.checkpoints import (
    MANIFEST,
    clear_leftovers,
    damage,
    list_checkpoints,
    newest_whole,
    rotate_checkpoints,
)
from cacse_trainer.training.interruption import SignalWatch
from tests.faults.runs import outcome, prepare


@contextlib.contextmanager
def signal_at(step: int, number: int = signal.SIGTERM, times: int = 1):
    """Inside, a training run is sent a signal in the middle of a step, as a scheduler or a person would."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == step:
            for _ in range(times):
                os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SignalWatch, "on_step_begin", on_step_begin)
        yield


@pytest.fixture(autouse=True)
def in_the_foreground():
    """A job in the background ignores Ctrl-C, and so do its runs; the tests may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> list[str]:
    """The arguments of a small run, but for its output folder."""
    return [*prepare(tmp_path_factory.mktemp("parts")), "--max_steps", "8"]


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory) -> dict[str, object]:
    """What an uninterrupted run leaves."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(train.main, [*parts, "--output_dir", str(folder)]) == 0
    return outcome(folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_resumed_run_ends_alike(parts, whole, tmp_path, capsys, number, code):
    """Step 5 is between two evaluations, two saves and two log lines: all three go on where they were."""
    before = signal.getsignal(number)
    arguments = [*parts, "--output_dir", str(tmp_path)]
    with signal_at(5, number):
        assert run(train.main, arguments) == code
    said = capsys.readouterr().err
    assert "after step 5 of 8" in said and "--resume_from_checkpoint last" in said and "Traceback" not in said
    assert signal.getsignal(number) == before
    assert list_checkpoints(tmp_path)[-1].name == "checkpoint-5"
    assert not (tmp_path / "export").exists()
    assert run(train.main, [*arguments, "--resume_from_checkpoint", "last"]) == 0
    resumed = outcome(tmp_path)
    assert resumed["history"] == whole["history"]
    assert resumed == whole


def test_ctrl_c_twice_ends_at_once(parts, tmp_path, capsys):
    with signal_at(3, signal.SIGINT, times=2):
        assert run(train.main, [*parts, "--output_dir", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]


@pytest.fixture(scope="module")
def stopped_run(parts, tmp_path_factory) -> Path:
    """The folder of a run that was stopped after step 5, with checkpoints of the steps 2, 4 and 5."""
    folder = tmp_path_factory.mktemp("stopped")
    with signal_at(5):
        assert run(train.main, [*parts, "--save_total_limit", "9", "--output_dir", str(folder)]) == 143
    return folder


@pytest.fixture
def stopped(parts, stopped_run, tmp_path) -> tuple[list[str], Path]:
    """A copy of that folder, and the arguments of its run."""
    shutil.copytree(stopped_run, tmp_path / "run")
    return [*parts, "--save_total_limit", "9", "--output_dir", str(tmp_path / "run")], tmp_path / "run"


DAMAGES = {
    "model.safetensors": "model.safetensors has 1000 bytes",
    "optimizer.pt": "optimizer.pt is not what was written",
    "rng_state.pth": "rng_state.pth is missing",
    "trainer_state.json": "trainer_state.json cannot be read",
    MANIFEST: "cannot be read",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(stopped, caplog, capsys, tmp_path, name):
    arguments, folder = stopped
    damaged = folder / "checkpoint-5" / name
    content = damaged.read_bytes()
    if name == "rng_state.pth":
        damaged.unlink()
    elif name == "optimizer.pt":  # a single bit, somewhere
        middle = len(content) // 2
        damaged.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        damaged.write_bytes(content[: min(1000, len(content) // 2)])
    assert DAMAGES[name] in damage(folder / "checkpoint-5")
    with caplog.at_level(logging.WARNING, logger="cacse_trainer"):
        assert newest_whole(folder) == folder / "checkpoint-4"
    assert "checkpoint-5 is damaged" in caplog.text and "going on from" in caplog.text
    assert run(train.main, [*arguments, "--resume_from_checkpoint", str(folder / "checkpoint-5")]) == 2
    assert "checkpoint-5 is damaged" in capsys.readouterr().err
    if name == "model.safetensors":
        short = ["--max_steps", "6", "--resume_with_changes", "--export", "false"]
        assert run(train.main, [*arguments, "--resume_from_checkpoint", "last", *short]) == 0
        assert damage(folder / "checkpoint-6") is None


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_a_damaged_checkpoint_without_a_list_of_its_files(stopped, name):
    """Another program's, or one whose list was lost: the archives of tensors have checksums of their own."""
    checkpoint = stopped[1] / "checkpoint-5"
    (checkpoint / MANIFEST).unlink()
    assert damage(checkpoint) is None
    content = (checkpoint / name).read_bytes()
    if name.endswith(".json"):
        (checkpoint / name).write_text('{"global_step": 5, "unheard_of": 1}')
    else:  # a bit of a tensor
        place = content.index(b"PK\x03\x04", 200) - 40
        (checkpoint / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert name in str(damage(checkpoint))


def test_when_all_are_damaged_nothing_is_touched(stopped, capsys):
    arguments, folder = stopped
    for checkpoint in list_checkpoints(folder):
        (checkpoint / "model.safetensors").write_bytes(b"")
    assert run(train.main, [*arguments, "--resume_from_checkpoint", "last"]) == 2
    assert "no other checkpoint" in capsys.readouterr().err
    assert len(list_checkpoints(folder)) == 3


def test_a_damaged_best_checkpoint_is_not_gone_on_with(stopped, caplog):
    """Its weights would be loaded at the end; a checkpoint from before it is as good."""
    _, folder = stopped
    best = json.loads((folder / "checkpoint-5" / "trainer_state.json").read_text())["best_global_step"]
    (folder / f"checkpoint-{best}" / "model.safetensors").write_bytes(b"")
    expected = {2: None, 4: folder / "checkpoint-2"}[best]
    if expected is None:
        with pytest.raises(UserError, match="best checkpoint so far, checkpoint-2"):
            newest_whole(folder)
    else:
        assert newest_whole(folder) == expected


def test_rotation_counts_a_left_course_as_the_oldest(tmp_path):
    """Resumed from 2 with 4 and 6 still there: what was just saved must not be the first to go."""
    for step in (2, 3, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    (tmp_path / "checkpoint-1").mkdir()  # a person's
    rotate_checkpoints(str(tmp_path), 2, str(tmp_path / "checkpoint-2"), current=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]
    assert (tmp_path / "checkpoint-1").is_dir()


def test_a_checkpoint_that_lies_aside_is_put_back(tmp_path):
    """A kill fell into its replacement, between the two renames; where the new one is there, the old one goes."""
    for name in (".checkpoint-2.old", ".checkpoint-4.old", "checkpoint-4", "checkpoint-6"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").touch()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_what_a_kill_left_goes_at_the_next_start(stopped):
    arguments, folder = stopped
    (folder / "checkpoint.partial" / "checkpoint-6").mkdir(parents=True)
    (folder / ".checkpoint-1.partial").mkdir()
    short = ["--max_steps", "6", "--resume_with_changes", "--export", "false"]
    assert run(train.main, [*arguments, "--resume_from_checkpoint", "last", *short]) == 0
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


def test_two_runs_do_not_share_a_folder(stopped, capsys):
    arguments, folder = stopped
    held = take(folder / ".lock")
    assert run(train.main, [*arguments, "--resume_from_checkpoint", "last"]) == 2
    assert "in use by another run" in capsys.readouterr().err
    give_back(held)
    short = ["--max_steps", "6", "--resume_with_changes", "--export", "false"]
    assert run(train.main, [*arguments, "--resume_from_checkpoint", "last", *short]) == 0
    assert not (folder / ".lock").exists()


def test_temporary_folders_of_killed_processes_go(tmp_path, monkeypatch):
    """One process is killed, another lives: only the first one's folder goes."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    foreign = tmp_path / "cacse-trainer-foreign"
    foreign.mkdir()
    code = "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
    code += "from cacse_trainer.files import private_folder; print(private_folder('cacse-trainer-'), flush=True)\n"
    code += "sys.stdin.read()"
    path = os.pathsep.join([str(Path(trainer_module.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        for _ in range(2)
    ]
    folders = [Path(process.stdout.readline().strip()) for process in processes]
    processes[0].kill()
    processes[0].wait()
    mine = private_folder("cacse-trainer-")
    assert set(tmp_path.iterdir()) == {foreign, folders[1], mine}
    processes[1].communicate("")


@pytest.mark.slow
def test_sigterm_before_training_leaves_no_temporary_folder(tmp_path):
    """A command that is stopped while it reads unwinds like one that fails."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "text.txt").write_text("one\ntwo\n")
    code = f"""
import os, signal, sys
from cacse_trainer.cli.common import run
from cacse_trainer.data import load_sentences
def main(arguments):
    load_sentences({str(tmp_path / "text.txt")!r})
    assert len(os.listdir({str(tmp_path / "temporary")!r})) == 1
    os.kill(os.getpid(), signal.SIGTERM)
sys.exit(run(main, []))
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 143 and "stopped by SIGTERM" in done.stderr
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_text_file_is_readable_by_its_user_only(write_text):
    path = Path(load_sentences(write_text).cache_files[0]["filename"])
    assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0


@pytest.fixture
def write_text(tmp_path) -> str:
    """A text of two lines."""
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    return str(tmp_path / "two.txt")
