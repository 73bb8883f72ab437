"""How strongly a unit goes with a concept or a group: rank-weighted responses, Stages I and III of the method."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lightning_hnd.functional.ranks import mid_ranks


def concept_affinity(
    peak: Tensor,
    low: Tensor,
    high: Tensor,
    carries: Tensor,
    iou: Tensor,
    concept_region: Tensor,
    *,
    iou_threshold: float = 0.04,
) -> tuple[Tensor, Tensor]:
    """The facial region of each unit and the probability of each concept of that region.

    A unit is local if its best IoU exceeds ``iou_threshold``; its region is the region of that concept.
    Within the region ``P(c | u)`` is proportional to ``response(u, c) * IoU(u, c)``, the response being
    that of :func:`concept_response` (Stages II.4 and III of the method).

    Args:
        peak: ``[N, U]``, the largest activation of each unit on each local image.
        low: ``[U]``, the smallest activation of each unit over all local images and positions.
        high: ``[U]``, the largest.
        carries: ``[N, C]`` bool, which image carries which concept.
        iou: ``[U, C]``.
        concept_region: ``[C]`` int64, the region of each concept.
        iou_threshold: The bar that the best IoU must exceed.

    Returns:
        ``region [U]`` int64, ``-1`` where the unit is not local, and ``probability [U, C]`` float64, which
        sums to one over the concepts of a local unit's region and is 0 elsewhere.

    Raises:
        ValueError: If shapes disagree.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional import concept_affinity
        >>> peak = torch.tensor([[1.0], [3.0]])                       # two images, one unit
        >>> carries = torch.tensor([[True, False], [False, True]])
        >>> region, probability = concept_affinity(
        ...     peak, torch.tensor([0.0]), torch.tensor([4.0]), carries,
        ...     iou=torch.tensor([[0.05, 0.10]]), concept_region=torch.tensor([0, 0]),
        ... )
        >>> region.tolist()                                           # scores 1/2*1/4*.05 and 2/2*3/4*.10
        [0]
        >>> [round(p, 4) for p in probability[0].tolist()]
        [0.0769, 0.9231]
    """
    response = concept_response(peak, low, high, carries, concept_region)
    return combine_affinity(response, iou, concept_region, iou_threshold=iou_threshold)


def combine_affinity(
    response: Tensor, iou: Tensor, concept_region: Tensor, *, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """The part of :func:`concept_affinity` that needs no images: responses and IoU to region and probability."""
    if response.shape != iou.shape:
        raise ValueError(f"iou must be {tuple(response.shape)}, got {tuple(iou.shape)}")
    # before them a concept of no region, for there may be none
    best, concept = functional.pad(iou, (1, 0), value=-torch.inf).max(dim=1)
    region = torch.where(best > iou_threshold, functional.pad(concept_region.to(iou.device), (1, 0))[concept], -1)
    return region, affinity_within(region, response, iou, concept_region)


def affinity_within(region: Tensor, response: Tensor, iou: Tensor, concept_region: Tensor) -> Tensor:
    """The probability of each concept of a unit's region ``[U]``, whoever decided on that: ``[U, C]``."""
    in_region = concept_region.to(iou.device) == region.unsqueeze(1)
    return _normalise(torch.where(in_region, response * iou, 0.0))


