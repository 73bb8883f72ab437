"""How sure the size of an effect is: the bootstrap over images (Efron 1979).

Images are drawn with replacement, which gives each a count. An effect is found again with the counts as weights, as if
each image stood there so many times. Everything runs for many units and replicates at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_AT_ONCE = 2**22  # numbers of units, replicates and images together


class RankEffects(NamedTuple):
    """The effects of :class:`~lightning_hnd.functional.significance.RankTest`, ``[R, U]`` each."""

    effect: Tensor
    auc: Tensor


def resampled(images: int, replicates: int, seed: int) -> Tensor:
    """How often each image is drawn in each replicate: ``[R, n]`` float64, rows that add up to ``n``.

    Example:
        >>> from lightning_hnd.functional.bootstrap import resampled
        >>> resampled(5, replicates=2, seed=0).sum(1)
        tensor([5., 5.], dtype=torch.float64)
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(images, (replicates, images), generator=generator)
    counts = torch.zeros(replicates, images, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def percentile_interval(replicates: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Its ends: equal shares of the replicates ``[R, ...]`` lie beyond them; NaN (undecided) does not count."""
    tail = (1 - level) / 2
    return replicates.nanquantile(tail, dim=0), replicates.nanquantile(1 - tail, dim=0)


def rank_effects(response: Tensor, label: Tensor, others: Tensor, counts: Tensor) -> RankEffects:
    """The effects of :func:`~lightning_hnd.functional.significance.partial_rank_test` in each replicate.

    Args:
        response: ``[n, U]``.
        label: ``[n]`` bool.
        others: ``[n, L]`` bool, the labels that are held fixed.
        counts: ``[R, n]``, as :func:`resampled` gives them.

    Returns:
        ``[R, U]``; NaN where no image with the label was drawn, none without it, or the others explain it.
    """
    step = max(1, _AT_ONCE // max(1, response.numel()))
    parts = [_rank_effects(response, label.double(), others.double(), some) for some in counts.split(step)]
    return RankEffects(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _rank_effects(response: Tensor, label: Tensor, others: Tensor, counts: Tensor) -> RankEffects:
    n = counts.sum(1, keepdim=True)
    rank = _ranks(response, counts) - (n.unsqueeze(2) + 1) / 2  # [R, U, n], of mean 0
    fixed = torch.cat([torch.ones_like(label)[:, None], others], dim=1)
    weighted = rank * counts.unsqueeze(1)
    gram = torch.einsum("rn,nl,nm->rlm", counts, fixed, fixed)
    inverse = torch.linalg.pinv(gram, hermitian=True, rtol=1e-9)  # a label may be missing from a replicate
    of_rank, of_label = weighted @ fixed, (counts * label) @ fixed  # [R, U, L], [R, L]
    explained = torch.einsum("rul,rlm->rum", of_rank, inverse)
    together = weighted @ label - torch.einsum("rum,rm->ru", explained, of_label)
    inside = counts @ label
    of_ranks = (weighted * rank).sum(2) - (explained * of_rank).sum(2)
    of_labels = inside - torch.einsum("rl,rlm,rm->r", of_label, inverse, of_label)
    told = (of_labels > 1e-6 * inside)[:, None]
    tied = of_ranks <= 1e-9 * n.pow(3)
    effect = torch.where(tied, 0.0, together / (of_ranks.clamp(min=1e-30) * of_labels.clamp(min=1e-30)[:, None]).sqrt())
    outside = n - inside[:, None]
    auc = (weighted @ label) / (inside[:, None] * outside) + 0.5
    return RankEffects(torch.where(told, effect, torch.nan), auc)


def _ranks(response: Tensor, counts: Tensor) -> Tensor:
    """Mid-ranks of ``response [n, U]`` where each image stands as often as counted: ``[R, U, n]``."""
    ordered, order = response.t().contiguous().sort(dim=1)
    first = torch.searchsorted(ordered, ordered)  # of those that are equal
    last = torch.searchsorted(ordered, ordered, right=True)
    upto = torch.nn.functional.pad(counts[:, order].cumsum(2), (1, 0))  # [R, U, 1 + n]
    rank = (_at(upto, first) + _at(upto, last) + 1) / 2
    return _at(rank, order.argsort(dim=1))


def _at(values: Tensor, place: Tensor) -> Tensor:
    return values.gather(2, place.expand(len(values), -1, -1))


def placed_effects(a: Tensor, coefficient: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """The effect of :func:`~lightning_hnd.functional.significance.exchanged_masks_test` in each replicate.

    Args:
        a: ``[n, U, K]``, maps projected on the modes of masks.
        coefficient: ``[n, K]``, of the face's own mask.
        weight: ``[K]``, of the modes.
        counts: ``[R, n]``.

    Returns:
        ``[R, U]``.
    """
    a, own, n = a.double(), coefficient.double().unsqueeze(1), counts.sum(1)[:, None, None]
    sums = [torch.einsum("rn,nuk->ruk", counts, part.expand_as(a)) for part in (a, a.square(), a * own)]
    mean, square = (torch.einsum("rn,nuk->ruk", counts, part) / n for part in (own, own.square()))
    spread = ((sums[1] / n - (sums[0] / n).square()) * (square - mean.square())).clamp(min=0).sqrt()
    covariance = sums[2] / n - sums[0] / n * mean
    correlation = torch.where(spread > 1e-9, covariance / spread.clamp(min=1e-12), 0.0)
    return (correlation * weight).sum(2) / weight.sum()


def means(values: Tensor, counts: Tensor) -> Tensor:
    """The mean of ``values [n, U]`` in each replicate: ``[R, U]``."""
    return counts @ values.double() / counts.sum(1, keepdim=True)
