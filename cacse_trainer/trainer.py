"""`CacseTrainer`: transformers' Trainer for models that return their loss, chosen by a dev score.

What it adds: raw-text columns through `ContrastiveCollator`, an `evaluate` that scores graded pairs by
``model.embed``, a baseline before training and an evaluation at the last step, the loss's parts in the log, a stop when
the loss is not finite, a warning of collapse, and checkpoints that are renamed into place when they are whole.
"""

import copy
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cacse_trainer.arguments import CacseTrainingArguments
from cacse_trainer.data import ContrastiveCollator
from cacse_trainer.distributed import barrier, world_size
from cacse_trainer.errors import RunError, UserError
from cacse_trainer.evaluation.embed import Embed, length_limit
from cacse_trainer.evaluation.health import COLLAPSE_COSINE
from cacse_trainer.evaluation.sts import score_pairs

logger = logging.getLogger(__name__)

STAGING = "checkpoint.partial"
SUMMARY_ROWS = 512  # rows from which the tokens of a batch are estimated


Scorer = Callable[[Embed, Any, int, torch.device, torch.dtype | None], dict[str, float]]
"""``scorer(embed, tokenizer, max_seq_length, device, dtype) → metrics by name``; more scores of a model in training."""


class NonFiniteLossError(RunError):
    """The loss became NaN or infinite; the message says at which step and in which part."""


