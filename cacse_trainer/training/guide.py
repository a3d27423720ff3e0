"""A guide beside the model that is trained: a frozen encoder that tells which candidates are false negatives (GIST).

The guide is the trainer's, not the model's: it is not saved, not wrapped by DDP, never in train mode, and no graph is
built through it. It reads the raw text by its own tokenizer, prompt and pooling, as its folder states them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cacse_trainer.compute.distributed import shared_rows
from cacse_trainer.data import ContrastiveCollator
from cacse_trainer.data.collator import by_side, views_of
from cacse_trainer.data.deletion import RawCollator
from cacse_trainer.data.tokens import pad_rows, tokenise
from cacse_trainer.encoding.embedder import prefixed
from cacse_trainer.encoding.loading import Loaded
from cacse_trainer.encoding.sentence_transformers import Modules
from cacse_trainer.errors import UserError
from cacse_trainer.losses import false_negatives
from cacse_trainer.losses.contrastive import MARGIN_TYPES
from cacse_trainer.models.base import SentenceModel
from cacse_trainer.models.computing import ComputeSettings

GUIDE = "guide_"


@dataclass(frozen=True)
class Reader:
    """From sentences to the inputs of a frozen encoder.

    Args:
        tokenizer: the encoder's.
        stated: what its folder says: a prompt, lower case.
        max_seq_length: longer sentences are cut to so many tokens.
    """

    tokenizer: Any
    stated: Modules
    max_seq_length: int

    def __call__(self, sentences: Sequence[str], prompts: Sequence[str | None] | None = None) -> dict[str, Tensor]:
        """(n, L) tensors by name; ``prompts``: before each sentence, None for what the folder puts there by default."""
        prepare, before = self.stated.prepare or prefixed, prompts or [None] * len(sentences)
        texts = [prepare(sentence, prompt) for sentence, prompt in zip(sentences, before, strict=True)]
        return pad_rows(self.tokenizer, tokenise(self.tokenizer, texts, self.max_seq_length))


class FrozenEncoder:
    """An encoder that only looks on.

    Args:
        loaded: by `load_encoder`, on the device of the training.
        max_seq_length: sentences are cut to so many tokens, at most to what the encoder takes.
        bf16: run it under bfloat16 autocast.
    """

    def __init__(self, loaded: Loaded, max_seq_length: int, bf16: bool = False) -> None:
        loaded.model.requires_grad_(False)
        self.model, self.embed = loaded.model, loaded.embed
        self.reader = Reader(loaded.tokenizer, loaded.stated, min(max_seq_length, loaded.max_seq_length))
        self.dtype = torch.bfloat16 if bf16 else None

    @torch.no_grad()
    def vectors(self, inputs: dict[str, Tensor], compute: ComputeSettings) -> Tensor:
        """(n, L) inputs → (n, H) vectors, in parts as the training's are."""
        device = inputs["input_ids"].device.type
        # entered in either case: the training's own autocast does not reach it
        with torch.autocast(device, dtype=self.dtype, enabled=self.dtype is not None):
            return compute.in_parts(self.embed, inputs)


class Guide(FrozenEncoder):
    """A frozen encoder by which candidates are left out of InfoNCE, see `false_negatives`.

    Args:
        loaded, max_seq_length, bf16: as for `FrozenEncoder`.
        margin, margin_type: of `false_negatives`.

    Raises:
        UserError: an unknown margin type, or a relative margin that leaves nothing of the positive's similarity.
    """

    def __init__(
        self,
        loaded: Loaded,
        max_seq_length: int = 64,
        margin: float = 0.0,
        margin_type: str = "absolute",
        bf16: bool = False,
    ) -> None:
        super().__init__(loaded, max_seq_length, bf16)
        if margin_type not in MARGIN_TYPES:
            raise UserError(f"guide_margin_type {margin_type!r} is unknown; choose one of {', '.join(MARGIN_TYPES)}")
        if not -2 <= margin <= 2 or (margin_type == "relative" and margin >= 1):
            raise UserError(f"guide_margin {margin:g} is out of range; give a number below 1, such as 0.05")
        self.margin, self.margin_type = margin, margin_type

    def applied(self, inputs: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
        """A batch with ``left_out`` in place of the guide's inputs; see `left_out`."""
        found = self.left_out(inputs, model.compute, model.config.within_view_negatives)
        return {**{name: rows for name, rows in inputs.items() if not name.startswith(GUIDE)}, "left_out": found}

    def left_out(self, inputs: Mapping[str, Tensor], compute: ComputeSettings, within_views: bool) -> Tensor:
        """What `info_nce` is to leave out, of the rows that the loss compares.

        Args:
            inputs: of `GuidedCollator`, this process's.
            compute: of the model.
            within_views: of the model's config.

        Raises:
            UserError: the inputs have nothing for the guide.
        """
        own = {name.removeprefix(GUIDE): ids for name, ids in inputs.items() if name.startswith(GUIDE)}
        if not own:
            raise UserError("the guide reads raw text: make the batches by GuidedCollator, or give no data_collator")
        shape = own["input_ids"].shape[:2]  # (B, columns)
        vectors = self.vectors({name: ids.flatten(0, 1) for name, ids in own.items()}, compute).unflatten(0, shape)
        views = vectors.repeat(1, 2, 1) if shape[1] == 1 else vectors  # (B, V, H)
        return false_negatives(shared_rows(views, compute.negatives), self.margin, self.margin_type, within_views)


class GuidedCollator(ContrastiveCollator):
    """As `ContrastiveCollator`, with the guide's inputs beside the model's.

    Args:
        tokenizer, max_seq_length: of the model.
        guide: how the guide reads text; anchors and documents behind the prompts that its folder states for them.
        prompts: of the model, as for `ContrastiveCollator`.

    Returns:
        On a call with B rows of C columns also ``guide_input_ids`` (B, C, L) and so on; a sentence seen twice is there
        once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_seq_length: int, guide: Reader, **prompts: Any) -> None:
        super().__init__(tokenizer, max_seq_length, with_text_ids=True, **prompts)
        self.guide = guide

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = super().__call__(rows)
        columns, stated = views_of(rows[0]), self.guide.stated
        prompts = [by_side(column, stated.query_prompt, stated.document_prompt, None) for column in columns]
        found = self.guide([row[column] for row in rows for column in columns], prompts * len(rows))
        return {**batch, **{f"{GUIDE}{name}": ids.unflatten(0, (len(rows), -1)) for name, ids in found.items()}}


def collator_for(
    model: SentenceModel,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    guide: Guide | None,
    prompts: Mapping[str, Any],
) -> ContrastiveCollator:
    """The collator that a model's loss and a guide ask for; ``prompts``: ``query_prompt`` and ``document_prompt``."""
    if guide is not None:
        return GuidedCollator(tokenizer, max_seq_length, guide.reader, **prompts)
    kind = RawCollator if model.deletion else ContrastiveCollator
    return kind(tokenizer, max_seq_length, with_text_ids=True, with_margins=model.learns_scores, **prompts)
