"""Training objectives over the vectors of a batch, by name. A new one is a function and a line in `OBJECTIVES`.

Rows come in four formats: ``pair`` (B, 2, H), anchor and positive; ``triplet`` (B, 3, H), with a hard negative;
``negatives`` (B, 2 + K, H), with several; ``labelled`` (B, 2, H) with a label a pair (AnglE's formats B, C and A).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cacse_trainer.losses import angle_loss, cosent_loss, info_nce, labelled_nt_xent, margin_mse_loss, nt_xent

PAIR, TRIPLET, NEGATIVES, LABELLED = "pair", "triplet", "negatives", "labelled"
FORMATS = {
    PAIR: "pairs (two columns, or one seen twice)",
    TRIPLET: "triplets (three columns)",
    NEGATIVES: "rows with several negatives (four columns or more)",
    LABELLED: "pairs with a label",
}


def info_nce_objective(
    vectors: Tensor, config: Any, texts: Tensor | None = None, left_out: Tensor | None = None
) -> Tensor:
    """SimCSE, STS-CFT: in-batch negatives, and hard negatives where there are more views. (B, 2 + K, H) → scalar."""
    return info_nce(
        anchors=vectors[:, 0],
        positives=vectors[:, 1],
        hard_negatives=vectors[:, 2:] if vectors.shape[1] > 2 else None,
        temperature=config.contrastive_temperature,
        hard_negative_weight=config.hard_negative_weight,
        texts=texts,
        within_views=config.within_view_negatives,
        left_out=left_out,
    )


def nt_xent_objective(vectors: Tensor, config: Any, texts: Tensor | None = None) -> Tensor:
    """CACSE's towers: every other view is a negative, in both directions. (B, 2, H) → scalar."""
    return nt_xent(vectors[:, 0], vectors[:, 1], config.contrastive_temperature, texts)


