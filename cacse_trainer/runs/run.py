"""What `train` and `distill` share: a run from its settings to the report.

run = TrainingRun(parsed)                                                # output folder, text, dev sets, seed
…build the model, the tokenizer and the trainer…
result = run.execute(trainer, base_models)                               # train, summarise, export, save, report, push
"""

import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import set_seed
from transformers.trainer_utils import TrainOutput

from cacse_trainer.data.languages import language_of
from cacse_trainer.encoding.hub import HubError, HubTarget, prepare_repo, push_folders
from cacse_trainer.encoding.lineage import hub_data_sets, known_of
from cacse_trainer.encoding.model_card import RECORDED, CardFacts
from cacse_trainer.errors import RunError, UserError
from cacse_trainer.evaluation.answers import ANSWERS, write_answers
from cacse_trainer.evaluation.dev_sets import DevSet
from cacse_trainer.evaluation.environment import environment, peak_memory_gb
from cacse_trainer.evaluation.moved import most_moved, sample
from cacse_trainer.files import plain, write_json, write_text
from cacse_trainer.models.objectives import SCORED
from cacse_trainer.report import training_page
from cacse_trainer.report.curves import curve, plot_run
from cacse_trainer.report.training import CHOOSING, verdict_line
from cacse_trainer.runs import preparation
from cacse_trainer.runs.baseline import judge, read_model, read_start
from cacse_trainer.runs.folder import (
    CURVES,
    EXPORT,
    PAGE,
    REPORT,
    check_output_dir,
    clear_output_dir,
    occupied,
    save_model,
)
from cacse_trainer.runs.held_out import with_held_out
from cacse_trainer.runs.progress import use_run_progress
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments, ModelArguments
from cacse_trainer.settings.distillation import DistillationArguments
from cacse_trainer.settings.recipes import Parsed
from cacse_trainer.settings.resources import public_name
from cacse_trainer.training.automatic import GAINS, choose
from cacse_trainer.training.baseline import Reading
from cacse_trainer.training.changes import read_record
from cacse_trainer.training.patience import Patience
from cacse_trainer.training.publishing import training_settings
from cacse_trainer.training.resumable import DUPLICATES
from cacse_trainer.training.trainer import CacseTrainer

logger = logging.getLogger(__name__)

Settings = ModelArguments | DistillationArguments


class NothingLearnedError(RunError):
    """Every dev score was undefined; there is no model worth exporting."""


@dataclass
class RunResult:
    """What a run has left; on several processes only the first one exports and pushes.

    Args:
        folder: the output folder.
        steps: how many were trained; None: nothing was trained, all was only checked or (``do_train false``) scored.
        summary: the metric, its baseline, best value and curve; of a distillation the teacher, too; where nothing was
            trained ``scored``, ``pooling`` and ``scores``, or nothing.
        exported: names of the exported folders, in ``folder/export``, and their scores on the dev sets.
        pushed: address of the commit on the hub.
        push_error: what kept the export from being pushed; all else is there.
    """

    folder: Path
    steps: int | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    exported: dict[str, dict[str, float]] = field(default_factory=dict)
    pushed: str | None = None
    push_error: UserError | RunError | None = None

    @property
    def report(self) -> Path:
        """The page that tells of the run; the same in numbers lies beside it."""
        return self.folder / PAGE


