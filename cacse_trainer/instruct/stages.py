"""The four stages as stages of a pipeline: what each depends on, and what it leaves last in its folder.

``data`` → ``train`` → ``merge`` → ``evaluate``, each a folder of that name in the output folder. A stage's hash covers
its own settings, the files that it reads and the hash of the stage before.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.files import foreign, read_object
from cacse_trainer.instruct import dataset, evaluation, merging, training
from cacse_trainer.instruct.arguments import STAGES, InstructSettings
from cacse_trainer.models.adapters import peft_library
from cacse_trainer.pipeline.runner import Record, plan, read_record
from cacse_trainer.pipeline.stages import Stage
from cacse_trainer.runs.folder import REPORT
from cacse_trainer.settings.resources import resolve_resource

PROOF = {"data": dataset.FACTS, "train": REPORT, "merge": merging.REPORT, "evaluate": evaluation.RESULTS}
LEFT = {
    "data": (dataset.TRAIN, dataset.VALIDATION, dataset.FACTS),
    "merge": (),
    "evaluate": ("base.json", "tuned.json", "*.yaml", evaluation.TABLE, evaluation.RESULTS),
}
"""Patterns of what the stages leave in their folders; a merged model is known by its list, a training as a run is."""
IRRELEVANT = (
    "do_",
    "output_dir",
    "disable_tqdm",
    "report_to",
    "run_name",
    "project",
    "overwrite",
    "resume",
    "log",
    "hub_",
)
"""Training arguments, by the beginning of their names, that change nothing of the adapter."""


@dataclass
class InstructStage(Stage):
    """A stage that is started with the command line of the whole, ``words``, and is told which one it is."""

    words: Sequence[str] = field(default_factory=list)

    def flags(self, root: Path) -> list[str]:
        """See `Stage.flags`; the settings only serve the hash here."""
        return [*self.words, "--run_stage", self.name]

    @property
    def trains(self) -> bool:
        """See `Stage.trains`."""
        return self.name == "train"

    def is_finished(self) -> bool:
        """Whether the folder holds what the stage leaves last."""
        return (self.folder / PROOF[self.name]).is_file()

    def foreign(self) -> list[Path]:
        """See `Stage.foreign`."""
        return super().foreign() if self.trains else foreign(self.folder, LEFT[self.name])

    def left(self) -> dict[str, Any]:
        """The report that the finished stage has left."""
        return read_object(self.folder / PROOF[self.name], f"run the stage {self.name} anew: delete its folder")


def make_stages(words: Sequence[str], settings: InstructSettings) -> list[InstructStage]:
    """All four stages, in order; ``words`` is the command line that gave these settings.

    Raises:
        UserError: wrong pairs, or a training that shall not be.
    """
    data, args = settings.data, settings.training
    if not (args.do_train and args.do_eval):
        raise UserError("do_train, do_eval false: choose the stages with --stages, and eval_strategy; leave them out")
    processes = settings.stages.processes
    trained_as = {**vars(settings.model), "processes": processes}
    merged_as = {"merged_dtype": trained_as.pop("merged_dtype")}
    trained_as.update((name, value) for name, value in args.to_dict().items() if not name.startswith(IRRELEVANT))
    trained_as |= dict.fromkeys(args.automatic & trained_as.keys(), "auto")  # what it came to is the checkpoint's
    pairs = [path for source in dataset.pair_sources(data) for path in (source.train, source.validation)]
    encoder = [data.encoder, data.encoder_adapter] if data.scores == "encoder" else []
    own_tasks = Path(settings.evaluation.include_path).rglob("*") if settings.evaluation.include_path else []
    read: dict[str, tuple[dict[str, Any], list[str | None]]] = {
        "data": ({**vars(data), "seed": args.seed}, [*pairs, *encoder]),
        "train": (trained_as, [settings.model.model]),
        "merge": (merged_as, []),
        "evaluate": (vars(settings.evaluation), [str(path) for path in sorted(own_tasks) if path.is_file()]),
    }
    return [
        InstructStage(
            name,
            "instruct",
            # bytes: a long text is a value here, and no path to be looked up
            {
                "values": json.dumps(values, sort_keys=True, default=str).encode(),
                "files": [resolve_resource(file) for file in files if file is not None],
            },
            Path(str(args.output_dir)) / name,
            needs=list(STAGES[max(0, STAGES.index(name) - 1) : STAGES.index(name)]),
            processes=processes if name == "train" else 1,
            words=words,
        )
        for name, (values, files) in read.items()
    ]


def going_on(stages: Sequence[InstructStage], record: Record) -> Record:
    """The record, by which a training that is not finished goes on although its settings or inputs have changed."""
    fingerprints = {
        stage.name: {**record[stage.name], "fingerprint": fingerprint}
        for stage, fingerprint, todo in plan(stages, record)
        if stage.name == "train" and todo == "redo" and not stage.is_finished()
    }
    return {**record, **fingerprints}


def check_order(stages: Sequence[InstructStage], root: Path, chosen: Sequence[str]) -> None:
    """Refuse to run a stage whose predecessor is neither finished with these settings nor chosen.

    Raises:
        UserError: with the stage to add.
    """
    due = [stage.name for stage, _, todo in plan(stages, read_record(root)) if todo != "skip"]
    for stage in stages:
        for needed in stage.needs:
            if stage.name in chosen and stage.name in due and needed in due and needed not in chosen:
                raise UserError(
                    f"stages: {stage.name} needs {needed}, which is not finished in {root} with these settings; "
                    f"give --stages {needed} {stage.name}"
                )


def check_ahead(stages: Sequence[str], settings: InstructSettings) -> None:
    """What a late stage would miss is told before the first one starts.

    Raises:
        UserError: a library, the model or a task is missing, or a checkpoint is named.
    """
    if settings.training.resume_from_checkpoint is not None:
        raise UserError("resume_from_checkpoint: an interrupted training goes on by itself, from its last checkpoint")
    if {"train", "merge"} & set(stages):
        peft_library()
        training.load_tokenizer(settings.model)
    if "evaluate" in stages:
        evaluation.check_tasks(settings.evaluation)


def run_stage(name: str, root: Path, settings: InstructSettings) -> None:
    """Run one stage in this process."""
    data, adapter, merged = root / "data", root / "train", root / "merge"
    if name == "data":
        dataset.build_dataset(settings.data, data, settings.training.seed)
    elif name == "train":
        with user_errors("settings", ImportError):  # a logger or an optimizer that is not installed
            training.train_adapter(settings.model, settings.training, data, adapter)
    elif name == "merge":
        merging.merge_adapter_folder(settings.model, adapter, merged)
    else:
        evaluation.evaluate_models(settings.model, settings.evaluation, merged, data, root / "evaluate")
