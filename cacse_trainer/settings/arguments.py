"""The three groups of settings of a run: model, data, training. Recipes and flags fill them (see recipes.py)."""

import logging
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from cacse_trainer.settings import setting
from cacse_trainer.settings.command_line import SEEDS
from cacse_trainer.settings.contrastive import ContrastiveArguments
from cacse_trainer.settings.decoder import DecoderArguments
from cacse_trainer.settings.precision import FLAG, HELP, accelerator, resolve_bf16, spelled

logger = logging.getLogger(__name__)
PACKING = {"cuda"}  # kinds of device beside the CPU where auto leaves the padding out


@dataclass
class ModelArguments(ContrastiveArguments, DecoderArguments):
    """Which model is trained, and its parts."""

    _argument_group_name: ClassVar[str] = "model"

    model: str | None = setting(
        None, "SimCSE, DiffCSE: the encoder, any that AutoModel knows: a folder, hub id or package:NAME/FOLDER."
    )
    pooling: str | None = setting(
        None,
        "cls (SimCSE, DiffCSE: through a head, in training alone with mlp_only_train), cls_before_pooler (raw), "
        "cls_with_mlp (through the head at inference, too), mean, weighted_mean, avg_top2, "
        "avg_first_last, max or last_token; CACSE, TNCSE: cls, mean or max. Default: what the start's folder states; "
        "of a plain checkpoint cls, of a decoder last_token.",
    )
    projection: str | None = setting(
        None, "With pooling cls: tanh or batch_norm. Default: SimCSE tanh, DiffCSE batch_norm."
    )
    mlp_only_train: bool | None = setting(
        None, "Drop the projection at inference. Default: SimCSE false, DiffCSE true.", nargs="?", const=True
    )
    objective: str = setting(
        "info_nce",
        "info_nce (SimCSE, STS-CFT), nt_xent, cosent, angle, angle_combined (AnglE: labelled pairs, pairs or "
        "triplets), bellm (triplets) or margin_mse (rows with negatives and the column scores of mine --scores).",
    )
    hard_negative_weight: float = setting(0.0, "SimCSE: a logit added to each anchor's own hard negatives.")
    mlm_weight: float = setting(0.0, "SimCSE: weight of the auxiliary masked language model loss (published: 0.1).")
    dropout: float | None = setting(
        None, "SimCSE, DiffCSE: every dropout of the encoder. Default: what its config says."
    )
    generator: str | None = setting(
        None, "DiffCSE: the masked language model that edits the sentences. Given, DiffCSE is trained."
    )
    rtd_loss_weight: float = setting(0.005, "DiffCSE: λ of replaced token detection.")
    rtd_positions: str = setting(
        "all", "DiffCSE: all positions (the release: padding too) or tokens, in the detection loss."
    )
    tower_a: str | None = setting(
        None, "CACSE, TNCSE: tower A, a folder, a hub id, or package:NAME/FOLDER (files of an installed package)."
    )
    tower_b: str | None = setting(None, "CACSE, TNCSE: tower B, of the same kind, depth and width.")
    constraint: str | None = setting(
        None, "CACSE: the model whose last layers constrain the cascade. Default: tower A."
    )
    cascade_start_layer: int = setting(
        7, "CACSE: k0, the first encoder layer (from 1) that the cascade reads; below it is frozen."
    )
    constraint_layers: int = setting(4, "CACSE: m, last layers taken from the constraint model.")
    cascade_heads: int = setting(6, "CACSE: accepted for the reference's sake; attention over one token ignores it.")
    cascade_loss_weight: float = setting(1.0, "CACSE: λ in L_A + L_B + λ·L_C.")
    cascade_dropout: float = setting(0.2, "CACSE: dropout of the cascade's blocks.")
    constraint_dropout: float | None = setting(0.1, "CACSE: dropout of the constraint layers.")
    constraint_attention: str = setting("batch", "CACSE: batch (the reference: across the batch) or sample.")
    tower_dropout: list[float] | None = setting(
        None, "CACSE, TNCSE: dropout of tower A and tower B. Default: what their configs say."
    )
    freeze_embeddings: bool = setting(
        False, "CACSE: freeze the towers' embeddings too; faster, the frozen prefix needs no graph."
    )
    norm_constraint_weight: float | None = setting(
        None, "TNCSE: weight of the constraint on the towers' norms (published: 1). Given, TNCSE is trained, not CACSE."
    )
    cross_loss_weight: float = setting(1.0, "TNCSE: weight of the NT-Xent from tower A to tower B.")
    contrastive_temperature: float = setting(0.05, "τ of the contrastive losses.")
    attn_implementation: str | None = setting(None, "sdpa, eager or flash_attention_2. Default: transformers' choice.")


