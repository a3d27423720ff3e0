"""Whatever can teach, as one `EnsembleModel` of plain encoders.

A CACSE checkpoint gives its two towers, a folder with ``tower_a/`` and ``tower_b/`` those, an ensemble its encoders,
any other folder or hub id itself. Weights multiply, so that ``0.25·(h_A + h_B) + 0.75·h_UC`` is the list
``[{path: CACSE, weight: 0.25}, {path: UC, weight: 0.75}]``.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedTokenizerBase

from cacse_trainer.encoding.sentence_transformers import read_modules
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.models.base import Part, contract_of
from cacse_trainer.models.configuration_ensemble import POOLING_NAMES
from cacse_trainer.models.modeling_ensemble import EnsembleModel
from cacse_trainer.models.tokenizer_bundle import TokenizerBundle, bundle, load_tokenizer_of, tokenizers_of

logger = logging.getLogger(__name__)

Tokenizer = PreTrainedTokenizerBase | TokenizerBundle
Member = tuple[Part, PreTrainedTokenizerBase]
"""One encoder of an ensemble, its pooling one of `POOLING_NAMES`, and its tokenizer."""


def load_members(path: str, pooling: str | None = None, weight: float = 1.0) -> list[Member]:
    """The plain encoders that a folder or hub id stands for.

    Args:
        path: CACSE checkpoint, folder with tower_a/ and tower_b/, ensemble, single-tower checkpoint, or any encoder.
        pooling: of a plain encoder; default: what its sentence-transformers files say, else cls.
        weight: factor of them all.

    Raises:
        UserError: the path cannot be read, the pooling is unknown or cannot be chosen, or a dense layer would be lost.
    """
    if pooling is not None and pooling not in POOLING_NAMES:
        raise UserError(f"pooling {pooling!r} of {path} is unknown; choose one of {', '.join(POOLING_NAMES)}")
    towers = [Path(path) / name for name in ("tower_a", "tower_b")]
    if all(tower.is_dir() for tower in towers):
        return [member for tower in towers for member in load_members(str(tower), pooling, weight)]
    with user_errors(f"encoder {path}"):
        model = AutoModel.from_pretrained(path, dtype=torch.float32)
        tokenizer = load_tokenizer_of(path, model.config)
    contract = contract_of(model)
    if contract.stated_pooling is None:  # a plain encoder
        return [(Part(model, pooling or _stated_pooling(path), weight), tokenizer)]
    with user_errors(f"encoder {path}"):
        parts = contract.parts()
    trained = [part.pooling for part in parts]
    if pooling is not None and {POOLING_NAMES[pooling]} != {POOLING_NAMES[name] for name in trained}:
        raise UserError(
            f"encoder {path}: was trained with pooling {', '.join(trained)}, got {pooling}; leave the pooling out"
        )
    tokenizers = tokenizers_of(tokenizer)
    tokenizers = tokenizers if len(tokenizers) > 1 else tokenizers * len(parts)
    return [(part._replace(weight=weight * part.weight), own) for part, own in zip(parts, tokenizers, strict=True)]


def _stated_pooling(path: str) -> str:
    """The pooling of a plain encoder's sentence-transformers files; cls where it has none."""
    stated = read_modules(path)
    if stated.dense:
        raise UserError(
            f"encoder {path}: a dense layer follows its pooling, which an ensemble has not; "
            "state a pooling to use the states below it"
        )
    if stated.pooling is None:
        logger.info("%s: no pooling is stated, taking cls (the state of the first token)", path)
        return "cls"
    if stated.pooling not in POOLING_NAMES:
        raise UserError(f"encoder {path}: pools by {stated.pooling}; state one of {', '.join(POOLING_NAMES)}")
    return stated.pooling


def load_ensemble(members: Sequence[Member]) -> tuple[EnsembleModel, Tokenizer]:
    """The weighted sum of the members, in evaluation mode, and what tokenises for it.

    Raises:
        UserError: the widths differ.
    """
    tokenizer = bundle([own for _, own in members])
    encoders, poolings, weights = (list(column) for column in zip(*(part for part, _ in members), strict=True))
    several = len(tokenizers_of(tokenizer)) > 1
    try:
        ensemble = EnsembleModel.from_encoders(encoders, weights, poolings, own_tokenizers=several)
    except ValueError as error:
        raise UserError(str(error)) from error
    return ensemble.eval(), tokenizer