class TrainingRun:
    """One run: its settings (of model or distillation, data, training), and its text, dev sets and checkpoint."""

    model_args: Settings
    data_args: DataArguments
    args: CacseTrainingArguments

    def __init__(self, parsed: Parsed):
        self.parsed, self.started = parsed, time.time()
        self.model_args, self.data_args, self.args = _, data_args, args = parsed.groups
        self.hub = hub_target(args)
        self.checkpoint = check_output_dir(args)
        self.before = read_record(self.checkpoint) if self.checkpoint is not None else {}
        choose(args, self.before)
        self.chosen: dict[str, Any] = {}  # what else ``auto`` came to, for the record
        self.text = preparation.text_facts(data_args)
        rows, self.data_facts = preparation.load_training_text(data_args, args, self.model_args.objective in SCORED)
        sets = preparation.load_sets(data_args, args)
        self.train_dataset, (self.dev_sets, self.test_sets, self.scorers) = with_held_out(rows, sets, data_args, args)
        if self.train_dataset is not rows:
            kept = len(self.train_dataset)
            self.data_facts |= {"held_out": self.data_facts["kept"] - kept, "kept": kept}
        set_seed(args.seed)
        preparation.check_metric(args, self.dev_sets, self.scorers)

    @property
    def text_names(self) -> list[str]:
        """The training texts, as they may be told to others."""
        return list(self.data_facts.get("mixed", [public_name(self.data_args.train_file or "")]))

    def execute(
        self,
        trainer: CacseTrainer,
        starts: list[str],
        extra: dict[str, Any] | None = None,
    ) -> RunResult:
        """Train, choose, export, save, report, push; with ``check`` nothing.

        Args:
            trainer: ready to train.
            starts: the encoders that training starts from: the baseline, see `read_start`, and for the card.
            extra: more entries of the report.

        Raises:
            NothingLearnedError: every dev score is undefined.
            UserError: another run is at work in the output folder.
        """
        args, folder = self.args, Path(str(self.args.output_dir))
        if args.check:
            return RunResult(folder)
        with occupied(args):
            if self.hub is not None and trainer.is_world_process_zero():
                try:  # a refused token ends the run now, an unreachable hub is only said
                    prepare_repo(self.hub)
                except HubError as error:
                    logger.warning("%s; the training goes on, and the push is tried again at its end", error)
            trainer.settings = {**vars(self.model_args), **vars(self.data_args), **self.text, **self.chosen}
            try_a_batch(trainer)
            clear_output_dir(args)
            trainer.extra_scorers = list(self.scorers)
            sets = {**self.dev_sets, **self.test_sets}
            trusted = isinstance(self.model_args, ModelArguments) and self.model_args.trust_remote_code
            looked_at = sample(sets)
            start = read_start(trainer, starts, sets, trusted, looked_at)
            use_run_progress(trainer, bar=not args.disable_tqdm, baselines=start.scores if start is not None else {})
            if args.early_stopping_patience is not None:
                trainer.add_callback(Patience(args.early_stopping_patience))
            trained = trainer.train(resume_from_checkpoint=self.checkpoint)
            summary = summarise(trainer, self.dev_sets, start)
            if start is not None:
                reading = read_model(trainer, sets, sentences=looked_at)
                summary["trained"] = {"scores": reading.scores}
                summary["verdict"] = judge(start, reading, sets, list(self.test_sets))
                if start.vectors is not None and reading.vectors is not None:
                    summary["moved"] = most_moved(looked_at, start.vectors, reading.vectors)
                tell_verdict(trainer, summary["verdict"])
            result = RunResult(folder, trained.global_step, {**summary, **(extra or {})})
            save_model(trainer, folder)  # before the export, whose failure must not cost the weights
            if start is not None and trainer.is_world_process_zero():
                write_answers(folder / ANSWERS, sets, reading.answers, trainer.embedder)
            facts = CardFacts(
                title=folder.resolve().name,
                what="",
                base_models=[public_name(start) for start in starts],
                **self._known_of(starts),
                start=start.scores if start is not None else {},
                start_pooling=start.pooling if start is not None else "",
                license=args.hub_license,
                data=f"{', '.join(self.text_names)}, {self.data_facts.get('kept', 'streamed')} rows",
                settings=card_settings(self.model_args, self.data_args, args, self.parsed.recipe),
                sources=trainer.sources,
            )
            if args.export:
                result.exported = trainer.write_export(folder / EXPORT, facts, sets)
            if trainer.is_world_process_zero():
                self.report(trainer, result, trained, facts)
                if self.hub is not None:
                    try:
                        result.pushed = push_folders([folder / EXPORT / name for name in result.exported], self.hub)
                    except (UserError, RunError) as error:  # what was trained is told all the same
                        result.push_error = error
            return result

    def _known_of(self, starts: list[str]) -> dict[str, Any]:
        """What the cards say of starts and data sets; the text's language where no start states one."""
        known = {**known_of(starts), "datasets": hub_data_sets([self.data_args.train_file or "", *self.text_names])}
        if not known["languages"] and isinstance(self.train_dataset, Dataset):
            texts = self.train_dataset.select(range(min(500, len(self.train_dataset))))
            code = language_of(texts[texts.column_names[0]]).code
            known["languages"] = [code] if code else []
        return known

    def report(self, trainer: CacseTrainer, result: RunResult, trained: TrainOutput, facts: CardFacts) -> None:
        """Write the report and the plot."""
        folder = result.folder
        history = trainer.state.log_history
        keys = sorted({key for entry in history for key in entry if key.startswith("eval_")})
        shown = {key: label for key in keys for end, label in CHOOSING.items() if key.endswith(f"_{end}")}
        plot_run(folder / CURVES, history, list(shown), ", ".join(dict.fromkeys(shown.values())))
        settings = {**vars(self.model_args), **vars(self.data_args), **trainer.args.to_sanitized_dict()}
        report = {
            "model": type(trainer.model).__name__,
            "finished": time.strftime("%Y-%m-%d %H:%M"),
            "command": repeating_command(self.parsed.command, self.args.world_size) if self.parsed.command else None,
            "run": trainer.describe(),
            "data": {**self.data_facts, "duplicate_rows_a_batch": duplicates(history)},
            **result.summary,
            "exported": result.exported,
            "steps": result.steps,
            "train_loss": trained.training_loss,
            "wall_seconds": time.time() - self.started,
            "train_seconds": trained.metrics.get("train_runtime"),
            "peak_memory_gb": peak_memory_gb(),
            "gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
            "environment": environment(),
            **{key: trainer.gains.get(name) for name, key in GAINS.items()},
            "given": self.parsed.given(),
            "settings": {**settings, "recipe": self.parsed.recipe},
            "card": {name: getattr(facts, name) for name in RECORDED},
            "log_history": history,
        }
        write_text(folder / PAGE, training_page(plain(report), folder.resolve().name))
        write_json(folder / REPORT, report)


