"""Contrastive losses: NT-Xent (both directions, every other view a negative) and InfoNCE (one direction).

Both normalise the rows once and multiply them in one matrix product; nothing of size N×N×H exists. Under autocast the
product runs in float32: a cosine divided by τ = 0.05 in bfloat16 has an error of about 0.1, which the softmax sees.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """Half-precision tensors as float32; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive: the logits would change sign or be infinite."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; published recipes use 0.05")


def check_same_shape(first: Tensor, second: Tensor) -> None:
    """Both tensors must be (N, H) with the same N and H."""
    if first.dim() != 2 or first.shape != second.shape:
        raise ValueError(f"both tensors must be (N, H), got {tuple(first.shape)} and {tuple(second.shape)}")


def check_labels(first: Tensor, labels: Tensor) -> None:
    """There must be one label a row."""
    if labels.shape != first.shape[:1]:
        raise ValueError(f"labels must be (N,) = ({first.shape[0]},), got {tuple(labels.shape)}")


def equal_rows(texts: Tensor) -> Tensor:
    """Which rows are no negatives of each other, since their sentences are the same.

    Args:
        texts: (N, V), a number for each sentence, equal for equal texts: V = 1, or anchor and positive, or these and
            K hard negatives.

    Returns:
        (N, N), true at (i, j) with i ≠ j where an anchor or positive of row i is one of row j; with hard negatives
        (N, N + N·K), the right part true at j·K + k where hard negative k of row j is the anchor or the positive of
        row i.
    """
    own = texts[:, :2]  # (N, 1 or 2)
    same = (own[:, None, :, None] == own[None, :, None, :]).flatten(2).any(dim=2)  # (N, N)
    same.fill_diagonal_(False)
    if texts.shape[1] < 3:
        return same
    negatives = texts[:, 2:].flatten()  # (N·K,)
    against_negatives = (own[:, :, None] == negatives).any(dim=1)  # (N, N·K)
    return torch.cat([same, against_negatives], dim=1)


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.05, texts: Tensor | None = None) -> Tensor:
    """NT-Xent over two views of N sentences, the loss of CACSE's towers and cascade.

    With the 2N rows z = [first; second] and p(i) the other view of row i:
    ``L = -1/2N Σ_i log( exp(cos(z_i, z_p(i))/τ) / Σ_{k≠i} exp(cos(z_i, z_k)/τ) )``.

    Args:
        first: (N, H), first views.
        second: (N, H), second views, row i of the same sentence as row i of ``first``.
        temperature: τ > 0.
        texts: (N, V), numbers of the sentences: rows with an equal one are no negatives of each other (`equal_rows`).

    Returns:
        Scalar loss, float32 for half-precision input. With N = 1 there is no negative and it is 0.

    Raises:
        ValueError: shapes differ or are not (N, H); the temperature is not positive.

    Source: Chen et al. 2020 (arXiv 2002.05709), equation 1; the CACSE release's ``InfoNceLoss``.

    >>> x = torch.eye(2)
    >>> round(nt_xent(x, x, 1.0).item(), 4)     # log(1 + 2·exp(0-1))
    0.5514
    """
    return _partner_entropies(first, second, temperature, texts).mean()


