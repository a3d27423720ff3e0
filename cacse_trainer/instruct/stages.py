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
from cacse_trainer.instruct import dataset, evaluation, merging, training
from cacse_trainer.instruct.arguments import (
    STAGES,
    InstructDataArguments,
    InstructEvaluationArguments,
    InstructModelArguments,
    StageArguments,
)
from cacse_trainer.pipeline.runner import plan, read_record
from cacse_trainer.pipeline.stages import Stage
from cacse_trainer.runs.folder import REPORT
from cacse_trainer.settings.arguments import CommonTrainingArguments
from cacse_trainer.settings.resources import resolve_resource

PROOF = {"data": dataset.FACTS, "train": REPORT, "merge": merging.REPORT, "evaluate": evaluation.RESULTS}
COMMAND = "instruct"
IRRELEVANT = ("output_dir", "disable_tqdm", "report_to", "run_name", "project", "overwrite", "resume", "log", "hub_")
"""Training arguments, by the beginning of their names, that change nothing of the adapter."""


@dataclass
class InstructStage(Stage):
    """A stage that is started with the command line of the whole, and is told which one it is.

    Args:
        words: that command line.
    """

    words: Sequence[str] = field(default_factory=list)

    def flags(self, root: Path) -> list[str]:
        """See `Stage.flags`; the settings only serve the hash here."""
        return [*self.words, "--run_stage", self.name]

    def is_finished(self) -> bool:
        """Whether the folder holds what the stage leaves last."""
        return (self.folder / PROOF[self.name]).is_file()

    def left(self) -> dict[str, Any]:
        """The report that the finished stage has left."""
        return json.loads((self.folder / PROOF[self.name]).read_text(encoding="utf-8"))


def make_stages(
    words: Sequence[str],
    stage_args: StageArguments,
    data_args: InstructDataArguments,
    model_args: InstructModelArguments,
    eval_args: InstructEvaluationArguments,
    args: CommonTrainingArguments,
) -> list[InstructStage]:
    """All four stages, in order.

    Args:
        words: the command line that gave these settings.
        stage_args, data_args, model_args, eval_args, args: the settings.

    Raises:
        UserError: wrong pairs.
    """
    model = vars(model_args)
    merged_as = {"merged_dtype": model["merged_dtype"]}
    trained_as = {name: value for name, value in model.items() if name != "merged_dtype"}
    training_args = {name: value for name, value in args.to_dict().items() if not name.startswith(IRRELEVANT)}
    pairs = [path for source in dataset.pair_sources(data_args) for path in (source.train, source.validation) if path]
    encoder = [data_args.encoder, data_args.encoder_adapter] if data_args.scores == "encoder" else []
    own_tasks = Path(eval_args.include_path) if eval_args.include_path is not None else None
    task_files: list[str | None] = (
        [str(path) for path in sorted(own_tasks.rglob("*")) if path.is_file()] if own_tasks else []
    )
    settings: dict[str, tuple[dict[str, Any], list[str | None]]] = {
        "data": ({**vars(data_args), "seed": args.seed}, [*pairs, *encoder]),
        "train": ({**trained_as, **training_args, "processes": stage_args.processes}, [model_args.model]),
        "merge": (merged_as, []),
        "evaluate": (vars(eval_args), task_files),
    }
    stages = []
    for name in STAGES:
        values, files = settings[name]
        stages.append(
            InstructStage(
                name,
                COMMAND,
                # bytes: a long text is a value here, and no path to be looked up
                {
                    "values": json.dumps(values, sort_keys=True, default=str).encode(),
                    "files": [resolve_resource(file) for file in files if file is not None],
                },
                Path(str(args.output_dir)) / name,
                needs=list(STAGES[STAGES.index(name) - 1 :][:1]) if name != "data" else [],
                processes=stage_args.processes if name == "train" else 1,
                words=words,
            )
        )
    return stages


def check_order(stages: Sequence[InstructStage], root: Path, chosen: Sequence[str]) -> None:
    """Refuse to run a stage whose predecessor is neither finished with these settings nor chosen.

    Raises:
        UserError: with the stage to add.
    """
    state = {stage.name: todo for stage, _, todo in plan(stages, read_record(root))}
    for stage in stages:
        for needed in stage.needs:
            is_run = stage.name in chosen and state[stage.name] != "skip"
            if is_run and needed not in chosen and state[needed] != "skip":
                raise UserError(
                    f"stages: {stage.name} needs {needed}, which is not finished in {root} with these settings; "
                    f"give --stages {needed} {stage.name}"
                )


def check_ahead(
    stages: Sequence[str],
    model_args: InstructModelArguments,
    eval_args: InstructEvaluationArguments,
    args: CommonTrainingArguments,
) -> None:
    """What a late stage would miss is told before the first one starts.

    Raises:
        UserError: a library, the model or a task is missing, or a checkpoint is named.
    """
    if args.resume_from_checkpoint is not None:
        raise UserError("resume_from_checkpoint: an interrupted training goes on by itself, from its last checkpoint")
    if {"train", "merge"} & set(stages):
        training.require_peft()
        training.load_tokenizer(model_args)
    if "evaluate" in stages:
        evaluation.check_tasks(eval_args)


def run_stage(
    name: str,
    root: Path,
    data_args: InstructDataArguments,
    model_args: InstructModelArguments,
    eval_args: InstructEvaluationArguments,
    args: CommonTrainingArguments,
) -> None:
    """Run one stage in this process."""
    data, adapter, merged = root / "data", root / "train", root / "merge"
    if name == "data":
        dataset.build_dataset(data_args, data, args.seed)
    elif name == "train":
        with user_errors("settings", ImportError):  # a logger or an optimizer that is not installed
            training.train_adapter(model_args, args, data, adapter)
    elif name == "merge":
        merging.merge_adapter_folder(model_args, adapter, merged)
    else:
        evaluation.evaluate_models(model_args, eval_args, merged, data, root / "evaluate")
