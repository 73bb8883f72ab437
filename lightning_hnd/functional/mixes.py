"""Weights of images under which groups differ in nothing but what they are groups of."""

from __future__ import annotations

import torch
from torch import Tensor


def mix_weights(group: Tensor, stratum: Tensor, num_groups: int, *, min_images: int = 20) -> Tensor:
    """Weights under which all groups have one mix of another label, for :func:`group_affinity`.

    Where the old are mostly men and the young mostly women, a unit that follows gender seems to follow age. Weighted,
    every age has men and women in the same shares: those of all images, over the strata that every group has images
    of (direct standardisation). Images of other strata get no weight. The weights of a group add up to the number of
    its images that have any.

    Few images with large weights measure badly. A group counts with ``(sum w)^2 / sum w^2`` effective images (Kish,
    Survey Sampling, 1965), and each must have ``min_images``.

    Args:
        group: ``[N]`` int64, ``-1`` where an image has no label of the concept.
        stratum: ``[N]`` int64, the other label, or a code of several; ``-1`` where unknown.
        num_groups: ``G``. Groups without any image are left out.
        min_images: Effective images that each group must have.

    Returns:
        ``[N]`` float64.

    Raises:
        ValueError: If shapes disagree, or a group has fewer effective images than that.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional import mix_weights
        >>> group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        >>> gender = torch.tensor([0, 1, 1, 1, 0, 0, 0, 1])            # a quarter of one group, three of the other
        >>> weight = mix_weights(group, gender, 2, min_images=2)        # half of each group
        >>> [round(w, 3) for w in weight.tolist()]
        [2.0, 0.667, 0.667, 0.667, 0.667, 0.667, 0.667, 2.0]
    """
    if group.shape != stratum.shape or group.ndim != 1:
        raise ValueError(f"group and stratum must both be [N], got {tuple(group.shape)} and {tuple(stratum.shape)}")
    known = (group >= 0) & (stratum >= 0)
    width = int(stratum[known].max()) + 1 if bool(known.any()) else 1
    cell = torch.where(known, group * width + stratum, 0)
    count = torch.bincount(cell[known], minlength=num_groups * width).double().view(num_groups, width)
    there = torch.bincount(group[group >= 0], minlength=num_groups) > 0
    shared = (count[there] > 0).all(0)
    mix = torch.where(shared, count.sum(0), 0.0)
    size = torch.where(shared, count, 0.0).sum(1, keepdim=True)
    ratio = mix / mix.sum().clamp(min=1) * size / count.clamp(min=1)
    weight = torch.where(known, ratio.flatten()[cell], 0.0)
    total = weight.new_zeros(num_groups).index_add(0, group[known], weight[known])
    squared = weight.new_zeros(num_groups).index_add(0, group[known], weight[known] ** 2)
    effective = torch.where(there, total**2 / torch.where(squared > 0, squared, 1.0), torch.inf)
    if bool((effective < min_images).any()):
        raise ValueError(
            f"group {int(effective.argmin())} has {float(effective.min()):.1f} effective images in the strata that all "
            f"groups have images of, fewer than min_images={min_images}; weigh by fewer labels, or use a dictionary "
            "with more images of it"
        )
    return weight