def labelled_nt_xent(
    first: Tensor, second: Tensor, labels: Tensor, temperature: float = 0.05, texts: Tensor | None = None
) -> Tensor:
    """NT-Xent over N labelled pairs, AnglE's in-batch loss: only positive pairs draw together, all rows are negatives.

    With the 2N rows z = [first; second] and y of row i the label of its pair:
    ``L = -1/2N Σ_i y_i log( exp(cos(z_i, z_p(i))/τ) / Σ_{k≠i} exp(cos(z_i, z_k)/τ) )``.

    Args:
        first: (N, H), first sentences.
        second: (N, H), second sentences.
        labels: (N,), 1 for positive pairs and 0 for others. Graded labels have no meaning here.
        temperature: τ > 0; AnglE's scale of 20 is τ = 0.05.
        texts: as for `nt_xent`.

    Returns:
        Scalar loss, float32 for half-precision input.

    Raises:
        ValueError: shapes do not fit, a label is neither 0 nor 1, or the temperature is not positive.

    Source: Li and Li 2023 (arXiv 2309.12871), and the AnglE release's ``in_batch_negative_loss``, which cuts graded
    labels to whole numbers: nothing of a score in [0, 1) is left.
    """
    check_labels(first, labels)
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError(
            "the in-batch part needs labels 0 and 1, these are graded; set positive_threshold (pairs from that label "
            "on are positive), or ibn_weight 0"
        )
    entropies = _partner_entropies(first, second, temperature, texts)  # (2N,)
    return (labels.to(entropies.dtype).repeat(2) * entropies).mean()


def _partner_entropies(first: Tensor, second: Tensor, temperature: float, texts: Tensor | None) -> Tensor:
    """(2N,), the cross-entropy of each of the 2N rows' other view among all rows but itself."""
    check_same_shape(first, second)
    check_temperature(temperature)
    with torch.autocast(first.device.type, enabled=False):
        views = F.normalize(full_precision(torch.cat([first, second])), dim=-1)  # (2N, H)
        logits = views @ views.T / temperature  # (2N, 2N)
        count = first.shape[0]
        itself = torch.eye(2 * count, dtype=torch.bool, device=first.device)
        left_out = itself if texts is None else itself | equal_rows(texts).repeat(2, 2)
        logits = logits.masked_fill(left_out, float("-inf"))
        partner = torch.arange(2 * count, device=first.device).roll(count)  # row i ↔ row i ± N
        return F.cross_entropy(logits, partner, reduction="none")


def info_nce(
    anchors: Tensor,
    positives: Tensor,
    hard_negatives: Tensor | None = None,
    temperature: float = 0.05,
    hard_negative_weight: float = 0.0,
    texts: Tensor | None = None,
    within_views: bool = False,
    left_out: Tensor | None = None,
) -> Tensor:
    """InfoNCE with in-batch negatives and, where given, hard negatives: the loss of SimCSE.

    ``s_ij = cos(a_i, p_j)/τ``, ``t_ijk = cos(a_i, n_jk)/τ + weight·[i = j]``, ``L = CE([s | t], i)``, mean over rows:
    of K hard negatives a row each anchor has all N·K of the batch as negatives.

    Args:
        anchors: (N, H).
        positives: (N, H).
        hard_negatives: (N, H) or (N, K, H), or None.
        temperature: τ > 0.
        hard_negative_weight: a logit added to each anchor's own hard negatives, after the division by τ.
        texts: (N, V), numbers of the sentences, V = 2 + K with hard negatives: sentences that are a row's own anchor
            or positive are no negatives of it (`equal_rows`).
        within_views: the anchors and positives of the other rows are compared with their own kind, too:
            ``cos(a_i, a_j)/τ`` and ``cos(p_i, p_j)/τ``, i ≠ j, are logits of row i as well (GIST).
        left_out: (N, M), candidates of each row that are no negatives of it, in the order of the logits: N positives,
            N·K hard negatives, and within the views N anchors, N positives (`false_negatives`).

    Returns:
        Scalar loss, float32 for half-precision input.

    Raises:
        ValueError: shapes differ or are not these; the temperature is not positive.

    Source: Gao et al. 2021 (arXiv 2104.08821), equations 1 and 5, and the SimCSE release.

    >>> x = torch.eye(2)
    >>> round(info_nce(x, x, temperature=1.0).item(), 4)     # log(1 + exp(0-1))
    0.3133
    """
    check_same_shape(anchors, positives)
    check_temperature(temperature)
    with torch.autocast(anchors.device.type, enabled=False):
        anchors = F.normalize(full_precision(anchors), dim=-1)
        positives = F.normalize(full_precision(positives), dim=-1)
        logits = anchors @ positives.T / temperature  # (N, N)
        if hard_negatives is not None:
            if hard_negatives.dim() == 2:
                hard_negatives = hard_negatives[:, None]  # (N, K, H)
            check_same_shape(anchors, hard_negatives[:, 0])
            negatives = F.normalize(full_precision(hard_negatives.flatten(0, 1)), dim=-1)  # (N·K, H)
            against_negatives = anchors @ negatives.T / temperature  # (N, N·K)
            own = torch.eye(anchors.shape[0], dtype=logits.dtype, device=logits.device)
            own = own.repeat_interleave(hard_negatives.shape[1], dim=1)
            logits = torch.cat([logits, against_negatives + hard_negative_weight * own], dim=1)  # (N, N + N·K)
        equal = equal_rows(texts)[:, : logits.shape[1]] if texts is not None else None
        if within_views:
            itself = torch.eye(anchors.shape[0], dtype=torch.bool, device=anchors.device)
            same_kind = [
                (views @ views.T / temperature).masked_fill(itself, -torch.inf) for views in (anchors, positives)
            ]
            logits = torch.cat([logits, *same_kind], dim=1)  # (N, 3N + N·K)
            equal = torch.cat([equal, *[equal[:, : len(itself)]] * 2], dim=1) if equal is not None else None
        for mask in (equal, left_out):
            logits = logits.masked_fill(mask, -torch.inf) if mask is not None else logits
        return F.cross_entropy(logits, torch.arange(anchors.shape[0], device=anchors.device))


