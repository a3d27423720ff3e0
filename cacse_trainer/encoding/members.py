"""Whatever can teach, as one `EnsembleModel` of plain encoders.

A CACSE checkpoint gives its two towers, a folder with ``tower_a/`` and ``tower_b/`` those, an ensemble its encoders,
any other folder or hub id itself. Weights multiply, so that ``0.25·(h_A + h_B) + 0.75·h_UC`` is the list
``[{path: CACSE, weight: 0.25}, {path: UC, weight: 0.75}]``.
"""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cacse_trainer.encoding.loading import Loaded, is_sentence_model, load_encoder
from cacse_trainer.errors import UserError, user_errors
from cacse_trainer.models.base import Part, contract_of
from cacse_trainer.models.configuration_ensemble import POOLING_NAMES
from cacse_trainer.models.modeling_ensemble import EnsembleModel
from cacse_trainer.models.modeling_similarity import SimilarityEnsemble
from cacse_trainer.models.prompting import PLACEHOLDER, prepare_tokenizer
from cacse_trainer.models.tokenizer_bundle import TokenizerBundle, bundle, tokenizers_of

Tokenizer = PreTrainedTokenizerBase | TokenizerBundle
Member = tuple[Part, PreTrainedTokenizerBase]
"""One encoder of an ensemble, its pooling one of `POOLING_NAMES`, and its tokenizer."""


def load_members(path: str, pooling: str | None = None, weight: float = 1.0) -> list[Member]:
    """The plain encoders that a folder or hub id stands for.

    Args:
        path: CACSE checkpoint, folder with tower_a/ and tower_b/, ensemble, single-tower checkpoint, or any encoder.
        pooling: of a plain encoder; default: what its sentence-transformers files say, else as for `load_encoder`.
        weight: factor of them all.

    Raises:
        UserError: the path cannot be read, the pooling is unknown or cannot be chosen, or something would be lost.
    """
    if pooling is not None and pooling not in POOLING_NAMES:
        raise UserError(f"pooling {pooling!r} of {path} is unknown; choose one of {', '.join(POOLING_NAMES)}")
    towers = [Path(path) / name for name in ("tower_a", "tower_b")]
    if all(tower.is_dir() for tower in towers):
        return [member for tower in towers for member in load_members(str(tower), pooling, weight)]
    loaded = load_encoder(path, pooling=None if is_sentence_model(path) else pooling, device="cpu")
    contract = contract_of(loaded.model)
    if contract.stated_pooling is None:  # a plain encoder
        parts = [_plain_part(path, loaded)]
    else:
        with user_errors(f"encoder {path}"):
            parts = contract.parts()
        trained = [part.pooling for part in parts]
        if pooling is not None and {POOLING_NAMES[pooling]} != {POOLING_NAMES[name] for name in trained}:
            raise UserError(
                f"encoder {path}: was trained with pooling {', '.join(trained)}, got {pooling}; leave the pooling out"
            )
    tokenizers = tokenizers_of(loaded.tokenizer)
    tokenizers = tokenizers if len(tokenizers) > 1 else tokenizers * len(parts)
    for own in tokenizers:
        own.model_max_length = min(own.model_max_length, loaded.max_seq_length)
    return [(part._replace(weight=weight * part.weight), own) for part, own in zip(parts, tokenizers, strict=True)]


def _plain_part(path: str, loaded: Loaded) -> Part:
    """A plain encoder with all that its folder states; its prompt becomes the tokenizer's.

    Raises:
        UserError: what an ensemble has no place for.
    """
    stated = loaded.stated
    if stated.static is not None:
        raise UserError(f"encoder {path}: is a static table, which has no place in a sum; give the encoder itself")
    if stated.above:
        raise UserError(
            f"encoder {path}: a dense layer follows its pooling, which an ensemble has not; "
            "state a pooling to use the states below it"
        )
    if stated.lower_case:
        raise UserError(
            f"encoder {path}: its do_lower_case lower-cases the text, which an ensemble does not; let its tokenizer do "
            "it (a Lowercase normalizer in tokenizer.json)"
        )
    if loaded.pooling not in POOLING_NAMES:
        raise UserError(f"encoder {path}: pools by {loaded.pooling}; state one of {', '.join(POOLING_NAMES)}")
    if stated.prompt:
        with user_errors(f"encoder {path}"):
            loaded.tokenizer = prepare_tokenizer(loaded.tokenizer, stated.prompt + PLACEHOLDER)
    return Part(loaded.model, loaded.pooling, normalized=stated.normalizes)


def load_ensemble(members: Sequence[Member]) -> tuple[EnsembleModel, Tokenizer]:
    """The weighted sum of the members, in evaluation mode, and what tokenises for it.

    Raises:
        UserError: the widths differ.
    """
    tokenizer = bundle([own for _, own in members])
    return _sum_of(members, len(tokenizers_of(tokenizer)) > 1), tokenizer


def load_similarities(
    teachers: Sequence[Sequence[Member]], weights: Sequence[float]
) -> tuple[SimilarityEnsemble, Tokenizer]:
    """The weighted mean of the cosines of several teachers, each the sum of its members, and what tokenises for it.

    Raises:
        UserError: the widths of one teacher's members differ, or the weights are no weights.
    """
    tokenizer = bundle([own for members in teachers for _, own in members])
    several = len(tokenizers_of(tokenizer)) > 1
    sums = [_sum_of(members, several) for members in teachers]
    try:
        return SimilarityEnsemble(sums, weights).eval(), tokenizer
    except ValueError as error:
        raise UserError(f"teachers: {error}") from error


def _sum_of(members: Sequence[Member], own_tokenizers: bool) -> EnsembleModel:
    encoders, poolings, weights, normalized = (
        list(column) for column in zip(*(part for part, _ in members), strict=True)
    )
    try:
        return EnsembleModel.from_encoders(encoders, weights, poolings, own_tokenizers, normalized).eval()
    except ValueError as error:
        raise UserError(str(error)) from error
