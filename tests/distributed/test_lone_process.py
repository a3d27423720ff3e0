"""A launcher that was asked for several processes and started one is noticed, by what it leaves in the environment."""

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from cacse_trainer.compute.distributed import join_processes, launched_alone


def environment_of(monkeypatch, *flags) -> None:
    """The environment that accelerate gives the one process that it starts."""
    args = launch_command_parser().parse_args([*flags, "script.py"])
    args.use_cpu, args.mixed_precision, args.num_machines = args.cpu, "no", args.num_machines or 1
    args.dynamo_backend, args.num_cpu_threads_per_process = "no", 1
    for name, value in prepare_simple_launcher_cmd_env(args)[1].items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)


def test_one_of_two_is_told(monkeypatch, make_trainer, caplog):
    assert launched_alone() is None
    environment_of(monkeypatch, "--cpu", "--num_processes", "2")
    told = launched_alone()
    assert told and "asked for several processes and has started one" in told and "torchrun --nproc_per_node" in told
    make_trainer(eval_strategy="no", save_strategy="no", load_best_model_at_end=False).log_description()
    join_processes(None)  # of encode and evaluate
    assert [record.message for record in caplog.records].count(told) == 2


def test_nothing_is_told_of_one_nor_of_all(monkeypatch):
    environment_of(monkeypatch, "--cpu", "--num_processes", "1")
    assert launched_alone() is None
    environment_of(monkeypatch, "--cpu", "--num_processes", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun's, or MPI's that accelerate reads
    assert launched_alone() is None
