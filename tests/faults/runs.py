"""Small runs of the real commands in processes of their own, which a test can kill.

The processes are forked from a server that has imported the libraries once: a run starts at once, so that a hundred can
be killed in the time that ten starts from nothing take. A killed process is as dead as any other.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import BertModel

from tests.conftest import make_tokenizer, tiny_config, write_pairs, write_sentences

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["cacse_trainer.cli.train", "tests.conftest"])


def prepare(folder: Path) -> list[str]:
    """Towers with dropout, text and dev pairs in a folder; the arguments of a small run on them, but --output_dir."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(folder)
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        BertModel(tiny_config("bert", layers=2)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    text, dev = write_sentences(folder / "text.txt"), write_pairs(folder / "dev.tsv")
    return [
        *("--tower_a", str(folder / "a"), "--tower_b", str(folder / "b"), "--cascade_start_layer", "1"),
        *("--constraint_layers", "1", "--tower_dropout", "0.1", "0.15", "--train_file", str(text)),
        *("--dev_file", f"stsb={dev}", "--max_steps", "12", "--eval_steps", "2"),
        *("--per_device_train_batch_size", "8", "--learning_rate", "1e-3", "--logging_steps", "3"),
        *("--bf16", "false", "--fast_paths", "true", "--use_cpu", "true", "--disable_tqdm", "true"),
    ]


def _work(module: str, arguments: list[str], log: str, environment: dict[str, str]) -> None:
    import importlib

    from cacse_trainer.cli.common import run

    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    tempfile.tempdir = None  # which the server may have settled before TMPDIR was set
    torch.set_num_threads(1)
    sys.exit(run(importlib.import_module(module).main, arguments))


def start(
    arguments: list[str], log: Path, module: str = "cacse_trainer.cli.train", **environment: str
) -> multiprocessing.Process:
    """Start a command; its output is appended to ``log``."""
    process = _context.Process(target=_work, args=(module, arguments, str(log), environment))
    process.start()
    return process


def start_ranks(arguments: list[str], logs: list[Path], **environment: str) -> list[multiprocessing.Process]:
    """Start a command on several processes of one gloo group, without a launcher that would look after them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(len(logs)), **environment}
    return [start(arguments, log, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank, log in enumerate(logs)]


def wait_for(path: Path, process: multiprocessing.Process) -> None:
    """Wait until a run has written something; a run that ends before fails the test."""
    while not path.exists():
        assert process.exitcode is None, "the run ended before it wrote what was waited for"
        time.sleep(0.02)


def finish(process: multiprocessing.Process) -> int:
    """Wait for a process; its exit code, negative for a signal."""
    process.join(300)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def kill(process: multiprocessing.Process, number: int = signal.SIGKILL) -> int:
    """Send a process a signal and wait for its end; its exit code."""
    os.kill(process.pid, number)
    return finish(process)


def is_done(output: Path) -> bool:
    """Whether a run has come to its end."""
    return (output / "training_report.json").is_file()


def going_on(output: Path) -> list[str]:
    """The arguments with which a person starts the run again."""
    return ["--resume_from_checkpoint", "last"] if list(output.glob("checkpoint-*")) else []


def outcome(output: Path) -> dict[str, object]:
    """What two runs must have in common: every weight left behind, byte by byte, and the losses and scores."""
    history = json.loads((output / "training_report.json").read_text())["log_history"]
    times = ("_runtime", "_per_second")
    lines = [{key: value for key, value in entry.items() if not key.endswith(times)} for entry in history[:-1]]
    weights = {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*.safetensors"))}
    return {"history": lines, **weights}
