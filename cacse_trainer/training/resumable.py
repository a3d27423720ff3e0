"""`ResumableTrainer`: transformers' Trainer, of whose runs nothing is lost.

Checkpoints are whole or not there (checkpoints.py), a signal ends a run with one (interruption.py), and a resumed run
continues exactly: data order, random state and best score as `Trainer` keeps them, and also the position in a stream
(passes.py) and its log in mid-line. Changed settings are refused by name (changes.py).
"""

import json
import os
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from datasets import IterableDataset
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import BatchRebalanceSampler, LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cacse_trainer.compute.distributed import barrier, gather_rows, world_size
from cacse_trainer.compute.memory import keep_freed_memory
from cacse_trainer.data.passes import Passes
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.files import delete_folder, make_readable, put_in_place
from cacse_trainer.settings.arguments import CommonTrainingArguments
from cacse_trainer.training import automatic, changes, checkpoints
from cacse_trainer.training.interruption import SignalWatch

DUPLICATES, LEFT_OUT = "duplicate_rows", "guide_left_out"
NO_LOSS = (DUPLICATES, LEFT_OUT)
"""Among the parts of the log those that are no part of the loss."""


class BestAndLast(TrainerCallback):
    """Scores the last step too, which a length that is no multiple of eval_steps would leave unseen; finds the best."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        is_due = args.eval_strategy == "steps" and args.eval_delay <= state.global_step
        if state.global_step >= state.max_steps and is_due:
            control.should_evaluate = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the best checkpoint of a resumed run whose folder was moved; its state holds the path of the time."""
        if state.best_global_step and args.load_best_model_at_end:
            best = os.path.join(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}")
            if not os.path.isdir(best):
                raise UserError(
                    f"resume: the best checkpoint so far, {os.path.basename(best)}, is not in {args.output_dir}; "
                    "put it there, or start anew with --overwrite_output_dir"
                )
            state.best_model_checkpoint = best


