"""What ``labels.csv`` says of each image, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_hnd.concepts import Ontology
from lightning_hnd.functional.labels import LEAST_IMAGES

UNTOLD = 0
"""The number of a label of which nothing is said."""

_AGES = (20.0, 40.0, 60.0)
_BINS = 4  # for labels that are numbers, and of which no groups are known
_NOTHING = frozenset(("", "nan", "none", "n/a", "na", "unknown", "?"))
_CODES = 10  # different numbers at most that are taken for codes of groups, each its own


def numbered_labels(labels: Sequence[Mapping[str, str]], ontology: Ontology) -> Tensor:
    """Equal labels get equal numbers; so do ages of one group.

    Of any other column of numbers that has more than ten different ones, those of a quarter get equal numbers.

    Args:
        labels: Of each image, by column.
        ontology: Whose global concepts the columns are named after; other columns are not looked at.

    Returns:
        ``[N, K]`` int64; that nothing is known is a label, too: 0.
    """
    columns = []
    for concept in ontology.global_:
        nothing = _NOTHING - {group.lower() for group in concept.groups}  # a group may well be called none
        told = [of.get(concept.name, "").strip() for of in labels]
        columns.append(_numbers(concept.name, ["" if value.lower() in nothing else value for value in told]))
    return torch.stack(columns, dim=1) if columns else torch.zeros(len(labels), 0, dtype=torch.int64)


def other_labels(known: Tensor, ontology: Ontology, concept: str | None = None) -> Tensor:
    """What ``labels.csv`` says of images beside a concept, ``[n, L]`` bool: a column for each value but one.

    Args:
        known: ``[n, K]`` int64, as in :class:`~lightning_hnd.dictionary.annotations.Annotations`.
        ontology: The concepts.
        concept: The global concept that is asked about, which is not looked at. None: a local one is.

    Returns:
        Columns of the labels that name another global concept. Ethnicity and skin tone are not held fixed for each
        other: they hardly differ. Values of fewer than five images have no column, nor has the first of the others.
    """
    akin = {"ethnicity": {"skin_tone"}, "skin_tone": {"ethnicity"}}.get(concept or "", set()) | {concept}
    columns = [torch.zeros(len(known), 0, dtype=torch.bool, device=known.device)]
    for other, numbers in zip(ontology.global_, known.unbind(1), strict=True):
        if other.name not in akin:
            values, counts = numbers.unique(return_counts=True)
            columns.append(numbers[:, None] == values[counts >= LEAST_IMAGES][1:])
    return torch.cat(columns, dim=1)


def held_fixed(known: Tensor) -> Tensor:
    """Which global concepts ``labels.csv`` tells of all of these images ``[n, K]``: ``[K]`` bool.

    Of a few per cent that it does not tell what else is known cannot take a label's place: with the others explained,
    it is those that an answer would rest on.
    """
    return (known != UNTOLD).all(0)


def _numbers(name: str, values: list[str]) -> Tensor:
    try:
        numbers = torch.tensor([float(value) if value else torch.nan for value in values])
    except ValueError:
        known = {value: i for i, value in enumerate(dict.fromkeys(["", *values]))}
        return torch.tensor([known[value] for value in values])
    different = numbers[~numbers.isnan()].unique()
    if name == "age":
        bounds = torch.tensor(_AGES)  # 20 is the younger group's
    else:
        bounds = different if len(different) <= _CODES else numbers.nanquantile(torch.arange(1, _BINS) / _BINS)
    return torch.where(numbers.isnan(), -1, torch.bucketize(numbers, bounds)).add(1)