MARGIN_TYPES = ("absolute", "relative")


def false_negatives(
    guide: Tensor, margin: float = 0.0, margin_type: str = "absolute", within_views: bool = False
) -> Tensor:
    """Candidates of each row that a guide finds as close as the row's own positive: no negatives (GIST).

    Candidate c of row i is left out where ``cos_g(a_i, c) > cos_g(a_i, p_i) - margin``; with a relative margin where
    ``cos_g(a_i, c) > (1 - margin)·cos_g(a_i, p_i)``. Within the views the same bound holds of ``cos_g(a_i, a_j)`` and
    ``cos_g(p_i, p_j)``. A row's own positive is never left out.

    Args:
        guide: (N, 2 + K, H), the guide's vectors of anchors, positives and K hard negatives.
        margin: how far under its positive a candidate must lie to be a negative; below 0 it may lie above it.
        margin_type: one of `MARGIN_TYPES`.
        within_views: of the logits of `info_nce` with ``within_views``.

    Returns:
        (N, N + N·K), or (N, 3N + N·K) within the views: `info_nce`'s ``left_out``.

    Raises:
        ValueError: an unknown margin type, or vectors of another shape.

    Source: Solatorio 2024 (arXiv 2402.16829); the margins are those of sentence-transformers.
    """
    if margin_type not in MARGIN_TYPES:
        raise ValueError(f"the margin's type {margin_type!r} is unknown; choose one of {', '.join(MARGIN_TYPES)}")
    if guide.dim() != 3 or guide.shape[1] < 2:
        raise ValueError(f"the guide's vectors must be (N, 2 + K, H), got {tuple(guide.shape)}")
    with torch.autocast(guide.device.type, enabled=False):
        vectors = F.normalize(full_precision(guide), dim=-1)
        anchors, positives, negatives = vectors[:, 0], vectors[:, 1], vectors[:, 2:].flatten(0, 1)
        similarities = [anchors @ positives.T, anchors @ negatives.T]  # (N, N), (N, N·K)
        own = similarities[0].diagonal()[:, None]  # (N, 1)
        bound = own - margin if margin_type == "absolute" else own * (1 - margin)
        if within_views:
            similarities += [anchors @ anchors.T, positives @ positives.T]
        found = torch.cat(similarities, dim=1) > bound
    found[:, : len(guide)].fill_diagonal_(False)
    return found
