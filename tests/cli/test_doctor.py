"""`cacse-trainer doctor`: what it finds, what it says to do, its exit codes; a hub that hangs costs no time."""

import json
import socket

import huggingface_hub
import pytest

from cacse_trainer.cli import doctor
from cacse_trainer.cli.common import run
from cacse_trainer.runs import doctor as looks


def findings(capsys, *flags) -> tuple[int, dict[str, dict]]:
    code = run(doctor.main, ["--json", *flags])
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] == (code == 0)
    return code, {finding["what"]: finding for finding in told["findings"]}


def test_a_machine_that_is_fine(capsys, senteval_sample):
    code, found = findings(capsys, "--data_dir", str(senteval_sample))
    assert code == 0
    assert found["SentEval sts"]["state"] == "ok" and found["SentEval sts"]["found"].startswith("7 of 7")
    assert found["python"]["state"] == "ok" and "torch" in found["libraries"]["found"]
    assert found["hub"]["state"] == "note" and "HF_HUB_OFFLINE" in found["hub"]["mend"]
    for finding in found.values():
        assert finding["state"] == "ok" or finding["mend"], finding


def test_what_is_missing_is_named_with_its_mend(capsys, monkeypatch, tmp_path):
    real = looks._version
    changed = {"faiss-cpu": None, "gradio": None, "scipy": "1.0", "torch": None}
    monkeypatch.setattr(looks, "_version", lambda name: changed[name] if name in changed else real(name))
    monkeypatch.setattr(looks, "bf16_is_fast", lambda: False)
    code, found = findings(capsys, "--data_dir", str(tmp_path / "nothing"))
    assert code == 1
    assert "scipy 1.0 (needs >=" in found["libraries"]["found"] and "torch is missing" in found["libraries"]["found"]
    assert found["extra faiss"]["mend"] == "pip install 'cacse-trainer[faiss]'"
    assert found["extra demo"]["state"] == "note" and found["bf16"]["state"] == "note"
    assert "download_dataset.sh" in found["SentEval data"]["mend"]


def test_a_full_disk_fails(capsys, monkeypatch):
    monkeypatch.setattr(looks.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 5e8})())
    assert run(doctor.main, ["--quiet"]) == 1
    printed = capsys.readouterr()
    assert "fail  disk here" in printed.out
    assert "ok    python" not in printed.out and "to be mended: disk here" in printed.err


def test_a_silent_hub_is_given_up(capsys, monkeypatch):
    """A server that takes the connection and never answers."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        code, found = findings(capsys, "--timeout", "0.2")
    assert code == 0 and found["hub"]["state"] == "note" and "cannot be reached" in found["hub"]["found"]


@pytest.mark.parametrize("seconds", ["0", "-1", "soon"])
def test_wrong_timeouts(capsys, seconds):
    assert run(doctor.main, [f"--timeout={seconds}"]) == 2
    assert "timeout" in capsys.readouterr().err