@dataclass
class DataArguments:
    """What is read."""

    _argument_group_name: ClassVar[str] = "data"

    train_file: str | None = setting(
        None,
        "Training text: a txt, csv, tsv, jsonl or parquet file, a Hugging Face dataset name, or sample:FILE (the text "
        "shipped with the package).",
    )
    mix: list[str] | None = setting(
        None,
        "More training text with rows of the same columns, path=share each: of the rows of an epoch so large a share "
        "is drawn from it, repeated where it is too short; the rest is train_file, once.",
    )
    keep_file: str | None = setting(
        None, "General sentences for keep_weight, one column; as many as the batch has rows are drawn at each step."
    )
    text_columns: list[str] | None = setting(
        None,
        "Columns to read: one (seen twice), two (a positive pair), three (and a hard negative) or more (several). "
        "Default: known names, such as anchor, positive, negative_1, negative_2.",
    )
    label_column: str | None = setting(
        None,
        "Of labelled pairs, for cosent, angle and angle_combined: the column with a number a pair; text_columns names "
        "the two texts. Default: known names (sentence1, sentence2, score; text1, text2, label).",
    )
    query_prompt: str | None = setting(
        None,
        "Put before every anchor, and before the queries of retrieval sets, as E5's 'query: '; the exported folders "
        "state it. Default: what the start's folder states.",
    )
    document_prompt: str | None = setting(
        None,
        "The same before positives, hard negatives and documents, as E5's 'passage: '. Text without sides (one column, "
        "graded pairs) has neither.",
    )
    dev_file: list[str] | None = setting(
        None,
        "Dev sets, path or name=path each: graded pairs (sentence1, sentence2, score; or SentEval's sts-dev.csv), or a "
        "retrieval set (query, document; CORPUS+QUERIES; a folder as BEIR's). Default: STS-B from the hub, named stsb.",
    )
    test_file: list[str] | None = setting(
        None,
        "Held-out sets, of the kinds of dev_file: scored before and after training, chosen by nothing; the verdict "
        "is told from the first.",
    )
    held_out_rows: int = setting(
        0,
        "So many rows of train_file, of pairs or labelled pairs, are kept out of training: one half is a dev set, the "
        "other a held-out set.",
    )
    eval_sets: list[str] | None = setting(
        None,
        "Dev sets by name: stsb and sickr (SentEval's own files in senteval_data; stsb from the hub where they are "
        "not there), or name=path as for dev_file.",
    )
    eval_transfer: bool = setting(
        False, "Score SentEval's transfer tasks on their dev parts, too (mode dev; slow with many steps)."
    )
    senteval_data: str = setting("SentEval/data", "SentEval's data folder, for eval_sets and eval_transfer.")
    evaluation: str = setting(
        "sts", "sts: score the dev sets and keep the best model; none: no dev set, keep the last."
    )
    mask_probability: float = setting(
        0.15, "Chance of a token to be masked: for mlm_weight (0.15) and DiffCSE (0.30, 0.15)."
    )
    max_seq_length: int = setting(64, "Training sentences are cut to so many tokens.")
    eval_max_seq_length: int | None = setting(None, "The same for dev sentences. Default: the model's own limit.")
    streaming: bool = setting(
        False, "Read the training text while training (needs max_steps); for text beyond the disk."
    )
    shuffle_buffer: int = setting(10_000, "A streamed text is shuffled within so many rows; 1: its own order.")