def concept_response(peak: Tensor, low: Tensor, high: Tensor, carries: Tensor, concept_region: Tensor) -> Tensor:
    """Mean rank-weighted response of each unit to the images that carry each concept.

    For a concept of region R, over the images that carry any concept of R: ``r`` is the mid-rank of the
    unit's peak divided by the number of those images, ``s`` its peak normalised by ``low`` and ``high``,
    and the response the mean of ``r * s`` over the images that carry the concept (Stage III of the method).
    It depends on no threshold.

    Args:
        peak: ``[N, U]``, the largest activation of each unit on each local image.
        low: ``[U]``, the smallest activation of each unit over all local images and positions.
        high: ``[U]``, the largest.
        carries: ``[N, C]`` bool.
        concept_region: ``[C]`` int64.

    Returns:
        ``[U, C]`` float64; 0 for dead units and for concepts that no image carries.

    Raises:
        ValueError: If shapes disagree.
    """
    if carries.shape[0] != peak.shape[0] or concept_region.shape != carries.shape[1:]:
        raise ValueError(
            f"peak {tuple(peak.shape)}, carries {tuple(carries.shape)} and concept_region "
            f"{tuple(concept_region.shape)} must be [N, U], [N, C] and [C]"
        )
    concept_region = concept_region.to(peak.device)
    response = torch.zeros(peak.shape[1], carries.shape[1], dtype=torch.float64, device=peak.device)
    for region in concept_region.unique().tolist():
        concepts = concept_region == region
        of_region = carries[:, concepts]
        images = of_region.any(dim=1).nonzero().flatten()
        response[:, concepts] = _mean_response(peak.index_select(0, images), low, high, of_region[images])
    return response


def group_affinity(
    peak: Tensor, low: Tensor, high: Tensor, group: Tensor, num_groups: int, weight: Tensor | None = None
) -> Tensor:
    """Probability of each group of one global concept for each unit: Stage I of the method.

    ``P(g | u)`` is proportional to the mean over the images of ``g`` of ``r * s``: ``r`` the mid-rank of the
    unit's peak among the images of the concept divided by their number, ``s`` the peak normalised by
    ``low`` and ``high``.

    Args:
        peak: ``[N, U]``, the largest activation of each unit on each image.
        low: ``[U]``, the smallest activation of each unit over all positions of the concept's images.
        high: ``[U]``, the largest.
        group: ``[N]`` int64; images with ``-1`` have no label of this concept and do not count.
        num_groups: ``G``.
        weight: ``[N]``: an image of weight 2 counts as two, one of weight 0 not at all. Those of
            :func:`~lightning_hnd.functional.mix_weights` give all groups the same mix of another label. None: all 1.

    Returns:
        ``[U, G]`` float64, 0 for a unit that is dead on these images.

    Raises:
        ValueError: If shapes disagree, a group is out of range or a weight is negative.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional import group_affinity
        >>> peak = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> group_affinity(peak, torch.tensor([0.0]), torch.tensor([4.0]), torch.tensor([0, 0, 1, 1]), 2)
        tensor([[0.1667, 0.8333]], dtype=torch.float64)
    """
    if group.shape != peak.shape[:1]:
        raise ValueError(f"group must be [{peak.shape[0]}], one for each image, got {tuple(group.shape)}")
    if group.numel() and int(group.max()) >= num_groups:
        raise ValueError(f"group must lie in -1..{num_groups - 1}, got {int(group.max())}")
    labelled = group >= 0
    if weight is not None:
        if weight.shape != group.shape or bool((weight < 0).any()):
            raise ValueError(f"weight must be [{len(group)}] and not negative, got {tuple(weight.shape)}")
        labelled &= weight > 0
        weight = weight[labelled].double()
    member = group[labelled].unsqueeze(1) == torch.arange(num_groups, device=group.device)
    return _normalise(_mean_response(peak[labelled], low, high, member, weight))


def _mean_response(peak: Tensor, low: Tensor, high: Tensor, member: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of rank share times normalised peak over the members of each class: ``[U, classes]``."""
    share = member.double() if weight is None else member * weight.unsqueeze(1)
    if peak.shape[0] == 0:
        return share.new_zeros(peak.shape[1], member.shape[1])
    ranks = mid_ranks(peak, weight)
    peak, low, high = peak.double(), low.double(), high.double()  # a difference of float32 loses digits
    span = high - low
    strength = (peak - low) / torch.where(span > 0, span, 1.0)
    response = ranks / (peak.shape[0] if weight is None else weight.sum()) * strength
    mean = response.t() @ share / torch.where(share.sum(0) > 0, share.sum(0), 1.0)
    return torch.where(span > 0, 1.0, 0.0).unsqueeze(1) * mean


def _normalise(score: Tensor) -> Tensor:
    total = score.sum(dim=1, keepdim=True)
    return torch.where(total > 0, score / torch.where(total > 0, total, 1.0), 0.0)
