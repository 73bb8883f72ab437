"""Ranks of activations."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_hnd.functional.host import argsort, exceeds, positions


def mid_ranks(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Ranks along the first dimension, ascending from 1; equal values share the mean of their ranks.

    Args:
        values: ``[N, U]``.
        weight: ``[N]`` positive: a value of weight 2 has the mean rank of two equal ones. None: all 1.

    Returns:
        ``[N, U]`` float64.
    """
    rows = values.t()
    order = argsort(rows)
    ranks = _ordered_ranks(rows, order, weight)
    return torch.empty_like(ranks).scatter_(1, order, ranks).t()


def ranks_and_step(rows: Tensor, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:func:`mid_ranks` along rows, and the largest step between ranks that follow each other: 1 without ties.

    Args:
        rows: ``[R, n]``.
        order: Their :func:`~lightning_hnd.functional.host.argsort`, where that is known.

    Returns:
        Ranks ``[R, n]`` and steps ``[R]``, float64.
    """
    order = argsort(rows) if order is None else order
    ranks = _ordered_ranks(rows, order, None)
    return torch.empty_like(ranks).scatter_(1, order, ranks), ranks.diff(dim=1).amax(1)


def _ordered_ranks(rows: Tensor, order: Tensor, weight: Tensor | None) -> Tensor:
    """The ranks of what comes first, second, ... in each row, ``[R, n]``."""
    ordered = rows.gather(1, order)
    count, n = ordered.shape
    begins = torch.ones_like(ordered, dtype=torch.bool)  # a run of equal values
    begins[:, 1:] = exceeds(ordered[:, 1:], ordered[:, :-1])
    if weight is None:
        ranks = torch.arange(1, n + 1, dtype=torch.float64, device=rows.device).repeat(count, 1)
        tied = positions(~begins)  # all rows in one, as below
        if len(tied):  # with the one before, or several
            opens = torch.ones_like(tied, dtype=torch.bool)
            opens[1:] = tied.diff() > 1
            runs = positions(opens)
            more = runs.diff(append=runs.new_tensor([len(tied)]))
            head, flat = tied[runs] - 1, ranks.view(-1)
            flat[head] += more.double() / 2
            flat[tied] = flat[head].repeat_interleave(more, output_size=len(tied))
        return ranks
    first = positions(begins)  # of each run
    end = torch.cat([first[1:], first.new_tensor([count * n])])
    upto = torch.nn.functional.pad(weight.double()[order].cumsum(1), (1, 0)).flatten()
    row = first // n  # whose n + 1 sums these are
    shared = (upto[first + row] + upto[end + row] + 1) / 2
    return shared.repeat_interleave(end - first, output_size=count * n).view(count, n)


def within_the_few(rows: Tensor, order: Tensor, few: int) -> Tensor:
    """Values as far as the ``few``-th from either end, so that fewer images than that decide nothing: ``[R, n]``.

    Args:
        rows: ``[R, n]``.
        order: Their :func:`~lightning_hnd.functional.host.argsort`.
        few: At most half of ``n``.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional.ranks import within_the_few
        >>> rows = torch.tensor([[9.0, 1.0, 900.0, 0.0, 3.0, 3.0], [900.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
        >>> within_the_few(rows, rows.argsort(), 2)
        tensor([[9., 1., 9., 1., 3., 3.],
                [0., 0., 0., 0., 0., 0.]])
    """
    low, high = (rows.gather(1, order[:, at : at + 1]) for at in (few - 1, order.shape[1] - few))
    return rows.clamp(low, high)


def rank_share(values: Tensor) -> Tensor:
    """Mid-ranks along the first dimension, divided by their number and centred: in (-1/2, 1/2) ``[n, U]`` float64."""
    if not len(values):
        return values.double()
    return (mid_ranks(values) - (len(values) + 1) / 2) / len(values)


def mid_ranks_of(share: Tensor) -> Tensor:
    """The mid-ranks of which :func:`rank_share` made shares ``[n, U]``."""
    return (2 * len(share) * share + len(share) + 1).round() / 2


def weight_below(ranks: Tensor, weight: Tensor, *, tied: bool = True) -> Tensor:
    """The weight of all images that rank lower, that of equals counted half.

    Args:
        ranks: ``[U, n]``, :func:`ranks_and_step` of the units' responses.
        weight: ``[n, L]``, weights of the images.
        tied: Whether any responses may be equal. Without ties ranks are whole numbers, and half the table does.

    Returns:
        ``[L, U, n]``.
    """
    parts = 2 if tied else 1
    size = (weight.shape[1], *ranks.shape)
    at = (parts * ranks).long().expand(size)
    of_rank = weight.new_zeros(*size[:2], parts * ranks.shape[1] + 1)
    of_rank.scatter_add_(2, at, weight.t().unsqueeze(1).expand(size))
    return of_rank.cumsum(2).sub_(of_rank, alpha=0.5).gather(2, at)
