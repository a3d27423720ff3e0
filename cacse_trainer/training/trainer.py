"""`CacseTrainer`: transformers' Trainer for models that return their loss, chosen by a dev score.

What it adds: raw-text columns through `ContrastiveCollator`, an `evaluate` that scores dev sets by
``model.embed``, a baseline before training and an evaluation at the last step, the loss's parts in the log, a stop when
the loss is not finite, a warning of collapse, checkpoints that are renamed into place when they are whole, and exports.
"""

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from cacse_trainer.compute.distributed import shared_rows, world_size
from cacse_trainer.compute.fast_paths import compute_alike, run_ahead
from cacse_trainer.compute.varlen import LENGTHS, CountedRows, remember_lengths
from cacse_trainer.data import Masking
from cacse_trainer.data.deletion import Deletion
from cacse_trainer.encoding.embedder import length_limit
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.dev_sets import as_dev_sets
from cacse_trainer.models.adapters import unwrapped
from cacse_trainer.models.base import SentenceModel
from cacse_trainer.models.computing import ComputeSettings
from cacse_trainer.models.own import takes, without_wrapper
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.training import guards
from cacse_trainer.training.description import describe, tell
from cacse_trainer.training.finite import Batch, FiniteWatch, runs_ahead
from cacse_trainer.training.guide import Guide, collator_for
from cacse_trainer.training.keeping import KEPT, Keeping
from cacse_trainer.training.ranking import ROW, RankingTerm
from cacse_trainer.training.resumable import DUPLICATES, LEFT_OUT
from cacse_trainer.training.scoring import ScoringTrainer, first_metric
from cacse_trainer.training.unique import unique_order

logger = logging.getLogger(__name__)


