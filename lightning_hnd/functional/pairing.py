"""When a probability is high enough to pair a unit with a concept or a group: the ends of Stages I and III."""

from __future__ import annotations

import torch
from torch import Tensor

CONCEPT_MARGIN = 1.5
"""A concept's probability must exceed this many times chance within its region (Stage III of the method)."""


def pair_concepts(probability: Tensor, concept_region: Tensor, images_per_concept: Tensor) -> Tensor:
    """The concepts that each unit is paired with.

    Those with ``P(c | u) > 1.5 / |R|``, ``|R|`` the number of concepts of the region that there are images
    of; in a region of one concept, that one.

    Args:
        probability: ``[U, C]``, as :func:`~lightning_hnd.functional.concept_affinity` gives it.
        concept_region: ``[C]`` int64.
        images_per_concept: ``[C]`` int64.

    Returns:
        ``[U, C]`` bool.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional import pair_concepts
        >>> region, images = torch.tensor([0, 0, 0, 1]), torch.tensor([9, 9, 0, 9])  # two shown, and one
        >>> pair_concepts(torch.tensor([[0.8, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]), region, images)
        tensor([[ True, False, False, False],
                [False, False, False,  True]])
    """
    shown = ((concept_region.unsqueeze(1) == concept_region) & (images_per_concept > 0)).sum(1)  # of a concept's region
    return probability > torch.where(shown == 1, 0.0, CONCEPT_MARGIN / shown.clamp(min=1))


def pair_groups(probability: Tensor, images_per_group: Tensor, margin: float) -> Tensor:
    """The groups of one global concept that each unit is paired with: ``P(g | u) > margin / n`` (Stage I.4).

    Args:
        probability: ``[U, G]``, as :func:`~lightning_hnd.functional.group_affinity` gives it.
        images_per_group: ``[G]`` int64; ``n`` groups have images, and with fewer than two nothing is paired.
        margin: Times chance.

    Returns:
        ``[U, G]`` bool.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional import pair_groups
        >>> pair_groups(torch.tensor([[0.56, 0.44], [0.54, 0.46]]), torch.tensor([9, 9]), margin=1.1)
        tensor([[ True, False],
                [False, False]])
    """
    shown = int((images_per_group > 0).sum())
    return probability > margin / shown if shown >= 2 else torch.zeros_like(probability, dtype=torch.bool)
