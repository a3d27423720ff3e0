"""Faults of runs on two processes: one dies, all are told to stop; nothing hangs, nothing is lost."""

import os
import shutil
import signal

import pytest

from cacse_trainer.training.checkpoints import damage, list_checkpoints
from tests.faults.runs import finish, kill, outcome, prepare, start, start_ranks, wait_for


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
@pytest.mark.parametrize("kind", ["file", "stream"])
def test_two_processes_go_on_in_a_later_pass(tmp_path, logs, kind):
    """Step 6 is in the second pass of 4 steps; on one process the run goes on too, which is said."""
    arguments = [*prepare(tmp_path / "parts"), "--max_steps", "8", "--save_total_limit", "9", "--eval_strategy", "no"]
    arguments += ["--save_steps", "2", "--export", "false"]
    arguments += ["--streaming", "true", "--shuffle_buffer", "30"] if kind == "stream" else []
    whole = [*arguments, "--output_dir", str(tmp_path / "whole")]
    assert [finish(process) for process in start_ranks(whole, logs)] == [0, 0], logs[0].read_text()[-2000:]
    for name in ("cut", "alone"):
        shutil.copytree(tmp_path / "whole" / "checkpoint-6", tmp_path / name / "checkpoint-6")
    cut = [*arguments, "--output_dir", str(tmp_path / "cut"), "--resume_from_checkpoint", "last"]
    assert [finish(process) for process in start_ranks(cut, logs)] == [0, 0], logs[0].read_text()[-2000:]
    for name in ("model.safetensors", "optimizer.pt"):
        found, expected = (tmp_path / folder / "checkpoint-8" / name for folder in ("cut", "whole"))
        assert found.read_bytes() == expected.read_bytes()
    alone = [*arguments, "--output_dir", str(tmp_path / "alone"), "--resume_from_checkpoint", "last"]
    process = start([*alone, "--per_device_train_batch_size", "16"], tmp_path / "log")
    assert finish(process) == 0, (tmp_path / "log").read_text()[-2000:]
    assert "1 processes, the checkpoint was trained on 2" in (tmp_path / "log").read_text()
    assert "per_device_train_batch_size was" not in (tmp_path / "log").read_text()


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
