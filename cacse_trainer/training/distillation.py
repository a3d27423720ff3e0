"""`DistillationTrainer`: one encoder learns from a frozen teacher, its vectors or its ranking of a batch.

Vectors: ``loss = w·NT-Xent(interleave(teacher, student); τ) + (1-w)·mean|student - teacher|`` over the global batch of
single sentences. Ranking: see `Ranking`. The teacher is the trainer's, not the model's: it is not saved, not wrapped by
DDP, never in train mode, and no graph is built through it.

Source: the CACSE release's distillation scripts (METHODS: self-distillation and UC ensemble); Liu et al. 2023
(RankCSE).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainingArguments

from cacse_trainer.compute.distributed import shared_rows
from cacse_trainer.compute.fast_paths import compute_alike
from cacse_trainer.data import ContrastiveCollator
from cacse_trainer.encoding.embedder import Embedder, length_limit
from cacse_trainer.errors import UserError
from cacse_trainer.evaluation.dev_sets import as_dev_sets, scores_by_set
from cacse_trainer.losses import distillation_parts, info_nce
from cacse_trainer.models.tokenizer_bundle import same_tokens, tokenizers_of
from cacse_trainer.training.ranking import TEACHER, Ranking, teach, teacher_inputs, with_row_numbers
from cacse_trainer.training.trainer import CacseTrainer


class DistillationCollator(ContrastiveCollator):
    """Rows with one ``text`` to the student's inputs, and to the teacher's where they differ.

    Args:
        tokenizer: the student's.
        max_seq_length: longer sentences are cut to so many tokens, for both; the teacher's also at its own limit.
        teacher_tokenizer: the teacher's where it is not the student's; its tensors are named ``teacher_…``.
        teacher_vectors: (rows, H), the teacher's vectors by ``teacher_row``; then it has no inputs.

    Returns:
        On a call with B rows: (B, L) ``input_ids``, ``attention_mask``, …, and for the teacher nothing (it reads the
        same), ``teacher_input_ids`` and so on, or ``teacher_vectors`` (B, H); ``text_ids`` (B,), see `text_id`.

    Raises:
        UserError: rows without ``text``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_seq_length: int = 64,
        teacher_tokenizer: Any = None,
        teacher_vectors: np.ndarray | None = None,
    ) -> None:
        super().__init__(tokenizer, max_seq_length, with_text_ids=True)
        self.teacher_tokenizer = teacher_tokenizer
        self.teacher_vectors = teacher_vectors

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        if "text" not in rows[0]:
            raise UserError(
                f"distillation reads single sentences (a column text), a row has {', '.join(rows[0])}; name one column "
                "with text_columns"
            )
        batch = {name: tensor[:, 0] for name, tensor in super().__call__(rows).items()}  # (B, 2, L) → (B, L)
        if self.teacher_vectors is not None or self.teacher_tokenizer is not None:
            batch |= teacher_inputs(rows, self.teacher_tokenizer, self.max_seq_length, self.teacher_vectors)
        return batch


