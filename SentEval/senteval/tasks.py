"""The table of tasks: name, kind, files, and the function that loads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from senteval import relatedness, sts, transfer
from senteval.errors import DataFileMissing, UnknownTask
from senteval.task import Task

SCRIPTS = {
    "downstream": "SentEval/data/downstream/download_dataset.sh",
    "probing": "SentEval/data/probing/download_probing.sh",
}


@dataclass(frozen=True)
class TaskSpec:
    """What is known of a task before its files are read.

    Args:
        name: as in ``SE.eval``.
        kind: "sts", "transfer" or "probing".
        folder: below the data folder.
        files: names inside ``folder``, all required.
        load: (name, folder, seed) → task.
    """

    name: str
    kind: str
    folder: str
    files: tuple[str, ...]
    load: Callable[[str, Path, int], Task]

    @property
    def script(self) -> str:
        """The script that fetches the files, from the root of a checkout."""
        return SCRIPTS[self.folder.split("/")[0]]

    def paths(self, task_path: str | Path) -> list[Path]:
        """The required files below a data folder."""
        return [Path(task_path) / self.folder / file for file in self.files]

    def missing(self, task_path: str | Path) -> list[Path]:
        """Those of the required files that are not there."""
        return [path for path in self.paths(task_path) if not path.is_file()]


def _table() -> Iterable[TaskSpec]:
    for name, subsets in sts.SUBSETS.items():
        files = tuple(f"STS.{part}.{subset}.txt" for subset in subsets for part in ("input", "gs"))
        yield TaskSpec(name, "sts", f"downstream/STS/{name}-en-test", files, sts.load_sts_year)
    benchmark, sick = tuple(sts.STS_BENCHMARK_FILES.values()), tuple(sts.SICK_FILES.values())
    benchmark_folder, sick_folder = "downstream/STS/STSBenchmark", "downstream/SICK"
    yield TaskSpec("STSBenchmark", "sts", benchmark_folder, benchmark, sts.load_sts_benchmark)
    yield TaskSpec("SICKRelatedness", "sts", sick_folder, sick, sts.load_sick_relatedness)
    for name, files in {
        "MR": ("rt-polarity.pos", "rt-polarity.neg"),
        "CR": ("custrev.pos", "custrev.neg"),
        "MPQA": ("mpqa.pos", "mpqa.neg"),
        "SUBJ": ("subj.objective", "subj.subjective"),  # the objective file is the positive class
    }.items():
        load = partial(transfer.load_binary, positive=files[0], negative=files[1])
        yield TaskSpec(name, "transfer", f"downstream/{name}", files, load)
    splits = ("train", "dev", "test")
    sst = tuple(f"sentiment-{split}" for split in splits)
    two, five = partial(transfer.load_sst, nclasses=2), partial(transfer.load_sst, nclasses=5)
    yield TaskSpec("SST2", "transfer", "downstream/SST/binary", sst, two)
    yield TaskSpec("SST5", "transfer", "downstream/SST/fine", sst, five)
    yield TaskSpec("TREC", "transfer", "downstream/TREC", ("train_5500.label", "TREC_10.label"), transfer.load_trec)
    mrpc = ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt")
    yield TaskSpec("MRPC", "transfer", "downstream/MRPC", mrpc, transfer.load_mrpc)
    yield TaskSpec("SICKEntailment", "transfer", sick_folder, sick, transfer.load_sick_entailment)
    snli = tuple(f"{column}.{split}" for split in splits for column in ("s1", "s2", "labels"))
    yield TaskSpec("SNLI", "transfer", "downstream/SNLI", snli, transfer.load_snli)
    yield TaskSpec(
        "STSBenchmark-finetune", "transfer", benchmark_folder, benchmark, relatedness.load_sts_benchmark_finetune
    )
    yield TaskSpec("SICKRelatedness-finetune", "transfer", sick_folder, sick, relatedness.load_sick_finetune)
    for name, file in transfer.PROBING_FILES.items():
        yield TaskSpec(name, "probing", "probing", (file,), transfer.load_probing)


TASKS: dict[str, TaskSpec] = {spec.name: spec for spec in _table()}


def task_spec(name: str) -> TaskSpec:
    """A task's entry in the table.

    Raises:
        UnknownTask: no such task; the nearest name is suggested.
    """
    if name not in TASKS:
        raise UnknownTask(name, TASKS)
    return TASKS[name]


def load_task(name: str, task_path: str | Path, seed: int = 1111) -> Task:
    """Reads a task's files.

    Args:
        name: a key of ``TASKS``.
        task_path: the data folder, which holds ``downstream/`` and ``probing/``.
        seed: seed of the task's classifiers.

    Returns:
        The task, with its sentences in ``samples``.

    Raises:
        UnknownTask: no such task.
        DataFileMissing: a file is not there.
        DataFormatError: a file is not in the published format.
    """
    spec = task_spec(name)
    missing = spec.missing(task_path)
    if missing:
        raise DataFileMissing(name, missing, spec.script)
    return spec.load(name, Path(task_path) / spec.folder, seed)
