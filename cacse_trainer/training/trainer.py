"""`CacseTrainer`: transformers' Trainer for models that return their loss, chosen by a dev score.

What it adds: raw-text columns through `ContrastiveCollator`, an `evaluate` that scores dev sets by
``model.embed``, a baseline before training and an evaluation at the last step, the loss's parts in the log, a stop when
the loss is not finite, a warning of collapse, checkpoints that are renamed into place when they are whole, and exports.
"""

import copy
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from cacse_trainer.compute.distributed import shared_rows, world_size
from cacse_trainer.data import Masking
from cacse_trainer.data.deletion import Deletion
from cacse_trainer.encoding.embedder import Embedder, length_limit
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.dev_sets import as_dev_sets
from cacse_trainer.evaluation.health import COLLAPSE_COSINE
from cacse_trainer.models.base import ComputeSettings, SentenceModel
from cacse_trainer.settings.arguments import CacseTrainingArguments
from cacse_trainer.training import guards
from cacse_trainer.training.description import describe, tell
from cacse_trainer.training.guide import Guide, collator_for
from cacse_trainer.training.keeping import KEPT, Keeping
from cacse_trainer.training.publishing import PublishingTrainer
from cacse_trainer.training.resumable import DUPLICATES, LEFT_OUT
from cacse_trainer.training.unique import unique_order

logger = logging.getLogger(__name__)


