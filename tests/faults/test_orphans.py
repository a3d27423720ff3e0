"""Nothing is left running by a process that is killed, and a closed terminal ends a command as SIGTERM does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cacse_trainer.cli.common import run
from cacse_trainer.encoding.pool import EncoderPool
from cacse_trainer.pipeline import runner
from cacse_trainer.pipeline.stages import Stage
from cacse_trainer.training.interruption import SignalWatch
from tests.faults.runs import _context, kill, wait_for

SLEEPER = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process of its parent's end")


def hear_hangups() -> None:
    """Under nohup SIGHUP is ignored, by whatever server of processes was started there, too."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def run_a_stage(root: str) -> None:
    """In a process of its own: a pipeline whose stage takes long."""
    hear_hangups()
    runner.command_line = lambda stage, root, *, resume: [sys.executable, "-c", SLEEPER, str(root / "half")]
    runner.run_stages(Path(root), [Stage("a", "train", {}, Path(root) / "a")])


class SlowEncoder:
    """What a worker holds: its first block takes long."""

    def __init__(self, device: str):
        self.place = Path(device)

    def fingerprint(self) -> str:
        return "same"

    def vectors(self, block: list[str]) -> None:
        self.place.write_text(str(os.getpid()))
        time.sleep(600)


def run_a_pool(root: str) -> None:
    """In a process of its own: an encoder on another process."""
    hear_hangups()
    for _ in EncoderPool(SlowEncoder, [f"{root}/half"], "same").vectors([["a"]], {}, print):
        pass


@pytest.fixture(autouse=True)
def heard():
    if sys.platform == "win32":
        yield
        return
    before = signal.getsignal(signal.SIGHUP)
    hear_hangups()
    yield
    signal.signal(signal.SIGHUP, before)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@linux
@pytest.mark.slow
@pytest.mark.parametrize("work", [run_a_stage, run_a_pool])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_what_is_killed_leaves_nothing_running(tmp_path, work, number):
    process = _context.Process(target=work, args=(str(tmp_path),))
    process.start()
    wait_for(tmp_path / "half", process)
    while not (child := (tmp_path / "half").read_text()):
        time.sleep(0.01)
    assert is_running(int(child))
    assert kill(process, number) == -number
    ends = time.monotonic() + 60
    while is_running(int(child)) and time.monotonic() < ends:
        time.sleep(0.01)
    assert not is_running(int(child))


@linux
def test_a_stage_is_told_of_its_parents_end(tmp_path):
    """The kernel is asked for the signal between fork and start; it holds across the start of another program."""
    code = "import ctypes; found = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(found)); print(found.value)"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, preexec_fn=runner._end_with_parent, capture_output=True, text=True, check=True)
    assert int(done.stdout) == signal.SIGTERM


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGHUP")
def test_a_closed_terminal_ends_a_command_as_sigterm_does(capsys):
    """And where it is ignored (nohup) it stays so."""
    ended = []

    def command(arguments):
        try:
            os.kill(os.getpid(), signal.SIGHUP)
        finally:
            ended.append(True)

    assert run(command, []) == 129 and ended == [True]
    assert "stopped by SIGHUP" in capsys.readouterr().err
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(command, []) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGHUP")
def test_a_training_notes_a_closed_terminal():
    watch = SignalWatch()
    with watch.watching():
        os.kill(os.getpid(), signal.SIGHUP)
    assert watch.received == signal.SIGHUP