def _labelled_pairs(vectors: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Labelled pairs as they are; triplets as (anchor, positive, 1) and (anchor, negative, 0), 2B pairs."""
    if labels is not None:
        return vectors[:, 0], vectors[:, 1], labels
    anchors, positives, negatives = vectors.unbind(dim=1)
    ones = vectors.new_ones(len(vectors))
    return torch.cat([anchors, anchors]), torch.cat([positives, negatives]), torch.cat([ones, 0 * ones])


def cosent_objective(vectors: Tensor, config: Any, labels: Tensor | None = None) -> Tensor:
    """CoSENT's cosine loss over labelled pairs, or over the pairs of triplets. (B, 2 or 3, H) → scalar."""
    return cosent_loss(*_labelled_pairs(vectors, labels), config.ranking_scale)


def angle_objective(vectors: Tensor, config: Any, labels: Tensor | None = None) -> Tensor:
    """AnglE's angle loss over labelled pairs, or over the pairs of triplets. (B, 2 or 3, H) → scalar."""
    return angle_loss(*_labelled_pairs(vectors, labels), config.ranking_scale)


def angle_combined_objective(
    vectors: Tensor, config: Any, labels: Tensor | None = None, texts: Tensor | None = None
) -> Tensor:
    """AnglE's weighted combination. (B, 2 or 3, H) → scalar.

    Labelled pairs: ``cosine·CoSENT + ibn·(labelled NT-Xent) + angle·angle``. Pairs: ``ibn·InfoNCE``. Triplets:
    ``(ibn·InfoNCE + cln·InfoNCE with hard negatives)/2 + cosine·CoSENT + angle·angle``. A part of weight 0 is not run.

    Source: the AnglE release 0.6.1, which ignores its weights on pairs; here they count.
    """
    total = vectors.new_zeros(())
    ibn, temperature = config.ibn_weight, config.contrastive_temperature
    if labels is not None:
        if ibn:
            positive = labels if config.positive_threshold is None else labels >= config.positive_threshold
            total = total + ibn * labelled_nt_xent(vectors[:, 0], vectors[:, 1], positive, temperature, texts)
    elif vectors.shape[1] == 2:
        return total + ibn * info_nce(vectors[:, 0], vectors[:, 1], temperature=temperature, texts=texts)
    else:
        if ibn:
            total = total + ibn / 2 * info_nce(vectors[:, 0], vectors[:, 1], temperature=temperature, texts=texts)
        if config.cln_weight:
            total = total + config.cln_weight / 2 * _triplet_info_nce(vectors, config, texts)
    return total + _ranking_parts(vectors, config, labels)


def bellm_objective(vectors: Tensor, config: Any, texts: Tensor | None = None) -> Tensor:
    """BeLLM: ``ibn·(InfoNCE with hard negatives) + cosine·CoSENT + angle·angle`` over triplets. (B, 3, H) → scalar.

    Source: Li and Li 2024 (arXiv 2311.05296), and the AnglE release of its time (0.4.0).
    """
    total = vectors.new_zeros(())
    if config.ibn_weight:
        total = config.ibn_weight * _triplet_info_nce(vectors, config, texts)
    return total + _ranking_parts(vectors, config, None)


def margin_mse_objective(vectors: Tensor, config: Any, margins: Tensor | None = None) -> Tensor:
    """MarginMSE: a teacher's margins between positive and negatives. (B, 2 + K, H), (B, K) → scalar.

    Raises:
        ValueError: there are no margins.
    """
    if margins is None:
        raise ValueError("objective margin_mse learns margins: rows need a column scores, and batches its labels")
    return margin_mse_loss(vectors[:, 0], vectors[:, 1], vectors[:, 2:], margins)


def _triplet_info_nce(vectors: Tensor, config: Any, texts: Tensor | None) -> Tensor:
    anchors, positives, negatives = vectors.unbind(dim=1)
    return info_nce(anchors, positives, negatives, config.contrastive_temperature, texts=texts)


def _ranking_parts(vectors: Tensor, config: Any, labels: Tensor | None) -> Tensor:
    """``cosine·CoSENT + angle·angle``, the parts without weight left out."""
    total = vectors.new_zeros(())
    if config.cosine_weight:
        total = total + config.cosine_weight * cosent_objective(vectors, config, labels)
    if config.angle_weight:
        total = total + config.angle_weight * angle_objective(vectors, config, labels)
    return total


class Objective(NamedTuple):
    """An objective.

    Args:
        loss: takes the vectors (B, V, H) of the global batch and the model's config, and of labelled rows the labels
            (B,), of scored ones the margins (B, K), as a third; returns a scalar. Those with in-batch negatives take
            ``texts`` (B, V), numbers of the sentences, to leave out negatives that are a row's own sentence.
        negatives: in-batch negatives of each view, as a function of the global batch size B.
        formats: of rows that it compares.
        reads: the settings that it reads, of those that not every objective does; one that reads ``guide`` takes
            ``left_out``, see `info_nce`.
        sources: what to cite, see `bibtex_of`.
    """

    loss: Callable[..., Tensor]
    negatives: Callable[[int], int]
    formats: tuple[str, ...] = (PAIR, TRIPLET)
    reads: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


COMBINED = ("cosine_weight", "ibn_weight", "angle_weight", "ranking_scale")  # what a sum of losses reads
GUIDED = ("within_view_negatives", "guide", "guide_margin", "guide_margin_type")
OBJECTIVES: dict[str, Objective] = {
    "info_nce": Objective(
        info_nce_objective,
        lambda batch: batch - 1,
        (PAIR, TRIPLET, NEGATIVES),
        ("hard_negative_weight", *GUIDED),
        ("simcse",),
    ),
    "nt_xent": Objective(nt_xent_objective, lambda batch: 2 * batch - 2, (PAIR,), sources=("simcse",)),
    "cosent": Objective(cosent_objective, lambda batch: 0, (LABELLED, TRIPLET), ("ranking_scale",), ("cosent",)),
    "angle": Objective(angle_objective, lambda batch: 0, (LABELLED, TRIPLET), ("ranking_scale",), ("angle",)),
    "angle_combined": Objective(
        angle_combined_objective,
        lambda batch: batch - 1,
        (LABELLED, PAIR, TRIPLET),
        (*COMBINED, "cln_weight", "positive_threshold"),
        ("angle",),
    ),
    "bellm": Objective(bellm_objective, lambda batch: batch - 1, (TRIPLET,), COMBINED, ("bellm", "angle")),
    "margin_mse": Objective(margin_mse_objective, lambda batch: 0, (TRIPLET, NEGATIVES), sources=("margin_mse",)),
}
"""Every objective by name."""
SCORED = ("margin_mse",)
"""Objectives that learn a teacher's scores of a row's texts, its column ``scores``."""
SPLITS_VECTORS = ("angle", "angle_combined", "bellm")
"""Objectives that read a vector as real and imaginary halves."""


def needs_binary_labels(config: Any) -> bool:
    """Whether labelled pairs must be labelled 0 or 1: the in-batch part has no use for grades."""
    return config.objective == "angle_combined" and config.ibn_weight != 0 and config.positive_threshold is None


def check_format(objective: str, views: int, labelled: bool) -> None:
    """Refuse rows of a format that the objective does not know.

    Raises:
        ValueError: with the formats that it knows, and the objectives that know this one.
    """
    found = LABELLED if labelled and views == 2 else {2: PAIR, 3: TRIPLET}.get(views, NEGATIVES if views > 3 else None)
    if found not in OBJECTIVES[objective].formats:
        known = ", ".join(FORMATS[name] for name in OBJECTIVES[objective].formats)
        others = ", ".join(name for name, other in OBJECTIVES.items() if found in other.formats)
        raise ValueError(
            f"objective {objective} compares {known}, got {FORMATS.get(str(found), f'{views} views of each row')}"
            + (f", which {others} compare" if others else "")
        )


def compute(
    vectors: Tensor, config: Any, labels: Tensor | None, texts: Tensor | None = None, left_out: Tensor | None = None
) -> Tensor:
    """The config's objective over (B, V, H) vectors and (B,) labels or None: a scalar.

    With ``matryoshka_dims`` it is ``Σ_d w_d·objective(first d coordinates)`` (Kusupati et al. 2022, arXiv 2205.13147).

    Args:
        vectors: of the batch.
        config: a `SentenceEmbeddingConfig`.
        labels: of labelled pairs, or margins of scored rows.
        texts: (B, V), numbers of the sentences: equal ones are no negatives of each other; None: nothing is left out.
        left_out: more candidates that are no negatives, see `info_nce`.

    Raises:
        ValueError: as `check_format`, or the objective leaves none out.
    """
    check_format(config.objective, vectors.shape[1], labels is not None)
    objective = OBJECTIVES[config.objective]
    named = {"texts": texts} if texts is not None and objective.negatives(len(vectors)) > 0 else {}
    if left_out is not None:
        if "guide" not in objective.reads:
            raise ValueError(f"objective {config.objective} leaves out no negatives of a guide's choice; use info_nce")
        named["left_out"] = left_out
    given = [] if labels is None else [labels]
    if config.matryoshka_dims is None:
        return objective.loss(vectors, config, *given, **named)
    weights = config.matryoshka_weights or [1.0] * len(config.matryoshka_dims)
    sized = zip(config.matryoshka_dims, weights, strict=True)
    return sum(
        (weight * objective.loss(vectors[..., :size], config, *given, **named) for size, weight in sized),
        vectors.new_zeros(()),
    )