class CacseTrainer(ScoringTrainer):
    """A `transformers.Trainer` for the models of this package.

    Args:
        model: a `SentenceModel`, or any `torch.nn.Module`: its ``forward`` returns its loss, its ``embed`` gives the
            sentence embedding (see `OwnModule`). What peft's ``get_peft_model`` has put around a `SentenceModel` is
            taken off: the adapter is the model's own, saved and exported with it.
        args: `transformers.TrainingArguments` or `CacseTrainingArguments`; a copy is used, with columns kept, the last
            incomplete batch dropped, and, where there is an evaluation and no ``eval_delay``, one before the first
            step. Without ``metric_for_best_model`` the first dev set chooses the best model, and steers the schedules
            that follow a score: graded pairs by Spearman's correlation, a retrieval set by nDCG@10.
        data_collator: default: `ContrastiveCollator` of the tokenizer.
        train_dataset: raw columns text | anchor, positive[, hard_negative | negative_1, …]; a map-style or a streamed
            dataset.
        eval_dataset: graded pairs (sentence1, sentence2, score), a `RetrievalSet`, or a dict of these by name; the
            scores of the set ``stsb`` are logged as ``eval_stsb_spearman``, of a retrieval set ``docs`` as
            ``eval_docs_ndcg@10``, and so on.
        processing_class: the tokenizer.
        max_seq_length: training sentences are cut to so many tokens.
        eval_max_seq_length: the same for dev sentences; default: the longest the model takes.
        query_prompt: put before anchors, and before the queries of retrieval sets; checkpoints keep it.
        document_prompt: put before positives, hard negatives and documents; checkpoints keep it.
        mask_probability: chance of a token to be masked, for a model that reads masked copies.
        callbacks, optimizers: as for `Trainer`.
        compute_loss_func: as for `Trainer`, in the place of the model's loss: given the model's output of a batch
            (``embeddings``, (B, V, H)), its ``labels`` and ``num_items_in_batch``. The log's parts stay the model's.
        compute_metrics: as for `Trainer`: given the ``predictions`` and ``label_ids`` of `predict` for each dev set
            of graded pairs, adds metrics to `evaluate`'s and `predict`'s, by which a model can be chosen.
        preprocess_logits_for_metrics: as for `Trainer`: makes of a set's cosines and scores, two tensors, the
            predictions.
        guide: tells false negatives, for a model whose ``forward`` takes ``left_out`` (`SentenceEmbeddingModel`).
        keeping: gives general sentences to hold the cosines of, for one that takes ``kept``.
        ranking_term: a teacher's ranking beside the loss, for one whose output has the ``embeddings`` of two views.
        model_init: in the model's place: makes one for each training, from the trial of a `hyperparameter_search` where
            it takes an argument.
        optimizer_cls_and_kwargs: as for `Trainer`.

    Raises:
        UserError: several GPUs in one process, no tokenizer, no parameter to train, a data set smaller than one
            batch, a dev set of other rows, a model without ``embed``, an adapter that the model does not train, or an
            argument that has no meaning here (``bf16_full_eval``, ``label_smoothing_factor``, …).
    """

    model: Any  # the parent's types admit None, and modules without our methods
    train_dataset: Any
    processing_class: Any

    def __init__(
        self,
        model: SentenceModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        max_seq_length: int = 64,
        eval_max_seq_length: int | None = None,
        mask_probability: float = 0.15,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        guide: Guide | None = None,
        keeping: Keeping | None = None,
        ranking_term: RankingTerm | None = None,
        query_prompt: str = "",
        document_prompt: str = "",
        model_init: Callable[..., nn.Module] | None = None,
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        compute_metrics: Callable[..., Mapping[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        args = copy.copy(args) if args is not None else TrainingArguments("outputs")
        args.remove_unused_columns = False
        args.dataloader_drop_last = True
        if isinstance(args, CacseTrainingArguments) and isinstance(train_dataset, IterableDataset):
            args.leave_workers_off()
        args.logging_nan_inf_filter = False  # it waits for each loss; `FiniteWatch` stops at one that is not finite
        guards.check_arguments(args, compute_metrics is not None)
        if not isinstance(args, CacseTrainingArguments):
            has_scores = eval_dataset is not None and args.eval_strategy != "no"
            args.eval_on_start = has_scores and (args.eval_on_start or not args.eval_delay)
        elif eval_dataset is None:
            args.without_evaluation()
        _choose_by_the_first_set(args, eval_dataset)
        model = without_wrapper(model)
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
        processing_class = processing_class or getattr(data_collator, "tokenizer", None)
        if processing_class is None:
            raise UserError("CacseTrainer needs the tokenizer: pass processing_class=tokenizer")
        if ranking_term is not None:
            train_dataset = ranking_term.numbered(train_dataset)
        given = (model, args, data_collator, train_dataset, eval_dataset, processing_class, model_init)
        others: Any = {"optimizers": optimizers, "optimizer_cls_and_kwargs": optimizer_cls_and_kwargs}
        others |= {"compute_loss_func": compute_loss_func, "compute_metrics": compute_metrics}
        others |= {"preprocess_logits_for_metrics": preprocess_logits_for_metrics}
        super().__init__(*given, callbacks=callbacks, **others)
        self.max_seq_length, self.mask_probability = max_seq_length, mask_probability
        self.eval_max_seq_length = eval_max_seq_length or length_limit(processing_class, self.model_of_run.config)
        self.query_prompt, self.document_prompt = query_prompt, document_prompt
        self.guide, self.keeping, self.ranking_term = guide, keeping, ranking_term
        self._makes_batches = data_collator is None
        self.mask_duplicates: bool = getattr(args, "mask_duplicates", False)
        self.unique_batches: bool = getattr(args, "unique_batches", False)
        self._batch = Batch(0, None)  # the last one
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        self.runs_ahead = runs_ahead(self.args.device) and not sharded
        self._watch = FiniteWatch(at_once=not self.runs_ahead)
        self._told_of_duplicates = False
        self._settle()

    # ---- before training ----

    def _settle(self) -> None:
        """Set what hangs on the model and on the arguments, of which a trial has its own."""
        args, model, tokenizer = self.args, self.model_of_run, self.processing_class
        if isinstance(args, CacseTrainingArguments):
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                guards.leave_fast_paths(args, tell=self.is_world_process_zero())
            chosen = (args.num_length_buckets, args.mini_batch_size, args.negatives, args.use_fast_paths)
            model.use(ComputeSettings(*chosen))
        if self.runs_ahead:
            for part in (model, *(frozen.model for frozen in (self.guide, self.keeping) if frozen is not None)):
                run_ahead(part)
        if self.ranking_term is not None:
            compute_alike(self.ranking_term.teacher, fast_paths=model.compute.fast_paths, ahead=self.runs_ahead)
        if self._makes_batches:
            prompts = {"query_prompt": self.query_prompt, "document_prompt": self.document_prompt}
            collator = collator_for(model, tokenizer, self.max_seq_length, self.guide, prompts)
            self.data_collator = collator if self.ranking_term is None else self.ranking_term.beside(collator)
        self.masking = Masking(tokenizer, self.mask_probability) if model.needs_masked_copies else None
        words = Deletion(tokenizer, self.max_seq_length, model.deletion) if model.deletion else None
        # added to each step's batches
        self.additions: list[Any] = [one for one in (self.keeping, words) if one is not None]
        self._unread = [name for name in tokenizer.model_input_names if not takes(unwrapped(self.model).forward, name)]
        self._check_data()

    def call_model_init(self, trial: Any = None) -> Any:
        """As `Trainer`'s; an adapter around the model becomes its own."""
        return without_wrapper(super().call_model_init(trial))

    def _hp_search_setup(self, trial: Any) -> None:
        """As `Trainer`'s, called when a training has its model, and a trial its arguments; says what is trained."""
        super()._hp_search_setup(trial)
        if self.model_init is not None:
            self._settle()
        if self.is_world_process_zero():
            self.log_description()

    def _check_data(self) -> None:
        as_dev_sets(self.eval_dataset)
        if self.train_dataset is None:
            return
        if not any(p.requires_grad for p in self.model.parameters()):
            raise UserError(
                "nothing to train: every parameter of the model is frozen; lower cascade_start_layer, or set "
                "freeze_embeddings false"
            )
        if self.unique_batches and isinstance(self.train_dataset, IterableDataset):
            raise UserError("unique_batches needs to know all rows beforehand: leave out streaming, or unique_batches")
        batch = self.args.train_batch_size * world_size()
        if batch < 2:
            raise UserError(
                f"per_device_train_batch_size={self.args.train_batch_size}: a batch of one row has no negatives; "
                "give 2 or more"
            )
        if self.keeping is not None:
            self.keeping.check_size(batch)
        if hasattr(self.train_dataset, "__len__") and (rows := len(self.train_dataset)) < batch:
            raise UserError(
                f"the training data has {rows} rows, fewer than one batch of {batch}, and incomplete "
                f"batches are dropped (a batch gives the negatives); give more text or a per_device_train_batch_size "
                f"of at most {rows // world_size()}"
            )

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """As `ResumableTrainer`'s, lengths being those of the raw text; with ``unique_batches`` rearranged."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        column = self.args.length_column_name
        by_length = self.args.train_sampling_strategy in ("group_by_length", "batch_rebalance")
        if by_length and isinstance(rows, Dataset) and column not in rows.column_names:
            texts = [rows[name] for name in rows.column_names if name not in ("score", ROW)]
            rows = rows.add_column(column, [sum(map(len, row)) for row in zip(*texts, strict=True)])  # type: ignore[call-arg]
        sampler = super()._get_train_sampler(rows)
        if self.unique_batches:
            self._order = sampler = unique_order(sampler, self.train_dataset, self._train_batch_size * world_size())
        return sampler

    def describe(self) -> dict[str, Any]:
        """What is about to be trained: parameters, batch, effective negatives, tokens a batch, dropout in force."""
        return describe(self)

    def effective_negatives(self, batch_size: int) -> int:
        """Negatives of each row in a batch of so many rows."""
        return self.model_of_run.effective_negatives(batch_size)

    @property
    def sources(self) -> list[str]:
        """The model's, a guide's and a ranking's."""
        found = [*super().sources, *(["gist"] if self.guide is not None else [])]
        return found if self.ranking_term is None else [*found, *self.ranking_term.ranking.sources]

    def log_description(self) -> dict[str, Any]:
        """Log `describe` and what the reader can act on; returns it."""
        return tell(self)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Every parameter with ``decay_all_parameters``, else all but biases and norms."""
        if getattr(self.args, "decay_all_parameters", False):
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def get_train_dataloader(self) -> Any:
        """As `ResumableTrainer`'s; the batches for a device say how long their rows are."""
        plain = self.data_collator
        # Where one process reads for all, batches are put together and cut, which goes with tensors alone.
        if self.runs_ahead and not self.accelerator.dispatch_batches:
            self.data_collator = CountedRows(plain)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain

    # ---- a step ----

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As `Trainer`'s; masked copies, where the model reads them, are drawn for this very step."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.masking is not None:
            step = self.args.seed, self.state.global_step, self.args.process_index
            batches = [self.masking(batch, *step, part) for part, batch in enumerate(batches)]
        for add in self.additions:
            batches = [add(b, self.args.seed, self.state.global_step, part) for part, b in enumerate(batches)]
        return batches, items

    def _prepare_inputs(self, inputs: Any) -> Any:
        """As `Trainer`'s; of masks on a device the lengths are kept, where padding is to be left out."""
        found: Any = super()._prepare_inputs(inputs)
        for name, lengths in found.pop(LENGTHS, {}).items():
            if self.runs_ahead and self.model_of_run.compute.length_buckets is None:
                remember_lengths(found[name], lengths)
        return found

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's loss; its parts are summed for the log, and a loss that is not finite stops the run.

        Raises:
            NonFiniteLossError: with the step, the parts and the rows.
        """
        inputs, texts = self.take_batch(inputs)
        if self.mask_duplicates and texts is not None:
            inputs["text_ids"] = texts
        if self.guide is not None:
            inputs = self.guide.applied(inputs, self.model_of_run)
            self.sum_part(LEFT_OUT, inputs["left_out"].float().mean())
        if self.keeping is not None and KEPT in inputs:
            inputs = self.keeping.with_start(inputs, self.model_of_run.compute)
        term, compute, teacher = self.ranking_term, self.model_of_run.compute, None
        if term is not None:
            inputs, teacher = term.taken(inputs, compute)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        named = outputs if isinstance(outputs, Mapping) else {}
        parts = named.get("losses", {})
        if term is not None and teacher is not None:
            loss, more = term.added_to(loss, outputs["embeddings"], teacher, compute.negatives)
            parts = {**parts, **more}
        self.record_loss(loss, parts, named)
        return (loss, outputs) if return_outputs else loss

    def take_batch(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        """A batch without the numbers of its texts, and these; sentences that are there twice are counted.

        Of what a tokenizer gives, the model has what it takes by name.
        """
        own = {name: part for name, part in inputs.items() if name not in self._unread}
        texts = own.pop("text_ids", None)
        self._batch = Batch(len(own["input_ids"]), texts)
        if texts is not None:
            self.sum_part(DUPLICATES, guards.repeated_rows(shared_rows(texts, self.model_of_run.compute.negatives)))
        return own, texts

    def record_loss(self, loss: Tensor, parts: Mapping[str, Tensor], outputs: Mapping[str, Any] | None = None) -> None:
        """Sum a step's loss parts for the log; ``outputs``, of the model, tell which rows went wrong.

        Raises:
            NonFiniteLossError: the loss is not finite; with the step, the parts and the rows.
        """
        self._watch.loss(loss, self.state.global_step + 1, self._batch, parts, outputs or {}, self.train_dataset)
        for name, value in parts.items():
            self.sum_part(name, value)
        self._part_count += 1

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As `Trainer`'s; a gradient that is not finite stops the run, but for fp16, which skips such a step.

        Raises:
            NonFiniteGradientError: with the step, the parameters and the rows.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is not None:
            self._watch.scaled_norm(norm, self.state.global_step + 1)
        else:
            self._watch.norm(norm, self.state.global_step + 1, self._batch, model, self.train_dataset)
        return norm

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        self._watch = FiniteWatch(at_once=not self.runs_ahead)  # a training before may have broken off
        return super()._init_training_state(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """As `Trainer`'s; what is logged, scored or saved is finite."""
        control = self.control
        due = control.should_log or control.should_evaluate or control.should_save
        ends = control.should_training_stop or self.state.global_step >= self.state.max_steps
        if due or ends:
            self._watch.look(self.train_dataset)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `ResumableTrainer.log`; the first duplicates in a batch are said."""
        found = int(self._part_sums.get(DUPLICATES, 0)) if "loss" in logs and not self._told_of_duplicates else 0
        if found > 0:
            self._told_of_duplicates = True
            if not self.mask_duplicates and self.is_world_process_zero():
                logger.warning(
                    "step %d: %d rows of %d batches repeat a sentence of another row of their batch, and count as its "
                    "negatives; --mask_duplicates true leaves such pairs out",
                    self.state.global_step,
                    found,
                    self._part_count,
                )
        super().log(logs, start_time)

    # ---- checkpoints ----

    @property
    def _reads_adapters(self) -> bool:
        """Whether a checkpoint holds an adapter that the model itself reads; sharded ones are accelerate's."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return not sharded and self.model_of_run.has_adapter

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._reads_adapters:
            self.model.load_adapter_checkpoint(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._reads_adapters:
            self.model.load_adapter_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()


def _choose_by_the_first_set(args: TrainingArguments, eval_dataset: Any) -> None:
    """Where a score is needed to choose or to steer by, and none is named: that of the first dev set.

    torch's schedule takes the lowest score for the best if nobody says more.
    """
    follows = args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    is_needed = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST or follows
    if is_needed and args.metric_for_best_model in (None, "loss"):  # the defaults, and no scores
        args.metric_for_best_model, args.greater_is_better = first_metric(eval_dataset) or "spearman", True
    if follows:
        mode = "max" if args.greater_is_better else "min"
        given: Any = args.lr_scheduler_kwargs or {}
        args.lr_scheduler_kwargs = {"mode": mode, **given}
