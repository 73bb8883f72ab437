"""What rests on the peaks and troughs of units: whether they can be counted, how units respond, and where most."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_hnd.dictionary.annotations import Annotations
from lightning_hnd.dictionary.batch import DictionaryBatch
from lightning_hnd.functional import concept_response, group_affinity


def responses(known: Annotations, peak: Tensor, low: Tensor) -> dict[str, Tensor]:
    """How units respond to what is known of images.

    Args:
        known: Of the images, where the peaks are.
        peak: ``[N, U]``, the largest activation of each unit on each image.
        low: ``[2 + K, U]``, each unit's least one over all images, the local ones and those of each global concept.

    Returns:
        ``high``, ``dead``, ``response`` and ``group_probability`` of :class:`~lightning_hnd.DissectionMetric`.
    """
    ontology, local = known.ontology, known.source >= 0
    high = peak[local].amax(0) if bool(local.any()) else torch.zeros_like(low[0])
    region = torch.tensor(ontology.concept_region, device=peak.device)
    probability = [peak.new_zeros(peak.shape[1], 0, dtype=torch.float64)]
    for concept, group, least in zip(ontology.global_, known.group.unbind(1), low[2:], strict=True):
        shown = group >= 0
        most = peak[shown].amax(0) if bool(shown.any()) else least
        probability.append(group_affinity(peak[shown], least, most, group[shown], len(concept.groups)))
    return {
        "high": high,
        "dead": low[0] == peak.amax(0),
        "response": concept_response(peak[local], low[1], high, known.carried[local], region),
        "group_probability": torch.cat(probability, dim=1),
    }


def exemplars(peak: Tensor, index: Tensor, threshold: Tensor, number: int) -> Tensor:
    """The images on which each unit fires and peaks highest, the earlier first among equals.

    Args:
        peak: ``[N, U]``.
        index: ``[N]`` int64, the position of each image in the dictionary.
        threshold: ``[U]``.
        number: ``E``, how many images at most.

    Returns:
        ``[U, E]`` int64, positions; -1 after the last.
    """
    result = index.new_full((peak.shape[1], number), -1)
    count = min(number, len(index))
    if count == 0:
        return result
    least = peak.topk(count, dim=0).values[-1]
    image, unit = ((peak >= least) & (peak > threshold)).nonzero(as_tuple=True)
    order = index[image].argsort()  # by unit, then falling peak, then image
    order = order[peak[image, unit][order].argsort(descending=True, stable=True)]
    order = order[unit[order].argsort(stable=True)]
    image, unit = image[order], unit[order]
    every = torch.bincount(unit, minlength=peak.shape[1])
    rank = torch.arange(len(unit), device=unit.device) - (every.cumsum(0) - every)[unit]
    first = rank < count
    result[unit[first], rank[first]] = index[image[first]]
    return result


def lowest(trough: Tensor, batch: DictionaryBatch) -> Tensor:
    """Each unit's least activation over all images, the local ones and those of each global concept: ``[2 + K, U]``."""
    sets = torch.cat([torch.ones_like(batch.source)[None], batch.source[None], batch.group.t()]) >= 0
    return torch.where(sets.unsqueeze(2), trough, torch.inf).amin(1)


def require_finite(peak: Tensor, trough: Tensor) -> None:
    """Refuses maps that cannot be counted.

    Args:
        peak: ``[B, U]``, the largest activation of each unit on each image.
        trough: ``[B, U]``, the least one.

    Raises:
        ValueError: If a unit has activations that are NaN or infinite, or lie nearly as far apart.
    """
    # interpolating takes differences, and counting differences of these: they must be finite, too
    bad = (~(4 * (peak - trough)).isfinite()).any(0).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{len(bad)} of {peak.shape[1]} units have activations that are NaN or infinite, or nearly (the first is "
            f"unit {bad[0]}); the model has diverged, or its input is not what it was made for"
        )
