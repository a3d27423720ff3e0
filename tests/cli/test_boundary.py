"""Whatever a command raises ends in an exit code and one line: see `cli.boundary`."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cacse_trainer.cli import boundary, compare, main
from cacse_trainer.cli.common import run
from cacse_trainer.cli.output import tell
from cacse_trainer.errors import RunError, UserError, user_errors
from cacse_trainer.files import sha256_of
from tests.conftest import ROOT


def raising(error: BaseException):
    def command(arguments):
        raise error

    return command


@pytest.mark.parametrize(
    "error, code, line",
    [
        (UserError("wrong; mend it"), 2, "error: wrong; mend it"),
        (RunError("failed"), 1, "error: failed"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(143), 143, ""),
        (MemoryError("no room"), 1, "error: out of memory (no room); in training lower per_device_train_batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory."), 1, "error: out of memory (CUDA out of memory.); in training"),
    ],
)
def test_exit_codes_and_lines(error, code, line, capsys):
    assert run(raising(error), []) == code
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") <= 1 and "Traceback" not in said


def test_a_fault_of_ours_ends_in_one_line_that_says_where_its_traceback_is(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run(raising(KeyError("gone")), []) == 1
    said = capsys.readouterr().err
    path = Path(re.search(r"traceback in (\S+)\)\n$", said)[1])
    assert said.startswith("error: unexpected KeyError: 'gone' ") and said.count("\n") == 1
    assert "in command" in path.read_text() and path.stat().st_mode & 0o077 == 0
    monkeypatch.setenv(boundary.TRACEBACK, "1")
    assert run(raising(KeyError("gone")), []) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_what_a_library_raises_on_a_file_is_the_file_s_fault_and_our_own_errors_are_not():
    with pytest.raises(UserError, match="model m: Expecting value"), user_errors("model m"):
        json.loads("")
    with pytest.raises(UserError, match="model m: 'int' object is not callable"), user_errors("model m"):
        json.loads("5", parse_int=5)
    with pytest.raises(AttributeError), user_errors("model m"):
        sha256_of(5)
    with pytest.raises(MemoryError), user_errors("model m"):
        raise MemoryError


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_narrow_terminal_takes_every_text_and_valid_json(encoding, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    text = "é → ρ 😀 \udce9"
    assert run(lambda arguments: tell(text, {})) == 0
    assert run(lambda arguments: tell(text, {"found": text}), ["--json"]) == 0
    lines = terminal.buffer.getvalue().decode(encoding).splitlines()
    assert json.loads(f'"{lines[0]}"') == text and json.loads(lines[1]) == {"found": text}


def test_a_reader_that_goes_away_ends_the_command_in_silence(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    for name in ("stdout", "__stdout__"):
        monkeypatch.setattr(sys, name, os.fdopen(os.dup(writer), "w"))
    assert run(lambda arguments: tell("said to nobody", {})) == 141
    assert capsys.readouterr().err == ""
    sys.stdout.close()  # whose last flush no longer fails
    sys.__stdout__.close()
    os.close(writer)


def test_ctrl_c_while_the_libraries_are_loaded():
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "cacse_trainer.cli.main", "doctor"], stderr=subprocess.PIPE, cwd=ROOT
    )
    said = b""
    while b"torch" not in (line := process.stderr.readline()):  # told when it is loaded: the others follow
        said += line
    process.send_signal(signal.SIGINT)
    said += process.stderr.read()
    assert process.wait() == 130 and b"Traceback" not in said and b"interrupted\n" in said


@pytest.mark.parametrize("content", ["[]", "5", "null", '"a"', "{", "", '{"tasks": []}', '{"tasks": {"STS12": 5}}'])
def test_json_of_the_wrong_shape(content, tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text(content)
    assert run(compare.main, [str(tmp_path), str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: ")


@pytest.mark.parametrize(
    "change", ["=1", "a.b.c=1", "x", "joint.=1", "joint.seed=[1", "joint.seed=!!python/name:os.x 1"]
)
def test_malformed_changes(change, tmp_path, capsys):
    given = ["pipeline", "--config", "pipeline/small", "--plan", "--output_dir", str(tmp_path), "--set", change]
    assert main.main(given) == 2
    assert capsys.readouterr().err.startswith("error: --set ")


def test_a_name_that_no_report_could_hold_is_refused_at_once(capsys):
    assert main.main(["train", "--output_dir", os.fsdecode(b"donn\xe9es")]) == 2
    assert "is no UTF-8 text" in capsys.readouterr().err
