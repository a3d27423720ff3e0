"""Launching: the shipped accelerate files, the run scripts on several processes, several GPUs in one process."""

import json
import os
import subprocess
import sys

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from cacse_trainer.cli import train
from cacse_trainer.cli.common import run
from cacse_trainer.settings import arguments
from tests.conftest import ROOT
from tests.faults.runs import prepare

FOLDER = ROOT / "configs" / "accelerate"
EXPECTED = {
    "cpu": ("MULTI_GPU", 2),
    "single_gpu": ("NO", 1),
    "multi_gpu": ("MULTI_GPU", 4),
    "multi_node": ("MULTI_GPU", 8),
    "fsdp": ("FSDP", 4),
    "deepspeed_zero2": ("DEEPSPEED", 4),
}


def test_every_file_is_read_by_accelerate_and_says_whether_it_was_tried():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)
    for name, (kind, processes) in EXPECTED.items():
        config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
        assert (config.distributed_type.value, config.num_processes) == (kind, processes), name
        header = (FOLDER / f"{name}.yaml").read_text()
        assert f"ACCELERATE_CONFIG=configs/accelerate/{name}.yaml bash run_unsup_example.sh" in header
        assert "# Tried:" in header and "# Change:" in header


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(arguments.CacseTrainingArguments, "n_gpu", property(lambda self: 2))
    assert run(train.main, [*prepare(tmp_path / "parts"), "--output_dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "one process sees 2 GPUs" in said and "--num_processes 2" in said and "CUDA_VISIBLE_DEVICES=0" in said


@pytest.mark.slow
@pytest.mark.parametrize("how", ["nproc", "accelerate"])
def test_the_run_script_on_two_processes(tmp_path, how):
    flags = [*prepare(tmp_path / "parts"), "--max_steps", "4", "--output_dir", str(tmp_path / "run")]
    recipe = tmp_path / "empty.yaml"
    recipe.write_text("# all settings are flags\n")
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    if how == "accelerate":
        environment["ACCELERATE_CONFIG"] = str(FOLDER / "cpu.yaml")
    more = ["--nproc", "2"] if how == "nproc" else []
    command = ["bash", str(ROOT / "run_unsup_example.sh"), *more, "--config", str(recipe), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "run" / "training_report.json").read_text())
    assert report["run"]["processes"] == 2 and report["run"]["negatives_shared_between_processes"]
    assert "batch of 16 rows on 2 process(es), 30 effective negatives, shared between the processes" in done.stderr
    refused = subprocess.run(
        [*command, "--learning_rate", "-1"], capture_output=True, text=True, timeout=300, env=environment
    )
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
