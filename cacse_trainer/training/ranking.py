"""Ranking distillation: what a frozen teacher's order of a batch's sentences adds to a loss, and what it reads for it.

The teacher is the trainer's, not the model's: it is not saved, not wrapped by DDP, never in train mode, and no graph is
built through it.

Source: Liu et al. 2023 (RankCSE).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from cacse_trainer.compute.distributed import shared_rows
from cacse_trainer.data.tokens import pad_rows, tokenise
from cacse_trainer.errors import UserError
from cacse_trainer.losses import cosines, js_consistency, listmle_loss, listnet_loss
from cacse_trainer.models.computing import ComputeSettings

TEACHER = "teacher_"
ROW = "teacher_row"
VECTORS = "teacher_vectors"


@dataclass(frozen=True)
class Ranking:
    """What ranking distillation adds to InfoNCE: ``β·JS(S, S') + γ·L_rank(S, S^T)``.

    With the student's two views x, x' of each sentence, S_ij = cos(f(x_i), f(x'_j)), S'_ij = cos(f(x'_i), f(x_j)), and
    S^T the teacher's cosines.

    Args:
        kind: ``listnet`` or ``listmle``, L_rank.
        weight: γ.
        temperature: τ₂, of the student's cosines in L_rank.
        teacher_temperature: τ₃, of the teacher's, in ``listnet``.
        consistency_weight: β.
        consistency_temperature: τ₁.

    Raises:
        UserError: the kind is unknown, or a number is out of range.
    """

    kind: str
    weight: float = 1.0
    temperature: float = 0.05
    teacher_temperature: float = 0.025
    consistency_weight: float = 1.0
    consistency_temperature: float = 0.05

    def __post_init__(self) -> None:
        if self.kind not in ("listnet", "listmle"):
            raise UserError(f"objective {self.kind!r} is no ranking; choose listnet or listmle")
        names = {"weight": "ranking_weight", "temperature": "ranking_temperature"}  # as the flags are called
        for name, value in vars(self).items():
            if name.endswith("weight") and not value >= 0:
                raise UserError(f"{names.get(name, name)} must not be negative, got {value}")
            if name.endswith("temperature") and not value > 0:
                raise UserError(f"{names.get(name, name)} must be positive, got {value}")

    def parts(self, first: Tensor, second: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """``consistency`` and ``ranking``, before their weights.

        Args:
            first, second: (N, H), the student's vectors of both views.
            teacher: (N, D), the teacher's.
        """
        similarities, given = cosines(first, second), cosines(teacher, teacher)  # (N, N)
        if self.kind == "listnet":
            ranking = listnet_loss(similarities, given, self.temperature, self.teacher_temperature)
        else:
            ranking = listmle_loss(similarities, given, self.temperature)
        consistency = js_consistency(similarities, similarities.T, self.consistency_temperature)
        return {"consistency": consistency, "ranking": ranking}

    def added_to(self, loss: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """A loss with the weighted `parts`."""
        return loss + self.consistency_weight * parts["consistency"] + self.weight * parts["ranking"]

    @property
    def sources(self) -> list[str]:
        """What to cite, see `bibtex_of`."""
        return ["rankcse", "distillcse"] if self.kind == "listnet" else ["rankcse"]


def teacher_inputs(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, max_seq_length: int, vectors: np.ndarray | None
) -> dict[str, Tensor]:
    """What a teacher needs of rows of ``text``: its tokens, ``teacher_input_ids`` …, or its vectors by row number."""
    if vectors is not None:
        return {VECTORS: torch.from_numpy(np.asarray(vectors[[row[ROW] for row in rows]]))}
    limit = min(max_seq_length, tokenizer.model_max_length)
    padded = pad_rows(tokenizer, tokenise(tokenizer, [row["text"] for row in rows], limit))
    return {f"{TEACHER}{name}": tensor for name, tensor in padded.items()}


@torch.no_grad()
def teach(
    embed: Callable[..., Tensor], inputs: Mapping[str, Tensor], dtype: torch.dtype | None, compute: ComputeSettings
) -> Tensor:
    """A teacher's vectors of a batch, (B, H), given or computed, in float32 unless another dtype is asked for.

    Args:
        embed: the teacher's.
        inputs: of a batch; without the teacher's own among them it reads the student's.
        dtype: of its autocast.
        compute: of the student.
    """
    if VECTORS in inputs:
        return inputs[VECTORS]
    own = {name.removeprefix(TEACHER): ids for name, ids in inputs.items() if name.startswith(TEACHER)}
    shared = {name: ids for name, ids in inputs.items() if name != "text_ids"}
    device = inputs["input_ids"].device.type
    # entered in either case: the student's own autocast does not reach the teacher
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        return compute.in_parts(embed, own or shared)


def with_row_numbers(dataset: Any, vectors: np.ndarray) -> Dataset:
    """The training text with a column by which `teacher_inputs` finds the vectors.

    Raises:
        UserError: it is a stream, or of another length.
    """
    if not isinstance(dataset, Dataset):
        raise UserError("teacher vectors are found by row number: they need a training text that is no stream")
    if len(dataset) != len(vectors):
        raise UserError(f"the training text has {len(dataset)} rows, the teacher's vectors {len(vectors)}")
    return dataset.add_column(ROW, list(range(len(dataset))))


@dataclass(frozen=True)
class TaughtCollator:
    """A collator whose batches hold what a teacher needs, too, see `teacher_inputs`; it goes to worker processes.

    Raises:
        UserError: on a call, rows that are no single sentences.
    """

    collator: Callable[..., dict[str, Tensor]]
    tokenizer: Any
    max_seq_length: int
    vectors: np.ndarray | None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = self.collator(rows)
        if "text" not in rows[0]:
            raise UserError(
                f"teachers rank single sentences (a column text), a row has {', '.join(rows[0])}; name one column "
                "with text_columns, or leave teachers out"
            )
        return {**batch, **teacher_inputs(rows, self.tokenizer, self.max_seq_length, self.vectors)}


class RankingTerm:
    """A `Ranking` beside a model's own loss, of single sentences that are seen twice: RankCSE around any such loss.

    Args:
        ranking: which, and its weights.
        teacher: a model with ``embed``, such as a `SimilarityEnsemble`.
        tokenizer: the teacher's, a tokenizer or a `TokenizerBundle`.
        device: of the training.
        max_seq_length: sentences are cut to so many tokens, at most to what the tokenizer allows.
        bf16: run the teacher under bfloat16 autocast.
        vectors: (training rows, H), the teacher's vectors computed before (`cached_teacher_embeddings`).
    """

    def __init__(
        self,
        ranking: Ranking,
        teacher: Any,
        tokenizer: Any,
        device: torch.device | str = "cpu",
        max_seq_length: int = 64,
        bf16: bool = False,
        vectors: np.ndarray | None = None,
    ) -> None:
        self.ranking, self.teacher = ranking, teacher.requires_grad_(False).eval().to(device)
        self.tokenizer, self.max_seq_length, self.vectors = tokenizer, max_seq_length, vectors
        self.dtype = torch.bfloat16 if bf16 else None

    def numbered(self, dataset: Any) -> Any:
        """The training text, with what cached vectors are found by."""
        return dataset if self.vectors is None else with_row_numbers(dataset, self.vectors)

    def beside(self, collator: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
        """A collator whose batches hold what the teacher needs, too."""
        return TaughtCollator(collator, self.tokenizer, self.max_seq_length, self.vectors)

    def taken(self, inputs: Mapping[str, Any], compute: ComputeSettings) -> tuple[dict[str, Any], Tensor]:
        """A batch without what is the teacher's, and the teacher's vectors (B, H) of it.

        Raises:
            UserError: there is nothing of the teacher's.
        """
        rest = {name: part for name, part in inputs.items() if not name.startswith(TEACHER)}
        if len(rest) == len(inputs):
            raise UserError("the teachers read raw text: give no data_collator")
        return rest, teach(self.teacher.embed, inputs, self.dtype, compute)

    def added_to(
        self, loss: Tensor, vectors: Tensor, teacher: Tensor, negatives: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss with the ranking of the batch, and the ranking's parts for the log.

        Args:
            loss: of the model.
            vectors: (B, 2, H), its vectors of this process's rows.
            teacher: (B, D), of `taken`.
            negatives: see `ComputeSettings`.
        """
        views = shared_rows(vectors, negatives)
        parts = self.ranking.parts(views[:, 0], views[:, 1], shared_rows(teacher, negatives))
        return self.ranking.added_to(loss, parts), {name: part.detach() for name, part in parts.items()}
