"""Tests of groups: what units do on the faces of a group, with all that else is known of the faces held fixed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.functional.significance import RankTest, stratified_rank_test

_AGES = (20.0, 40.0, 60.0)
_BINS = 4  # for labels that are numbers, and of which no groups are known


def group_tests(faces: FaceDictionary, images: Tensor) -> list[tuple[slice, Callable[[Tensor], RankTest]]]:
    """Of each global concept the columns of its groups, and a test of responses ``[n, U]`` on these images.

    Args:
        faces: The dictionary.
        images: ``[n]`` int64, positions of images that have a group.
    """
    offsets = faces.ontology.group_offsets
    return [
        (slice(first, last), partial(_test, faces=faces, images=images, k=k))
        for k, (first, last) in enumerate(pairwise(offsets))
    ]


def _test(response: Tensor, *, faces: FaceDictionary, images: Tensor, k: int) -> RankTest:
    concept, group = faces.ontology.global_[k], faces.group[images, k]
    rows = group >= 0
    stratum = strata(faces, concept.name, images[rows])
    return stratified_rank_test(response[rows], group[rows], len(concept.groups), stratum)


def strata(faces: FaceDictionary, concept: str, images: Tensor) -> Tensor:
    """Numbers images so that equal ones are alike in all labels of ``labels.csv`` that name another global concept.

    Args:
        faces: The dictionary.
        concept: The global concept that is asked about, which is not looked at.
        images: ``[n]`` int64, positions in the dictionary.

    Returns:
        ``[n]`` int64. Ethnicity and skin tone are not held fixed for each other: they hardly differ.
    """
    akin = {"ethnicity": {"skin_tone"}, "skin_tone": {"ethnicity"}}.get(concept, set()) | {concept}
    stratum = torch.zeros(len(images), dtype=torch.int64)
    for other in faces.ontology.global_:
        if other.name not in akin and len(images):
            values = [faces.labels[i].get(other.name, "") for i in images.tolist()]
            stratum = stratum * (1 + len(values)) + torch.tensor(_as_numbers(other.name, values))
    numbered: Tensor = stratum.unique(return_inverse=True)[1]
    return numbered


def _as_numbers(name: str, values: list[str]) -> list[int]:
    """Equal labels get equal numbers; of numbers those between the same bounds do."""
    try:
        numbers = torch.tensor([float(value) if value else torch.nan for value in values])
    except ValueError:
        known = {value: i for i, value in enumerate(dict.fromkeys(values))}
        return [known[value] for value in values]
    bounds = torch.tensor(_AGES) if name == "age" else numbers.nanquantile(torch.arange(1, _BINS) / _BINS)
    binned: list[int] = torch.where(numbers.isnan(), -1, torch.bucketize(numbers, bounds, right=True)).add(1).tolist()
    return binned
