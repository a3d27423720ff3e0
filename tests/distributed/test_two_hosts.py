"""Two hosts that torchrun starts a training on: two network namespaces, between them a wire and nothing else."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.faults.runs import finish, prepare, start

NAMES = [f"cacse{os.getpid()}{end}" for end in "ab"]
ADDRESSES = ["10.89.7.1", "10.89.7.2"]
STEPS = 4


@pytest.fixture
def hosts():
    """The two namespaces; each has the device ``wire``, with its address."""
    if shutil.which("ip") is None:
        pytest.skip("there is no command ip (of iproute2)")
    commands = [f"netns add {name}" for name in NAMES]
    commands.append("link add wire netns {} type veth peer name wire netns {}".format(*NAMES))
    for name, address in zip(NAMES, ADDRESSES, strict=True):
        commands.append(f"-n {name} address add {address}/30 dev wire")
        commands += [f"-n {name} link set {device} up" for device in ("lo", "wire")]
    try:
        for command in commands:
            done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"ip {command}: {done.stderr.strip()}")
        yield NAMES
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def losses(folder):
    """Of each step."""
    history = json.loads((folder / "training_report.json").read_text())["log_history"]
    return np.array([entry["loss"] for entry in history if "loss" in entry])


@pytest.mark.slow
def test_two_hosts_train_as_one_process(hosts, tmp_path):
    pair = prepare(tmp_path / "parts")
    arguments = ["--model", str(tmp_path / "parts" / "a"), "--train_file", str(tmp_path / "parts" / "text.txt")]
    arguments += ["--dropout", "0", "--max_steps", str(STEPS), "--logging_steps", "1", "--learning_rate", "1e-3"]
    arguments += ["--evaluation", "none", "--export", "false", *pair[pair.index("--bf16") :]]
    size = "--per_device_train_batch_size"
    one = start([*arguments, size, "8", "--output_dir", str(tmp_path / "one")], tmp_path / "one.log")
    assert finish(one) == 0, (tmp_path / "one.log").read_text()
    processes = []
    for number, name in enumerate(hosts):
        launch = f"--nnodes 2 --node_rank {number} --nproc_per_node 1 --rdzv_endpoint {ADDRESSES[0]}:29500"
        command = [sys.executable, "-m", "torch.distributed.run", *launch.split(), "-m", "cacse_trainer.cli.train"]
        command += [*arguments, size, "4", "--output_dir", str(tmp_path / "two")]
        with (tmp_path / f"{number}.log").open("w") as log:
            environment = {
                **os.environ,
                "GLOO_SOCKET_IFNAME": "wire",
            }  # by their names the hosts do not find each other
            command = ["ip", "netns", "exec", name, *command]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    codes = [process.wait(600) for process in processes]
    assert codes == [0, 0], (tmp_path / "0.log").read_text() + (tmp_path / "1.log").read_text()
    assert "on 2 process(es), 7 effective negatives, shared" in (tmp_path / "0.log").read_text()
    two, alone = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert len(two) == STEPS and np.abs(two / alone - 1).max() < 1e-4