class DistillationTrainer(CacseTrainer):
    """A `CacseTrainer` that owns a frozen teacher.

    Args:
        model: the student, a `StudentModel` or any model whose ``forward`` on (N, L) gives ``sentence_embedding``.
        teacher: a model with ``embed`` and ``config.hidden_size``: `EnsembleModel`, CACSE, any of this package.
        teacher_tokenizer: where it is not the student's; a tokenizer or a `TokenizerBundle`.
        teacher_bf16: run the teacher under bfloat16 autocast.
        teacher_vectors: (training rows, H), the teacher's vectors computed before (`cached_teacher_embeddings`).
        contrastive_weight: w.
        temperature: τ.
        ranking: learn the teacher's ranking, not its vectors; their widths may differ. None: the vectors.

    The other arguments are those of `CacseTrainer`.

    Raises:
        UserError: the widths differ and the student has no projection, the tokenizers differ and the teacher's is not
            given, the rows hold no single sentences, or the teacher's vectors do not fit them.
    """

    def __init__(
        self,
        model: Any,
        teacher: Any,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        teacher_tokenizer: Any = None,
        teacher_bf16: bool = False,
        teacher_vectors: np.ndarray | None = None,
        contrastive_weight: float = 0.01,
        temperature: float = 0.05,
        ranking: Ranking | None = None,
        max_seq_length: int = 64,
        **others: Any,
    ):
        if not 0 <= contrastive_weight <= 1:
            raise UserError(f"contrastive_weight must be within [0, 1], got {contrastive_weight}")
        if not temperature > 0:
            raise UserError(f"temperature must be positive, got {temperature}")
        self.teacher, self.ranking = teacher, ranking
        if teacher_vectors is not None:
            train_dataset = with_row_numbers(train_dataset, teacher_vectors)
        self.teacher_tokenizer: Any = processing_class if teacher_tokenizer is None else teacher_tokenizer
        if data_collator is None and processing_class is not None:
            own = tokenizers_of(self.teacher_tokenizer)
            is_shared = len(own) == 1 and same_tokens([processing_class, *own], max_seq_length)
            apart = None if is_shared else self.teacher_tokenizer
            data_collator = DistillationCollator(processing_class, max_seq_length, apart, teacher_vectors)
        if others.get("compute_loss_func") is not None:
            raise UserError(
                "compute_loss_func: the loss of a distillation is of the teacher's vectors, which a function of the "
                "student's output does not see; leave it out, or override compute_loss of DistillationTrainer"
            )
        given = (model, args, data_collator, train_dataset, eval_dataset, processing_class)
        super().__init__(*given, max_seq_length=max_seq_length, **others)
        self.teacher = teacher.requires_grad_(False).eval().to(self.args.device)
        self.teacher_dtype = torch.bfloat16 if teacher_bf16 else None
        self.contrastive_weight = contrastive_weight
        self.temperature = temperature

    def _settle(self) -> None:
        super()._settle()
        compute_alike(self.teacher, fast_paths=self.model_of_run.compute.fast_paths, ahead=self.runs_ahead)
        if self.ranking is None and self.model_of_run.loads_from_folder:  # another module states no width
            check_widths(self.model_of_run, self.teacher)

    @property
    def sources(self) -> list[str]:
        """Of a ranking its own, else of the distillation of vectors."""
        if self.ranking is None:
            return super().sources
        return self.ranking.sources

    def effective_negatives(self, batch_size: int) -> int:
        """Every other row of the 2B teacher and student vectors but the partner; in a ranking the other sentences."""
        return 2 * batch_size - 2 if self.ranking is None else batch_size - 1

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The distillation loss of the global batch, and its parts.

        Vectors: ``contrastive`` and ``distance``; a ranking: ``contrastive``, ``consistency`` and ``ranking``.

        Raises:
            NonFiniteLossError: with the step and the parts.
        """
        inputs, texts = self.take_batch(inputs)
        negatives, views = self.model_of_run.compute.negatives, 1 if self.ranking is None else 2
        student_inputs = {
            name: tensor.repeat_interleave(views, dim=0) if views > 1 else tensor  # a ranking sees each sentence twice
            for name, tensor in inputs.items()
            if not name.startswith(TEACHER)
        }
        outputs = model(**student_inputs)
        vectors = outputs["embeddings"] if "embeddings" in outputs else outputs["sentence_embedding"]  # (B · views, H)
        student = shared_rows(vectors.unflatten(0, (-1, views)), negatives)  # (global B, views, H)
        teacher = shared_rows(self.teach(inputs), negatives)
        if texts is not None:
            texts = shared_rows(texts[:, None], negatives) if self.mask_duplicates else None
        if self.ranking is None:
            loss, contrastive, distance = distillation_parts(
                student[:, 0], teacher, self.temperature, self.contrastive_weight, texts
            )
            parts = {"contrastive": contrastive, "distance": distance}
        else:
            first, second = student[:, 0], student[:, 1]
            contrastive = info_nce(first, second, temperature=self.temperature, texts=texts)
            parts = {"contrastive": contrastive, **self.ranking.parts(first, second, teacher)}
            loss = self.ranking.added_to(contrastive, parts)
        self.record_loss(loss, {name: part.detach() for name, part in parts.items()})
        return (loss, outputs) if return_outputs else loss

    def teach(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The teacher's vectors of a batch, (B, H), given or computed, in float32 unless bf16 is asked for."""
        return teach(self.teacher.embed, inputs, self.teacher_dtype, self.model_of_run.compute)

    def score_teacher(self) -> dict[str, float]:
        """The teacher's score ×100 on each dev set (see `DevSet`): what the student is to reach."""
        limit = length_limit(self.teacher_tokenizer, self.teacher.config)
        prompts: Any = {"query_prompt": self.query_prompt, "document_prompt": self.document_prompt}
        embed, tokenizer, dtype = self.teacher.embed, self.teacher_tokenizer, self.teacher_dtype
        embedder = Embedder(embed, tokenizer, limit, self.args.device, dtype, **prompts)
        return scores_by_set(embedder, as_dev_sets(self.eval_dataset))


def check_widths(student: Any, teacher: Any) -> None:
    """Refuse a student whose vectors are not as wide as the teacher's.

    Raises:
        UserError: with both widths.
    """
    width = student.config.to_dict().get("teacher_size") or student.config.hidden_size
    if width != teacher.config.hidden_size:
        raise UserError(
            f"the student's vectors have {width} dimensions, the teacher's {teacher.config.hidden_size}; "
            "add a learned projection for the loss (project_to_teacher: true), or choose a student of that width"
        )