class _BestAndLast(TrainerCallback):
    """Scores the last step too, which a length that is no multiple of eval_steps would leave unseen; finds the best."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and args.eval_strategy == "steps":
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


class CacseTrainer(Trainer):
    """A `transformers.Trainer` for the models of this package.

    Args:
        model: a model whose ``forward`` returns its loss and whose ``embed`` gives the sentence embedding.
        args: `transformers.TrainingArguments` or `CacseTrainingArguments`; a copy is used, with columns kept, the last
            incomplete batch dropped, and, where there is an evaluation, one before the first step.
        data_collator: default: `ContrastiveCollator` of the tokenizer.
        train_dataset: raw columns text | anchor, positive[, hard_negative]; a map-style or a streamed dataset.
        eval_dataset: graded pairs (sentence1, sentence2, score), or a dict of them by name; the scores of the set
            ``stsb`` are logged as ``eval_stsb_spearman`` and so on.
        processing_class: the tokenizer.
        max_seq_length: training sentences are cut to so many tokens.
        eval_max_seq_length: the same for dev sentences; default: the longest the model takes.
        callbacks, optimizers: as for `Trainer`.

    Attributes:
        extra_scorers: called at each evaluation of the dev sets, for more metrics (`Scorer`); none by default.

    Raises:
        UserError: several GPUs in one process, no tokenizer, or a data set smaller than one batch.
    """

    model: Any  # the parent's types admit None, and modules without our methods
    train_dataset: Any
    processing_class: Any

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        max_seq_length: int = 64,
        eval_max_seq_length: int | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ):
        args = copy.copy(args) if args is not None else TrainingArguments("outputs")
        args.remove_unused_columns = False
        args.dataloader_drop_last = True
        wants_baseline = args.eval_on_start or not isinstance(args, CacseTrainingArguments)
        args.eval_on_start = wants_baseline and eval_dataset is not None and args.eval_strategy != "no"
        if args.ddp_find_unused_parameters is None:  # every trainable parameter gets a gradient
            args.ddp_find_unused_parameters = False
        if args.ddp_broadcast_buffers is None:
            args.ddp_broadcast_buffers = False
        if isinstance(train_dataset, IterableDataset):
            # Each process reads its own rows: the batches differ in length, so one cannot cut them for the others.
            accelerator_config: Any = copy.copy(args.accelerator_config)
            accelerator_config.dispatch_batches = False
            args.accelerator_config = accelerator_config
        if args.n_gpu > 1:
            raise UserError(
                f"one process sees {args.n_gpu} GPUs, and DataParallel would split the batch without "
                f"sharing negatives; run accelerate launch --multi_gpu --num_processes {args.n_gpu} "
                "-m cacse_trainer.cli.train …, or show it one GPU with CUDA_VISIBLE_DEVICES=0"
            )
        if processing_class is None:
            processing_class = getattr(data_collator, "tokenizer", None)
        if processing_class is None:
            raise UserError("CacseTrainer needs the tokenizer: pass processing_class=tokenizer")
        if data_collator is None:
            data_collator = ContrastiveCollator(processing_class, max_seq_length=max_seq_length)
        model.length_buckets = getattr(args, "num_length_buckets", model.length_buckets)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[*(callbacks or []), _BestAndLast()],
            optimizers=optimizers,
        )
        self.extra_scorers: list[Scorer] = []
        self.eval_max_seq_length = (
            eval_max_seq_length if eval_max_seq_length is not None else length_limit(processing_class, model.config)
        )
        self._part_sums: dict[str, torch.Tensor] = {}
        self._part_count = 0
        self._saving = False
        self._check_data()

    # ---- before training ----

    def _check_data(self) -> None:
        if self.train_dataset is not None and self.args.train_batch_size * world_size() < 2:
            raise UserError(
                f"per_device_train_batch_size={self.args.train_batch_size}: a batch of one row has no negatives; "
                "give 2 or more"
            )
        if self.train_dataset is None or not hasattr(self.train_dataset, "__len__"):
            return
        rows, batch = len(self.train_dataset), self.args.train_batch_size * world_size()
        if rows < batch:
            raise UserError(
                f"the training data has {rows} rows, fewer than one batch of {batch}, and incomplete "
                f"batches are dropped (a batch gives the negatives); give more text or a per_device_train_batch_size "
                f"of at most {rows // world_size()}"
            )

    def describe(self) -> dict[str, Any]:
        """What is about to be trained: parameters, batch, effective negatives, tokens a batch, dropout in force."""
        batch = self.args.train_batch_size * world_size()
        parameters = list(self.model.parameters())
        summary = {
            "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "parameters": sum(p.numel() for p in parameters),
            "processes": world_size(),
            "global_batch": batch,
            "gradient_accumulation_steps": self.args.gradient_accumulation_steps,
            "effective_negatives": self.effective_negatives(batch),
            "negatives_shared_between_processes": world_size() > 1,
            "dropout": self._dropout_in_force(),
        }
        if self.train_dataset is not None and hasattr(self.train_dataset, "__len__"):
            summary["training_rows"] = len(self.train_dataset)
            summary.update(self._tokens_a_batch())
        return summary

    def effective_negatives(self, batch_size: int) -> int:
        """Negatives of each row in a global batch of so many rows."""
        return self.model.effective_negatives(batch_size)

    def _dropout_in_force(self) -> dict[str, list[float]]:
        found: dict[str, set[float]] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Dropout):
                found.setdefault(name.split(".")[0], set()).add(module.p)
        return {part: sorted(values) for part, values in found.items()}

    def _tokens_a_batch(self) -> dict[str, int]:
        size = self.args.train_batch_size
        count = min(len(self.train_dataset), max(SUMMARY_ROWS, size)) // size * size
        step = max(1, len(self.train_dataset) // count)
        rows = [self.train_dataset[i * step] for i in range(count)]
        masks = [self.data_collator(rows[i : i + size])["attention_mask"] for i in range(0, count, size)]
        return {
            "tokens_a_batch": round(sum(int(mask.sum()) for mask in masks) / len(masks)),
            "padded_tokens_a_batch": round(sum(mask.numel() for mask in masks) / len(masks)),
        }

    def log_description(self) -> dict[str, Any]:
        """Log `describe` and what the reader can act on; returns it."""
        summary = self.describe()
        text = describe_text(type(self.model).__name__, summary)
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s", text)
        else:  # used from Python, where nobody has set up logging: said all the same
            print(text, file=sys.stderr)
        if self.args.gradient_accumulation_steps > 1:
            logger.warning(
                "gradient_accumulation_steps=%d adds no negatives: each part of a batch only sees its own %d; "
                "a larger per_device_train_batch_size does",
                self.args.gradient_accumulation_steps,
                summary["effective_negatives"],
            )
        return summary

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; a resumed run keeps the baseline of its first start."""
        if self.args.should_save:
            shutil.rmtree(os.path.join(str(self.args.output_dir), STAGING), ignore_errors=True)
        if resume_from_checkpoint:
            self.args.eval_on_start = False
        if self.is_world_process_zero():
            self.log_description()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Every parameter with ``decay_all_parameters``, else all but biases and norms."""
        if getattr(self.args, "decay_all_parameters", False):
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    # ---- a step ----

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's loss; its parts are summed for the log, and a loss that is not finite stops the run.

        Raises:
            NonFiniteLossError: with the step and the parts.
        """
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        self.record_loss(loss, outputs["losses"])
        return (loss, outputs) if return_outputs else loss

    def record_loss(self, loss: torch.Tensor, parts: dict[str, torch.Tensor]) -> None:
        """Sum a step's loss parts for the log.

        Raises:
            NonFiniteLossError: the loss is not finite; with the step and the parts.
        """
        if not torch.isfinite(loss):
            values = ", ".join(f"{name} {value.item():.4g}" for name, value in parts.items())
            raise NonFiniteLossError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} ({values}); lower the learning rate, "
                "check the weights that training started from, or train in float32 (--bf16 false)"
            )
        for name, value in parts.items():
            self._part_sums[name] = self._part_sums.get(name, 0) + value
        self._part_count += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each loss part since the last log."""
        if "loss" in logs and self._part_count:
            logs = {
                **logs,
                **{f"loss_{name}": (total / self._part_count).item() for name, total in self._part_sums.items()},
            }
            self._part_sums, self._part_count = {}, 0
        super().log(logs, start_time)

    # ---- evaluation ----

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | str | None = None,
        ignore_keys: Sequence[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score the dev sets by ``model.embed``.

        Args:
            eval_dataset: graded pairs, a dict of them by name, or one name; default: those given at construction.
            ignore_keys: unused, as nothing but embeddings is predicted.
            metric_key_prefix: of the metrics' names.

        Returns:
            ``{prefix}_{name}_spearman`` and so on for each set, see `score_pairs`; without a name for a single set.
        """
        chosen = eval_dataset if eval_dataset is not None else self.eval_dataset
        if chosen is None:
            raise UserError("evaluate needs a dev set: pass eval_dataset={'stsb': pairs}")
        if isinstance(chosen, str):  # transformers' way to name one of several
            chosen = {chosen: self.eval_dataset[chosen]}  # type: ignore[index, call-overload]
        named = chosen if isinstance(chosen, dict) else {"": chosen}
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        was_training = model.training
        model.eval()
        bf16 = bool(self.args.bf16)
        metrics: dict[str, float] = {}
        try:
            for name, pairs in named.items():
                scores = score_pairs(
                    model.embed,
                    self.processing_class,
                    pairs,
                    max_seq_length=self.eval_max_seq_length,
                    device=self.args.device,
                    dtype=torch.bfloat16 if bf16 else None,
                )
                prefix = f"{metric_key_prefix}_{name}" if name else metric_key_prefix
                metrics.update({f"{prefix}_{key}": value for key, value in scores.items()})
                self._warn_of(name or "the dev set", scores)
            for scorer in self.extra_scorers if eval_dataset is None or eval_dataset is self.eval_dataset else []:
                found = scorer(
                    model.embed,
                    self.processing_class,
                    self.eval_max_seq_length,
                    self.args.device,
                    torch.bfloat16 if bf16 else None,
                )
                metrics.update({f"{metric_key_prefix}_{key}": value for key, value in found.items()})
        finally:
            model.train(was_training)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _warn_of(self, name: str, scores: dict[str, float]) -> None:
        step = self.state.global_step
        if math.isnan(scores["spearman"]):
            logger.warning("step %d: the score of %s is undefined (constant or non-finite similarities)", step, name)
        if scores["average_cosine"] > COLLAPSE_COSINE:
            logger.warning(
                "step %d: the embeddings of %s are nearly constant (average cosine %.4f): collapse; "
                "a lower learning rate or a larger batch helps",
                step,
                name,
                scores["average_cosine"],
            )

    # ---- checkpoints ----

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As `Trainer`'s; a new best is saved at once, also between two save_steps."""
        is_new_best = super()._determine_best_metric(metrics, trial)
        if is_new_best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return is_new_best

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, STAGING) if self._saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint aside and rename it when it is whole, so that a kill at any moment leaves no half."""
        final_folder = self._get_output_dir(trial)
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # rotate after the rename
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
            self.args.save_total_limit = limit
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staged, final = os.path.join(final_folder, STAGING, name), os.path.join(final_folder, name)
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = final
        barrier()  # every process has written its part
        if self.args.should_save:
            self.state.save_to_json(os.path.join(staged, TRAINER_STATE_NAME))
            if os.path.exists(final):
                shutil.rmtree(final)
            os.replace(staged, final)
            os.rmdir(os.path.dirname(staged))
            rotate_checkpoints(final_folder, limit, self.state.best_model_checkpoint)
        barrier()


def describe_text(model_name: str, summary: dict[str, Any]) -> str:
    """`CacseTrainer.describe` as the lines that a person reads before the first step."""
    trainable, all_of_them = summary["trainable_parameters"], summary["parameters"]
    shared = ", shared between the processes" if summary["negatives_shared_between_processes"] else ""
    dropout = ", ".join(f"{part} {'/'.join(map(str, values))}" for part, values in summary["dropout"].items())
    lines = [
        f"training {model_name}: {trainable / 1e6:.1f} M of {all_of_them / 1e6:.1f} M parameters",
        f"  batch of {summary['global_batch']} rows on {summary['processes']} process(es), "
        f"{summary['effective_negatives']} effective negatives{shared}",
        f"  dropout in force: {dropout or 'none'}",
    ]
    if "training_rows" in summary:
        lines.append(
            f"  {summary['training_rows']} rows; {summary['tokens_a_batch']} tokens a batch, "
            f"{summary['padded_tokens_a_batch']} with padding"
        )
    return "\n".join(lines)


def rotate_checkpoints(folder: str, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints beyond ``limit``, never the best nor the newest."""
    if limit is None or limit <= 0:
        return
    steps = sorted(
        int(name.rpartition("-")[2])
        for name in os.listdir(folder)
        if name.startswith(f"{PREFIX_CHECKPOINT_DIR}-") and name.rpartition("-")[2].isdigit()
    )
    keep = set(steps[-limit:])
    if best is not None:
        best_step = int(best.rpartition("-")[2])
        if best_step in steps and best_step not in keep:
            keep = {best_step, *steps[len(steps) - max(limit - 1, 1) :]}
    for step in steps:
        if step not in keep:
            shutil.rmtree(os.path.join(folder, f"{PREFIX_CHECKPOINT_DIR}-{step}"), ignore_errors=True)