@dataclass
class CommonTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments`, with what every training of this package shares.

    Evaluated and saved every ``eval_steps``; one checkpoint and the best are kept, and the best is the result.
    On a CPU ``auto`` stays open, ``bf16`` false, until `training.automatic` reads it in a checkpoint, or measures.

    Raises:
        ValueError: ``bf16`` is none of its values, or the learning rate no number from 0.
    """

    # a wider type than the parent's: auto
    bf16: str = setting("auto", HELP, **FLAG)  # type: ignore[assignment]
    do_train: bool = setting(
        True,
        "false: train nothing and write nothing; score the model in output_dir, else the start, on dev_file, "
        "eval_sets, test_file and held_out_rows.",
    )
    do_eval: bool = setting(True, "false: no dev set is scored, as with evaluation none.")
    eval_strategy: IntervalStrategy | str = setting(
        "steps", "When the dev sets are scored: no, steps or epoch. Without any: never."
    )
    save_steps: float | None = setting(  # type: ignore[assignment]
        None, "A checkpoint is saved every so many steps. Default: eval_steps, else 500."
    )
    save_total_limit: int | None = setting(
        1, "So many checkpoints are kept, and the best; at the end of a run with 1 the best alone."
    )
    load_best_model_at_end: bool = setting(
        True,
        "The best model by metric_for_best_model is the result, else the last; adapt's is the last, unless this or "
        "early_stopping_patience is given.",
    )
    remove_unused_columns: bool = setting(False, "Must stay false: the collator reads raw text columns.")
    disable_tqdm: bool = setting(False, "No progress bars.")
    eval_on_start: bool = setting(True, "Score the model before training: the baseline.")
    resume_with_changes: bool = setting(
        False,
        "Go on from a checkpoint that was trained with other settings (rate, seed, batch, text, length, …), which are "
        "named. Default: that is refused, as the run would equal none that was not interrupted.",
    )

    def __post_init__(self) -> None:
        if self.fp16 and self.bf16 == "auto":  # the other half precision was chosen
            self.bf16 = "false"
        is_auto = spelled(self.bf16, "bf16") == "auto"
        follows = () if self.use_cpu else ("use_cpu", "dataloader_pin_memory")
        self._automatic = frozenset(("bf16", "mixed_precision", *follows) if is_auto else ())
        self._undecided = frozenset(("bf16",) if is_auto and not self._accelerated else ())
        self._gains: dict[str, float | None] = {}
        self.bf16 = not self._undecided and resolve_bf16(self.bf16)  # type: ignore[assignment]
        if not (isinstance(self.learning_rate, (int, float)) and 0 <= self.learning_rate < float("inf")):
            raise ValueError(f"learning_rate must be a number from 0, got {self.learning_rate}")
        self._check_counts()
        if self.fp16 and (self.use_cpu or accelerator() != "cuda"):
            raise ValueError("fp16 needs a CUDA GPU; give bf16 auto instead, or neither")
        if self.do_predict:
            raise ValueError("do_predict does nothing here; name held-out sets with test_file")
        if not (self.do_train or self.do_eval):
            raise ValueError("do_train false and do_eval false: that is nothing to do; leave one of them out")
        if not self.do_eval:
            self.eval_strategy = "no"
        if self.eval_strategy == "no":
            self.eval_on_start = False
        if self.load_best_model_at_end and "no" in (self.eval_strategy, self.save_strategy):
            logger.info("load_best_model_at_end is off: without evaluation and saving the last state is kept")
            self.load_best_model_at_end = False
        if self.bf16 and accelerator() is None:  # transformers refuses it on a CPU unless told that the CPU is meant
            self.use_cpu = True
        if self.eval_strategy == "steps" and self.eval_steps is None:
            self.eval_steps = self.save_steps or self.logging_steps
        if self.save_steps is None:
            self.save_steps = self.eval_steps or TrainingArguments.save_steps
        super().__post_init__()

    @property
    def _accelerated(self) -> bool:
        return accelerator() is not None and not self.use_cpu

    @property
    def automatic(self) -> frozenset[str]:
        """Names of what ``auto`` has chosen by what this machine is."""
        return self._automatic

    @property
    def undecided(self) -> frozenset[str]:
        """Names of what ``auto`` has yet to choose."""
        return self._undecided

    @property
    def gains(self) -> dict[str, float]:
        """What ``auto`` was chosen by, where it was measured: how many times as fast as the plain way it was."""
        return {name: gain for name, gain in self._gains.items() if gain is not None}

    def _decided(self, name: str, gain: float | None) -> None:
        self._undecided, self._gains = self._undecided - {name}, {**self._gains, name: gain}

    def take_bf16(self, bf16: bool, gain: float | None) -> None:
        """Compute in bfloat16 or not, whatever ``auto`` has chosen; a trainer that is made has to be told."""
        self._decided("bf16", gain)
        if bf16 != self.bf16:
            self.bf16, self.mixed_precision = bf16, "bf16" if bf16 else "no"  # type: ignore[assignment]
        if accelerator() is None and "use_cpu" in self._automatic:
            self.use_cpu = bf16

    def without_evaluation(self) -> None:
        """Switch off what needs a dev score."""
        self.eval_strategy = "no"
        self.eval_on_start = False
        self.load_best_model_at_end = False
        self.metric_for_best_model = None

    def _check_counts(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}")
        if not (self.max_steps >= 1 or self.max_steps == -1):
            raise ValueError(f"max_steps must be a number from 1, or -1 (by epochs), got {self.max_steps}")
        if self.max_steps == -1 and not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs must be above 0, got {self.num_train_epochs}")
        for name in ("gradient_accumulation_steps", "eval_steps", "save_steps", "logging_steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name in ("seed", "data_seed"):
            value = getattr(self, name)
            if value is not None and value not in SEEDS:
                raise ValueError(f"{name} must be a number from 0 to {SEEDS[-1]}, got {value}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to below 1, got {getattr(self, name)}")
        for name in ("weight_decay", "max_grad_norm", "adam_epsilon", "warmup_steps", "dataloader_num_workers"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass
class CacseTrainingArguments(CommonTrainingArguments):
    """The common arguments, with the defaults that contrastive training needs and a few fields more."""

    length_buckets: str = setting(
        "auto",
        "Run the encoder over so many groups of rows of similar length; the loss still sees the whole batch. auto: on "
        "a CPU and on CUDA without any padding (other encoders than BERT's kind: on a CPU as many groups as pay for "
        "the batch's lengths, on CUDA 1), 1 elsewhere and where the model is compiled.",
    )
    fast_paths: str = setting(
        "auto",
        "Cheaper dropout masks, attention, embedding gradient and casts with the same result: true, false, or auto: "
        "on a CPU, uncompiled, unless the step of a layer is clearly slower by them, as measured.",
    )
    mini_batch_size: int | None = setting(
        None,
        "Gradient caching: encode at most so many sentences at once, each twice, and let the loss see the whole batch "
        "all the same; for batches beyond the memory. Default: the whole batch at once.",
    )
    negatives: str = setting(
        "global",
        "On several processes: global, a row is compared with the rows of all of them, which is training on one with "
        "the whole batch; or local, with those of its own process.",
        choices=["global", "local"],
    )
    mask_duplicates: bool = setting(
        False,
        "Equal sentences within a batch are no negatives of each other. Default: they are, as published; they are "
        "counted in any case.",
    )
    unique_batches: bool = setting(
        False,
        "The rows of a batch, of all processes, share no sentence in any column: a row that does waits for the next "
        "batch. Not for a stream.",
    )
    early_stopping_patience: int | None = setting(
        None,
        "End the training when the choosing score has not risen in so many evaluations. Default: train to the end.",
    )
    decay_all_parameters: bool = setting(False, "Weight decay on biases and norms too, as in the CACSE release.")
    overwrite_output_dir: bool = setting(False, "Delete the output folder of an earlier run and start anew.")
    hub_license: str | None = setting(None, "Licence id for the cards of the exported encoders, such as mit.")
    card_note: str | None = setting(None, "A sentence for the cards of the exported encoders.")
    check: bool = setting(False, "Check the settings, the text, the dev sets and the models, then stop.")
    export: bool = setting(True, "Write the trained encoders to output_dir/export.")
    dataloader_num_workers: int | None = setting(  # type: ignore[assignment]
        None,
        "Processes that read and tokenise the batches ahead of the step; 0: the training's own does. Default: 2 where "
        "a CUDA GPU trains on a text that is no stream, which stay from pass to pass, else 0.",
    )
    dataloader_drop_last: bool = setting(True, "Drop the last incomplete batch: it has fewer negatives.")

    def __post_init__(self) -> None:
        self._is_default = self.dataloader_num_workers is None
        if self._is_default:
            on_gpu = accelerator() == "cuda" and not self.use_cpu
            self.dataloader_num_workers = 2 * on_gpu
            self.dataloader_persistent_workers |= on_gpu
        self.num_length_buckets = self._buckets()
        ways = spelled(self.fast_paths, "fast_paths")
        self.use_fast_paths = ways == "true"
        for name in ("mini_batch_size", "early_stopping_patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be a number from 1, got {value}")
        chosen_by = self.metric_for_best_model, self.greater_is_better
        super().__post_init__()
        if ways == "auto":
            self._automatic |= {"fast_paths", "use_fast_paths"}
            if not (self._accelerated or self.torch_compile):  # a compiler fuses on its own
                self._undecided |= {"fast_paths"}
        if chosen_by[0] is None:  # transformers puts the loss there; the trainer takes the first dev set's own
            self.metric_for_best_model, self.greater_is_better = chosen_by

    def leave_workers_off(self) -> None:
        """Of a stream, whose parts a worker has for itself, the training's process reads; unless workers were given."""
        if self._is_default:
            self.dataloader_num_workers, self.dataloader_persistent_workers = 0, False

    def take_fast_paths(self, fast: bool, gain: float | None) -> None:
        """Take the fast paths or not, whatever ``auto`` has chosen; a trainer that is made has to be told."""
        self._decided("fast_paths", gain)
        self.use_fast_paths = fast

    def _buckets(self) -> int | None:
        if self.length_buckets == "auto":
            packs = not self._accelerated or accelerator() in PACKING
            return None if packs and not self.torch_compile else 1
        count = int(self.length_buckets) if str(self.length_buckets).isdecimal() else 0
        if count < 1:
            raise ValueError(f"length_buckets must be auto or a number from 1, got {self.length_buckets!r}")
        return count

    def to_dict(self) -> dict[str, Any]:
        """As the parent's, with what ``auto`` was resolved to."""
        resolved = {"length_buckets": self.num_length_buckets or "auto", "fast_paths": self.use_fast_paths}
        return {**super().to_dict(), **resolved}
