"""Groups of a global concept that differ in it alone, as far as the pictures allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Matched:
    """Which images stand for the groups of one concept.

    Attributes:
        index: ``[n]`` int64, the images.
        group: ``[n]`` int64, the group of each.
        on: The labels in which all groups have the same mix.
        not_on: The labels in which they may differ: matching on them too would leave too few images.
    """

    index: Codes
    group: Codes
    on: tuple[str, ...]
    not_on: tuple[str, ...]


def match_groups(
    group: Codes, labels: Mapping[str, Codes], *, per_group: int, order: Codes, always: Sequence[str] = ()
) -> Matched:
    """Chooses the same number of images for every group, with the same mix of all other labels in each.

    In every stratum (images that agree in all other labels) each group gives as many images as any other; strata are
    filled evenly. If that leaves fewer than a quarter of ``per_group`` images, the most labels are matched on that
    leave so many, and among equally many those that leave most.

    Args:
        group: ``[N]``, the group of each image, ``-1`` where it has none.
        labels: Codes ``[N]`` of the other labels, ``-1`` where unknown, which counts as a value of its own.
        per_group: Images of each group at most.
        order: ``[N]``, a permutation: the order in which images are preferred.
        always: Labels that are never given up.

    Returns:
        The choice; groups without images are left out, and without two groups all.

    Example:
        >>> import numpy as np
        >>> group = np.array([0, 0, 0, 1, 1, 1])
        >>> women = np.array([0, 1, 1, 0, 0, 1])
        >>> matched = match_groups(group, {"women": women}, per_group=3, order=np.arange(6))
        >>> matched.index.tolist()                     # one man and one woman of each group
        [0, 1, 3, 5]
    """
    groups, member = np.unique(group[group >= 0], return_inverse=True)
    candidates = np.flatnonzero(group >= 0)
    if len(groups) < 2:
        return Matched(np.empty(0, np.int64), np.empty(0, np.int64), (), tuple(labels))
    free = [name for name in labels if name not in always]
    fewest = -(-per_group // 4)
    best: tuple[int, tuple[str, ...], Codes, Codes] | None = None
    for size in range(len(free), -1, -1):
        for kept in combinations(free, size):
            names = (*kept, *(name for name in always if name in labels))
            stratum = _strata([labels[name][candidates] for name in names], len(candidates))
            quota = _quotas(_count(member, stratum, len(groups)), per_group)
            if best is None or quota.sum() > best[0]:
                best = int(quota.sum()), names, stratum, quota
        if best is not None and best[0] >= fewest:
            break
    assert best is not None
    _, names, stratum, quota = best
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    by_cell = np.lexsort((rank[candidates], stratum, member))
    cell = (member * len(quota) + stratum)[by_cell]
    place = np.arange(len(cell)) - np.searchsorted(cell, cell)  # within its group and stratum
    chosen = np.sort(by_cell[place < np.tile(quota, len(groups))[cell]])
    on = tuple(name for name in names if len(np.unique(labels[name][candidates])) > 1)
    not_on = tuple(name for name in labels if name not in names)
    return Matched(candidates[chosen], groups[member[chosen]], on, not_on)


def _strata(codes: Sequence[Codes], count: int) -> Codes:
    """One code for each combination of labels that occurs."""
    if not codes:
        return np.zeros(count, np.int64)
    stratum: Codes = np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)[1]
    return stratum.reshape(count)


def _count(member: Codes, stratum: Codes, groups: int) -> Codes:
    """``[groups, strata]``, how many images there are of each."""
    width = int(stratum.max()) + 1
    count: Codes = np.bincount(member * width + stratum, minlength=groups * width).reshape(groups, width)
    return count


def _quotas(available: Codes, per_group: int) -> Codes:
    """``[strata]``, images to take of each group: what the scarcest group has, cut to one level that fits."""
    most = available.min(0)
    low, high = 0, int(most.max())
    while low < high:  # the highest level that fits
        level = (low + high + 1) // 2
        low, high = (level, high) if np.minimum(most, level).sum() <= per_group else (low, level - 1)
    quota: Codes = np.minimum(most, low)
    rest = np.flatnonzero(most > low)[: per_group - int(quota.sum())]
    quota[rest] += 1
    return quota