class EpochOrder(Sampler[int]):
    """A random sampler whose order hangs on a seed and the number of the epoch alone.

    Torch's random state, from which an order by length is drawn, is another one after a resume; and accelerate does not
    tell its own sampler the epoch that a run on several processes goes on in.
    """

    def __init__(self, sampler: RandomSampler | LengthGroupedSampler, seed: int) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch from now on."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class ResumableTrainer(Trainer):
    """A `Trainer` with whole checkpoints, an end by signal, exact resume, and the parts of the loss in its log.

    Takes what `Trainer` takes.

    Attributes:
        settings: what else the run is made of, by name (model, text, …): recorded in each checkpoint beside the
            arguments, and compared when one is gone on from.

    Raises:
        UserError: an evaluation or a checkpoint a pass of a stream, whose length is not known.
    """

    model: Any  # the parent's types admit None, and modules without our methods

    def __init__(self, model: Any = None, args: Any = None, *others: Any, **kwargs: Any):
        if args is not None:
            automatic.choose(args)
        super().__init__(model, args, *others, **kwargs)
        self.settings: dict[str, Any] = {}
        self._recorded: dict[str, Any] = {}
        by_epoch = "epoch" in (self.args.eval_strategy, self.args.save_strategy)
        if by_epoch and isinstance(self.train_dataset, IterableDataset):
            raise UserError("a stream has no epochs: give eval_strategy and save_strategy steps, or no")
        self._order: EpochOrder | BatchRebalanceSampler | None = None
        self._part_sums: dict[str, torch.Tensor] = {}
        self._part_count = 0
        self._saving = False
        self._signals = SignalWatch()
        self.add_callback(BestAndLast())
        self.add_callback(self._signals)

    @property
    def gains(self) -> dict[str, float]:
        """What ``auto`` was chosen by in the arguments of this run."""
        return self.args.gains if isinstance(self.args, CommonTrainingArguments) else {}

    @property
    def config_of_run(self) -> Any:
        """The model's config, which a checkpoint records."""
        return self.model.config

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """As `Trainer.train`; a resumed run keeps the baseline of its first start.

        SIGTERM and Ctrl-C end the run after the current step, with a checkpoint of it.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True: the newest whole one in the output folder.
            trial: of a `hyperparameter_search`.
            ignore_keys_for_eval: passed to `evaluate`.

        Raises:
            UserError: there is nothing to resume from, it is damaged, or it was trained with other settings.
            Interrupted: the run was sent a signal; its checkpoint is saved.
            NonFiniteError: a loss or a gradient became NaN or infinite.
            RunError: a checkpoint could not be written.
        """
        folder = str(self.args.output_dir)
        if resume_from_checkpoint is True:
            newest = checkpoints.newest_whole(folder)
            if newest is None:
                raise UserError(f"nothing to resume: output_dir {folder} holds no checkpoint")
            resume_from_checkpoint = str(newest)
        elif isinstance(resume_from_checkpoint, str):
            checkpoints.check_whole(resume_from_checkpoint)
        if self.model_init is not None:  # a search leaves none behind, and each trial may have another
            self.model = self.call_model_init(trial)
        if resume_from_checkpoint and automatic.choose(self.args, changes.read_record(str(resume_from_checkpoint))):
            self._compute_as_chosen()
        self._recorded = self._all_settings()  # before the training, which touches the config
        if resume_from_checkpoint:
            allowed = isinstance(self.args, CommonTrainingArguments) and self.args.resume_with_changes
            changes.check_changes(str(resume_from_checkpoint), self._recorded, allowed=allowed)
            checkpoints.tell_of_missing_state(resume_from_checkpoint)
        automatic.tell_choice(self.args)
        barrier()  # all have read what is there before the first one clears up
        if self.args.should_save:
            checkpoints.clear_leftovers(folder)
        if resume_from_checkpoint:
            self.args.eval_on_start = False
        with self._signals.watching(), keep_freed_memory(self.args.device.type):
            return super().train(resume_from_checkpoint or None, trial, ignore_keys_for_eval)

    def _compute_as_chosen(self) -> None:
        """Compute as the arguments say, whose precision and ways were others when the trainer was made."""
        AcceleratorState._reset_state()  # one for all, and it keeps its precision
        self.create_accelerator_and_postprocess()
        self._settle()

    def _settle(self) -> None:
        """Set what hangs on the model and on the arguments."""

    def _all_settings(self) -> dict[str, Any]:
        rows: dict[str, Any] = {}
        if isinstance(self.train_dataset, Sized):
            rows["training_rows"] = len(self.train_dataset)
        elif isinstance(self.train_dataset, IterableDataset) and self.train_dataset.num_shards > 1:
            rows["workers_of_the_stream"] = self.args.dataloader_num_workers  # each reads shards of its own
        return changes.settings_of(self.args, self.config_of_run, {**self.settings, **rows}, world_size())

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer`'s; a stream is read in passes without an end."""
        if not isinstance(self.train_dataset, IterableDataset):
            return super().get_train_dataloader()
        rows: Any = Passes(self.train_dataset, self._train_batch_size * world_size())
        return self._get_dataloader(rows, "Training", self._train_batch_size, is_training=True)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """As `Trainer`'s, its order drawn from the seed and the epoch."""
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, (RandomSampler, LengthGroupedSampler)):
            sampler = EpochOrder(sampler, self.args.seed if self.args.data_seed is None else self.args.data_seed)
        self._order = sampler if isinstance(sampler, (EpochOrder, BatchRebalanceSampler)) else None
        return sampler

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer`'s, which keeps a resumed run to the checkpoint's own steps of logging, scoring and saving."""
        position = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)
        self._part_sums, self._part_count = {}, 0  # a run before, or a trial, may have ended between two lines
        return position

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As `Trainer`'s, but a run resumed at its end does no step more, and the log goes on in mid-line."""
        if kwargs.get("resume_from_checkpoint") is not None and kwargs["epoch"] == kwargs["epochs_trained"]:
            self._resume_log(Path(kwargs["resume_from_checkpoint"]) / checkpoints.PENDING_LOG)
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if self._order is not None:
            self._order.set_epoch(kwargs["epoch"])
        if self.args.dataloader_persistent_workers and kwargs["train_dataloader"]._iterator is not None:
            # new workers draw a seed from torch's random state, those that stay do not: a resumed run has new ones
            torch.empty((), dtype=torch.int64).random_()
        super()._run_epoch(*args, **kwargs)

    def _resume_log(self, path: Path) -> None:
        if path.is_file():
            pending = json.loads(path.read_text(encoding="utf-8"))
            self._tr_loss += pending["loss"]
            self._globalstep_last_logged = pending["since_step"]
            self._part_count = pending["count"]
            self._part_sums = {name: torch.tensor(value) for name, value in pending["parts"].items()}

    def _pending_log(self) -> dict[str, Any] | None:
        """What the next log line has summed up so far, over all processes; None just after a line."""
        if self._globalstep_last_logged == self.state.global_step:
            return None
        return {
            "loss": gather_rows(self._tr_loss.reshape(1)).mean().item(),
            "since_step": self._globalstep_last_logged,
            "count": self._part_count,
            "parts": {name: float(value) for name, value in self._part_sums.items()},
        }

    # ---- the log ----

    def sum_part(self, name: str, value: torch.Tensor) -> None:
        """Add a step's value to what the next line of the log shows the mean of."""
        self._part_sums[name] = self._part_sums.get(name, 0) + value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each loss part since the last log."""
        if "loss" in logs and self._part_count:
            logs = dict(logs)
            for name, total in self._part_sums.items():
                logs[name if name in NO_LOSS else f"loss_{name}"] = (total / self._part_count).item()
            self._part_sums, self._part_count = {}, 0
        super().log(logs, start_time)

    # ---- checkpoints ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As `Trainer`'s; weights of another shape are told in one line."""
        with user_errors(f"resume: the weights of {resume_from_checkpoint} do not fit this model", RuntimeError):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint that lacks weights of this model, which would stay those of its start.

        Raises:
            UserError: with the first of them.
        """
        state = self.model.state_dict()
        missing = set(load_result.missing_keys)
        # of tied weights one is saved
        loaded = {tensor.data_ptr() for name, tensor in state.items() if name not in missing}
        lacking = [name for name in load_result.missing_keys if state[name].data_ptr() not in loaded]
        if lacking:
            raise UserError(
                f"resume: the checkpoint lacks {len(lacking)} weights of this model, such as {lacking[0]}: it is of "
                "another one; give the settings of its run"
            )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As `Trainer`'s; a new best is saved at once, also between two save_steps."""
        is_new_best = super()._determine_best_metric(metrics, trial)
        if is_new_best and self.args.load_best_model_at_end:
            self.control.should_save = True
        self._signals.ask(self.args, self.state, self.control)  # an evaluation may take long
        return is_new_best

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer`'s; others may read the weights where the umask lets them."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            make_readable(Path(output_dir or str(self.args.output_dir)).glob("*model*.safetensors"))

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, checkpoints.STAGING) if self._saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint aside and rename it when it is whole, so that a kill at any moment leaves no half."""
        final_folder, step = self._get_output_dir(trial), self.state.global_step
        name = f"{PREFIX_CHECKPOINT_DIR}-{step}"
        staged, final = os.path.join(final_folder, checkpoints.STAGING, name), os.path.join(final_folder, name)
        pending = self._pending_log()
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # rotate after the rename
        self._saving = True
        try:
            with checkpoints.writing_checkpoint(final_folder, step):
                super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
            self.args.save_total_limit = limit
        best = os.path.join(final_folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
        if best == final or (self.state.best_global_step and os.path.isdir(best)):
            self.state.best_model_checkpoint = best
        barrier()  # every process has written its part
        if self.args.should_save:
            with checkpoints.writing_checkpoint(final_folder, step):
                self.state.save_to_json(os.path.join(staged, TRAINER_STATE_NAME))
                changes.write_record(Path(staged), self._recorded)
                if pending is not None:
                    Path(staged, checkpoints.PENDING_LOG).write_text(json.dumps(pending), encoding="utf-8")
                checkpoints.write_manifest(Path(staged))
                put_in_place(Path(staged), Path(final))
            os.rmdir(os.path.dirname(staged))
            if self.args.push_to_hub:
                self.push_checkpoint(Path(final))
            self._rotate(final_folder)
        barrier()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: `Trainer` calls it while the checkpoint is written, under a name that it will not keep."""

    def push_checkpoint(self, folder: Path) -> None:
        """Called on the first process with each whole checkpoint, where ``push_to_hub`` is set."""

    def checkpoints_in_use(self) -> set[str]:
        """Names of checkpoints that something reads at the moment: they are not rotated away."""
        return set()

    def _rotate(self, folder: str) -> None:
        limit, best, step = self.args.save_total_limit, self.state.best_model_checkpoint, self.state.global_step
        checkpoints.rotate_checkpoints(folder, limit, best, step, self.checkpoints_in_use())

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer`'s, which at its end deletes all but the best checkpoint: each by one rename here."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            output = super()._finalize_training(trial, *args, **kwargs)
        finally:
            self.args.save_total_limit = limit
        best, folder = self.state.best_model_checkpoint, self._get_output_dir(trial)
        if self.args.should_save and best is not None and limit == 1:
            for checkpoint in checkpoints.list_checkpoints(folder):
                if checkpoint.name != os.path.basename(best):
                    delete_folder(checkpoint)
        elif self.args.should_save and self.args.push_to_hub:
            self._rotate(folder)  # what was on its way at the last save
        return output
