"""An encoder that is told a vector: for one pass, the vector takes the place of the first token's embedding."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cacse_trainer.compute.pooling import first_token


@contextmanager
def condition_on(encoder: PreTrainedModel, vectors: Tensor, attention_mask: Tensor) -> Iterator[None]:
    """Within the context, ``vectors`` (N, H) replace the embedding output at the first token of each of the N rows.

    The embedding output is that after layer norm and dropout. A forward hook does it, so any encoder that keeps its
    embeddings in a module called ``embeddings`` will do (BERT, RoBERTa, DistilBERT, MPNet, DeBERTa, ModernBERT, …).

    Raises:
        ValueError: the encoder has no such module.
    """
    embeddings = dict(encoder.named_children()).get("embeddings")
    if embeddings is None:
        raise ValueError(
            f"{type(encoder).__name__} has no `embeddings` module, so no vector can be put in the first token's place; "
            "use BERT, RoBERTa or one of their kin"
        )

    def replace(module: Any, arguments: Any, output: Tensor) -> Tensor:
        length, width = output.shape[1:]
        if width != vectors.shape[-1]:
            raise ValueError(
                f"{type(encoder).__name__} has embeddings of width {width}, a vector of width {vectors.shape[-1]} "
                "cannot take their place; use an encoder whose embeddings are as wide as its layers"
            )
        here = torch.arange(length, device=output.device) == first_token(attention_mask)[:, None]  # (N, L)
        return torch.where(here[..., None], vectors[:, None].to(output.dtype), output)

    handle = embeddings.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
