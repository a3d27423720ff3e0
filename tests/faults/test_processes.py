"""Faults of runs on two processes: one dies, all are told to stop; nothing hangs, nothing is lost."""

import os
import signal

import pytest

from cacse_trainer.training.checkpoints import damage, list_checkpoints
from tests.faults.runs import finish, kill, outcome, prepare, start_ranks, wait_for


@pytest.fixture
def logs(tmp_path) -> list:
    """Where each process writes what it says."""
    return [tmp_path / f"log.{rank}" for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_dies_the_other_ends_with_a_message(tmp_path, logs, victim):
    arguments = [*prepare(tmp_path / "parts"), "--max_steps", "100000", "--output_dir", str(tmp_path / "run")]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    processes = start_ranks(arguments, logs, TMPDIR=str(temporary))
    wait_for(tmp_path / "run" / "checkpoint-2", processes[0])
    assert kill(processes[victim]) == -signal.SIGKILL
    assert finish(processes[1 - victim]) == 1
    assert len(list(temporary.iterdir())) == 1  # the victim's
    said = logs[1 - victim].read_text()
    assert f"error: process {1 - victim} of 2 ends, since another one has died" in said
    assert "--resume_from_checkpoint last" in said and "Traceback" not in said
    whole = [path.name for path in list_checkpoints(tmp_path / "run") if damage(path) is None]
    assert whole and whole[-1] == list_checkpoints(tmp_path / "run")[-1].name


@pytest.mark.slow
def test_sigterm_to_one_stops_both_at_the_same_step(tmp_path, logs):
    """A scheduler may reach the processes one after the other: they agree, and the resumed run ends alike."""
    arguments = [*prepare(tmp_path / "parts"), "--output_dir"]
    assert [finish(process) for process in start_ranks([*arguments, str(tmp_path / "whole")], logs)] == [0, 0]
    expected = outcome(tmp_path / "whole")
    cut = [*arguments, str(tmp_path / "cut")]
    processes = start_ranks(cut, logs)
    wait_for(tmp_path / "cut" / "checkpoint-2", processes[0])
    os.kill(processes[1].pid, signal.SIGTERM)
    codes = [finish(process) for process in processes]
    assert codes == [143, 143], logs[0].read_text()[-2000:]
    said = logs[0].read_text()
    assert "stopped by SIGTERM after step" in said and "Traceback" not in said
    resumed = start_ranks([*cut, "--resume_from_checkpoint", "last"], logs)
    assert [finish(process) for process in resumed] == [0, 0], logs[0].read_text()[-2000:]
    assert outcome(tmp_path / "cut") == expected
    assert "2 process(es), 30 effective negatives, shared between the processes" in logs[0].read_text()


@pytest.mark.slow
@pytest.mark.parametrize("negatives", ["global", "local"])
def test_finished_processes_end(tmp_path, logs, negatives):
    """Three launches one after the other: a process group's end that waits for itself would show as a hang."""
    arguments = [*prepare(tmp_path / "parts"), "--max_steps", "2", "--negatives", negatives, "--output_dir"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    for number in range(3):
        processes = start_ranks([*arguments, str(tmp_path / str(number))], logs, TMPDIR=str(temporary))
        assert [finish(process) for process in processes] == [0, 0], logs[0].read_text()[-2000:]
    assert list(temporary.iterdir()) == []
    said = logs[0].read_text()
    assert ("14 effective negatives, of each process's own rows only" in said) == (negatives == "local")