class CacseTrainer(PublishingTrainer):
    """A `transformers.Trainer` for the models of this package.

    Args:
        model: a `SentenceModel`: its ``forward`` returns its loss, its ``embed`` gives the sentence embedding.
        args: `transformers.TrainingArguments` or `CacseTrainingArguments`; a copy is used, with columns kept, the last
            incomplete batch dropped, and, where there is an evaluation, one before the first step. Without
            ``metric_for_best_model`` the first dev set chooses the best model: graded pairs by Spearman's correlation,
            a retrieval set by nDCG@10.
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
        guide: tells false negatives, for a model whose ``forward`` takes ``left_out`` (`SentenceEmbeddingModel`).
        keeping: gives general sentences to hold the cosines of, for one that takes ``kept``.

    Attributes:
        extra_scorers: called at each evaluation of the dev sets with the `embedder`, for more metrics by name; none by
            default.

    Raises:
        UserError: several GPUs in one process, no tokenizer, no parameter to train, or a data set smaller than one
            batch.
    """

    model: Any  # the parent's types admit None, and modules without our methods
    train_dataset: Any
    processing_class: Any

    def __init__(
        self,
        model: SentenceModel,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        max_seq_length: int = 64,
        eval_max_seq_length: int | None = None,
        mask_probability: float = 0.15,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        guide: Guide | None = None,
        keeping: Keeping | None = None,
        query_prompt: str = "",
        document_prompt: str = "",
    ):
        args = copy.copy(args) if args is not None else TrainingArguments("outputs")
        args.remove_unused_columns = False
        args.dataloader_drop_last = True
        if not isinstance(args, CacseTrainingArguments):
            args.eval_on_start = eval_dataset is not None and args.eval_strategy != "no"
        elif eval_dataset is None:
            args.without_evaluation()
        if args.load_best_model_at_end and args.metric_for_best_model in (None, "loss"):  # the defaults, and no scores
            sets = as_dev_sets(eval_dataset)
            name, metric = next(((name, one.metric) for name, one in sets.items()), ("", "spearman"))
            args.metric_for_best_model = f"{name}_{metric}" if name else metric
            args.greater_is_better = True
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
        if data_collator is None:
            prompts = {"query_prompt": query_prompt, "document_prompt": document_prompt}
            data_collator = collator_for(model, processing_class, max_seq_length, guide, prompts)
        if isinstance(args, CacseTrainingArguments):
            chosen = (args.num_length_buckets, args.mini_batch_size, args.negatives, args.use_fast_paths)
            model.use(ComputeSettings(*chosen))
        given = (model, args, data_collator, train_dataset, eval_dataset, processing_class)
        super().__init__(*given, callbacks=callbacks, optimizers=optimizers)
        self.extra_scorers: list[Callable[[Embedder], dict[str, float]]] = []
        self.max_seq_length = max_seq_length
        self.eval_max_seq_length = eval_max_seq_length or length_limit(processing_class, model.config)
        self.query_prompt, self.document_prompt = query_prompt, document_prompt
        self.masking = Masking(processing_class, mask_probability) if model.needs_masked_copies else None
        words = Deletion(processing_class, max_seq_length, model.deletion) if model.deletion else None
        self.guide, self.keeping = guide, keeping
        self.additions: list[Any] = [one for one in (keeping, words) if one is not None]  # to each step's batches
        self.mask_duplicates: bool = getattr(args, "mask_duplicates", False)
        self.unique_batches: bool = getattr(args, "unique_batches", False)
        self._batch: tuple[int, Tensor | None] = (0, None)  # rows of the last batch, and the numbers of their texts
        self._overflows = 0  # steps in a row whose fp16 gradients overflowed
        self._told_of_duplicates = False
        self._check_data()

    # ---- before training ----

    def _check_data(self) -> None:
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
            texts = [rows[name] for name in rows.column_names if name != "score"]
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
        return self.model.effective_negatives(batch_size)

    def log_description(self) -> dict[str, Any]:
        """Log `describe` and what the reader can act on; returns it."""
        return tell(self)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Every parameter with ``decay_all_parameters``, else all but biases and norms."""
        if getattr(self.args, "decay_all_parameters", False):
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    # ---- a step ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `ResumableTrainer.train`; says first what is trained."""
        if self.is_world_process_zero():
            self.log_description()
        return super().train(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As `Trainer`'s; masked copies, where the model reads them, are drawn for this very step."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.masking is not None:
            step = self.args.seed, self.state.global_step, self.args.process_index
            batches = [self.masking(batch, *step, part) for part, batch in enumerate(batches)]
        for add in self.additions:
            batches = [add(b, self.args.seed, self.state.global_step, part) for part, b in enumerate(batches)]
        return batches, items

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
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        self.record_loss(loss, outputs.get("losses", {}), outputs)
        return (loss, outputs) if return_outputs else loss

    def take_batch(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        """A batch without the numbers of its texts, and these; sentences that are there twice are counted."""
        own = dict(inputs)
        texts = own.pop("text_ids", None)
        self._batch = (len(own["input_ids"]), texts)
        if texts is not None:
            self.sum_part(DUPLICATES, guards.repeated_rows(shared_rows(texts, self.model_of_run.compute.negatives)))
        return own, texts

    def record_loss(self, loss: Tensor, parts: Mapping[str, Tensor], outputs: Mapping[str, Any] | None = None) -> None:
        """Sum a step's loss parts for the log; ``outputs``, of the model, tell which rows went wrong.

        Raises:
            NonFiniteLossError: the loss is not finite; with the step, the parts and the rows.
        """
        if not torch.isfinite(loss):
            values = ", ".join(f"{name} {value.item():.4g}" for name, value in parts.items())
            wrong = guards.rows_in_question(outputs or {})
            raise guards.NonFiniteLossError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} ({values}); "
                f"{guards.describe_rows(*self._batch, wrong, self.train_dataset)}; lower the learning rate, "
                "check the weights that training started from, or train in float32 (--bf16 false)"
            )
        for name, value in parts.items():
            self.sum_part(name, value)
        self._part_count += 1

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As `Trainer`'s; a gradient that is not finite stops the run, but for fp16, which skips such a step.

        Raises:
            NonFiniteGradientError: with the step, the parameters and the rows.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        is_finite = norm is None or math.isfinite(norm)
        step = self.state.global_step + 1
        if self.accelerator.scaler is not None:
            self._overflows = 0 if is_finite else self._overflows + 1
            if self._overflows >= guards.OVERFLOWS_IN_A_ROW:
                raise guards.NonFiniteGradientError(
                    f"fp16 overflowed at {self._overflows} steps in a row, the last one step {step}: no loss scale is "
                    "small enough; train in bfloat16 (--bf16 auto) or float32 (--fp16 false)"
                )
        elif not is_finite:
            names = guards.non_finite_parameters(model)
            where = f"of {names[0]} and {len(names) - 1} more" if names else "as a whole (its norm)"
            rows = guards.describe_rows(*self._batch, [], self.train_dataset)
            raise guards.NonFiniteGradientError(
                f"the gradient {where} is not finite at step {step}, the loss was; {rows}; lower the "
                "learning rate, or train in float32 (--bf16 false)"
            )
        return norm

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
        return not sharded and self.model.has_adapter

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

    # ---- evaluation ----

    @property
    def embedder(self) -> Embedder:
        """The way from text to the vectors of the model as it is."""
        dtype, embed = torch.bfloat16 if self.args.bf16 else None, self.model_of_run.embed
        prompts: Any = {"query_prompt": self.query_prompt, "document_prompt": self.document_prompt}
        return Embedder(embed, self.processing_class, self.eval_max_seq_length, self.args.device, dtype, **prompts)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score the dev sets by ``model.embed``.

        Args:
            eval_dataset: graded pairs or a `RetrievalSet`, a dict of these by name, or one name; default: those given
                at construction.
            ignore_keys: unused, as nothing but embeddings is predicted.
            metric_key_prefix: of the metrics' names.

        Returns:
            ``{prefix}_{name}_spearman``, ``{prefix}_{name}_ndcg@10`` and so on for each set, see `DevSet`; without a
            name for a single set.
        """
        chosen = eval_dataset if eval_dataset is not None else self.eval_dataset
        if chosen is None:
            raise UserError("evaluate needs a dev set: pass eval_dataset={'stsb': pairs}")
        if isinstance(chosen, str):  # transformers' way to name one of several
            chosen = {chosen: self.eval_dataset[chosen]}  # type: ignore[index, call-overload]
        model, embedder = self.model_of_run, self.embedder
        was_training = model.training
        model.eval()
        metrics: dict[str, float] = {}
        try:
            for name, dev_set in as_dev_sets(chosen).items():
                scores = dev_set.scores(embedder)
                prefix = f"{metric_key_prefix}_{name}" if name else metric_key_prefix
                metrics.update({f"{prefix}_{key}": value for key, value in scores.items()})
                self._warn_of(name or "the dev set", scores[dev_set.metric], scores["average_cosine"])
            for scorer in self.extra_scorers if eval_dataset is None or eval_dataset is self.eval_dataset else []:
                metrics.update({f"{metric_key_prefix}_{key}": value for key, value in scorer(embedder).items()})
        finally:
            model.train(was_training)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _warn_of(self, name: str, score: float, cosine: float) -> None:
        step = self.state.global_step
        if math.isnan(score):
            logger.warning("step %d: the score of %s is undefined (constant or non-finite similarities)", step, name)
        if cosine > COLLAPSE_COSINE:
            logger.warning(
                "step %d: the embeddings of %s are nearly constant (average cosine %.4f): collapse; "
                "a lower learning rate or a larger batch helps",
                step,
                name,
                cosine,
            )