def hub_target(args: CacseTrainingArguments) -> HubTarget | None:
    """Where a training run pushes its export; `Trainer`'s own pushing, of checkpoints, is switched off.

    Raises:
        UserError: no name is given, or there is no export to push.
    """
    token, args.hub_token = args.hub_token, None  # or `Trainer` writes it into training_args.bin
    if not args.push_to_hub:
        return None
    args.push_to_hub = False
    if not args.hub_model_id:
        raise UserError("push_to_hub needs a name: give --hub_model_id OWNER/NAME")
    if not args.export:
        raise UserError("push_to_hub pushes the exported encoders: drop --export false, or --push_to_hub")
    return HubTarget(args.hub_model_id, args.hub_private_repo, args.hub_revision, token)


def duplicates(history: list[dict[str, Any]]) -> float | None:
    """Mean number of rows of a batch that repeat a sentence of another one, over the log; None: not counted."""
    counts = [entry[DUPLICATES] for entry in history if DUPLICATES in entry]
    return sum(counts) / len(counts) if counts else None


def try_a_batch(trainer: CacseTrainer) -> None:
    """Make the first batch, so that rows that cannot be one are known before an earlier run is deleted."""
    trainer.data_collator(list(islice(iter(trainer.train_dataset), trainer.args.train_batch_size)))


def summarise(trainer: CacseTrainer, dev_sets: Mapping[str, DevSet], start: Reading | None) -> dict[str, Any]:
    """Of the metric that chooses: the baseline, the untrained model, the best score, the curve; and the start.

    Raises:
        NothingLearnedError: every score is undefined.
    """
    if not dev_sets or trainer.args.eval_strategy == "no":
        return {}
    name, first = next(iter(dev_sets.items()))
    metric = trainer.args.metric_for_best_model or f"{name}_{first.metric}"
    points = curve(trainer.state.log_history, f"eval_{metric.removeprefix('eval_')}")
    trained = [point for point in points if point["step"] > 0]
    defined = [point for point in trained if point["value"] == point["value"]]
    if trained and not defined:
        raise NothingLearnedError(
            f"every {metric} is undefined (NaN): nothing is exported; look at the loss in the log"
        )
    untrained = next((point["value"] for point in points if point["step"] == 0), None)
    chosen = max if trainer.args.greater_is_better is not False else min
    best = chosen(defined, key=lambda point: point["value"]) if defined else None
    known = {f"{name}_{kind}": value for name, kind, value in start.every_score()} if start is not None else {}
    baseline = known.get(metric.removeprefix("eval_"), untrained)
    return {
        "metric": metric,
        "baseline": baseline,
        "untrained": untrained,
        "start": {"name": start.name, "pooling": start.pooling, "scores": start.scores} if start else None,
        "best": best["value"] if best else None,
        "best_step": best["step"] if best else None,
        "curve": points,
    }


def tell_verdict(trainer: CacseTrainer, verdict: dict[str, Any]) -> None:
    """Say loudly when training did not help."""
    if verdict["outcome"] != "helped" and trainer.is_world_process_zero():
        said, rest = verdict_line(verdict).split(":", 1)
        logger.warning("%s:%s", said.upper(), rest)


def repeating_command(command: Sequence[str], processes: int) -> str:
    """The command that makes the same run anew, with the launcher of several processes."""
    if processes > 1:
        _program, subcommand, *flags = command
        command = ["torchrun", "--nproc_per_node", str(processes), "-m", f"cacse_trainer.cli.{subcommand}", *flags]
    return shlex.join(command)


def card_settings(model_args: Settings, data_args: DataArguments, args: Any, recipe: str | None) -> dict[str, Any]:
    """What the model card repeats of the settings."""
    return {
        "recipe": Path(recipe).stem if recipe and Path(recipe).exists() else recipe,
        **training_settings(args, model_args.contrastive_temperature, data_args.max_seq_length),
        "note": args.card_note,
    }
