"""DDP and FSDP2 by the shipped file, on gloo processes: one process's losses, weights that one process reads, resume.

A pair with its cascade, a single tower and a decoder with LoRA are trained for four steps without dropout, since each
process draws its own. The processes are started as torchrun starts them; accelerate makes their environment.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from cacse_trainer import SentenceEncoder
from tests.conftest import ROOT
from tests.faults.runs import finish, prepare, start_ranks
from tests.tiny_decoders import make_tiny_decoder

BATCH, STEPS = 8, 4
TRAINED = [
    *(("pair", "ddp", 2), ("pair", "fsdp", 2), ("tower", "ddp", 4), ("tower", "fsdp", 2)),
    *(("lora", "ddp", 2), ("lora", "ddp", 4), ("lora", "fsdp", 2)),
    *(("pair", "fsdp", 4), ("tower", "fsdp", 4), ("lora", "fsdp", 4)),
]
RESUMED = [("pair", "ddp"), ("tower", "fsdp"), ("lora", "ddp")]
"""Each family and each kind, not all of their combinations: a start of two processes takes a quarter of a minute."""
TEXTS = ["a man plays", "the dog", "rain in the mountains"]
Course = Callable[..., Path]


def environment(kind: str) -> dict[str, str]:
    """What accelerate tells each process under the shipped file, and the module that they run; DDP is told nothing."""
    if kind == "ddp":
        return {}
    file = str(ROOT / "configs" / "accelerate" / f"{kind}.yaml")
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", file, "train.py"]))
    told = prepare_multi_gpu_env(arguments)
    own = {name: value for name, value in told.items() if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))}
    return {**own, "ACCELERATE_MIXED_PRECISION": "no", "module": "tests.distributed.sharded"}


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Course:
    """``course(family, kind, world)`` → the folder of a finished run; or of one that goes on after step 2."""
    place = tmp_path_factory.mktemp("sharded")
    pair = prepare(place / "parts")
    text = ["--train_file", str(place / "parts" / "text.txt")]
    how = ["--learning_rate", "1e-3", "--logging_steps", "1", "--bf16", "false", "--use_cpu", "true"]
    how += ["--disable_tqdm", "true"]
    how += ["--max_steps", str(STEPS), "--save_steps", "2", "--save_total_limit", "9"]
    how += ["--evaluation", "none", "--export", "false"]
    cut = pair.index("--dev_file")
    still = ["--cascade_dropout", "0", "--constraint_dropout", "0"]
    lora = ["--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj", "--lora_dropout", "0"]
    families = {
        "pair": [*pair[:cut], "--tower_dropout", "0", "0", *still, *how],
        "tower": ["--model", str(place / "parts" / "a"), "--dropout", "0", *text, *how],
        "lora": ["--model", make_tiny_decoder(place), "--pooling", "last_token", "--append_eos", *lora, *text, *how],
    }

    def run(family: str, kind: str, world: int, after: Path | None = None) -> Path:
        name = f"{family}_{kind}_{world}" + (f"_after_{after.name}" if after else "")
        folder = place / name
        if (folder / "training_report.json").is_file():
            return folder
        if after is not None:
            shutil.copytree(after / "checkpoint-2", folder / "checkpoint-2")
        logs = [place / f"{name}.{rank}.log" for rank in range(world)]
        arguments = [*families[family], "--per_device_train_batch_size", str(BATCH // world)]
        arguments += ["--output_dir", str(folder), *(["--resume_from_checkpoint", "last"] if after else [])]
        processes = start_ranks(arguments, logs, **(environment(kind) if world > 1 else {}))
        assert [finish(process) for process in processes] == [0] * world, logs[0].read_text()[-3000:]
        is_sharded = (folder / f"checkpoint-{STEPS}" / "optimizer.bin").is_file()  # a name of accelerate's
        assert is_sharded == (kind == "fsdp")
        return folder

    return run


def losses(folder: Path) -> list[float]:
    """Of steps 1 to 4."""
    history = json.loads((folder / "training_report.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def vectors(folder: Path) -> Any:
    """Of the last checkpoint, read by one process."""
    return SentenceEncoder(folder / f"checkpoint-{STEPS}", device="cpu").encode(TEXTS)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind", "world"), TRAINED)
def test_one_process_s_losses_and_vectors(course, family, kind, world):
    one, several = course(family, "ddp", 1), course(family, kind, world)
    loss = np.abs(np.array(losses(several)) / losses(one) - 1).max()
    vector = np.abs(vectors(several) - vectors(one)).max()
    print(f"| {family} | {kind} | {world} | {loss:.1e} | {vector:.1e} |")
    assert len(losses(several)) == STEPS and loss < 1e-4 and vector < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), RESUMED)
def test_resumed_on_as_many_and_on_another_number(course, family, kind):
    """On as many the weights are the same bit for bit; on another number, where the sums are other ones, nearly so.

    A sharded checkpoint goes on sharded alone.
    """
    whole = course(family, kind, 2)
    same = course(family, kind, 2, after=whole)
    assert losses(same) == losses(whole) and np.array_equal(vectors(same), vectors(whole))
    if kind == "fsdp":
        with pytest.raises(AssertionError, match="length_buckets was 1, is auto"):  # sharded, the plain pass was taken
            course(family, "ddp", 1, after=whole)
    world = 4 if kind == "fsdp" else 1
    other = course(family, kind, world, after=whole)
    loss = np.abs(np.array(losses(other)) / losses(whole) - 1).max()
    vector = np.abs(vectors(other) - vectors(whole)).max()
    print(f"| {family} | {kind} | 2 → {world} | {loss:.1e} | {vector:.1e} |")
    assert loss < 1e-4 and vector < 1e-3
