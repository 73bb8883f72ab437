"""What ``labels.csv`` says of each image, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_hnd.concepts import Ontology

_AGES = (20.0, 40.0, 60.0)
_BINS = 4  # for labels that are numbers, and of which no groups are known


def numbered_labels(labels: Sequence[Mapping[str, str]], ontology: Ontology) -> Tensor:
    """Equal labels get equal numbers; of labels that are numbers those between the same bounds do.

    Args:
        labels: Of each image, by column.
        ontology: Whose global concepts the columns are named after; other columns are not looked at.

    Returns:
        ``[N, K]`` int64; that nothing is known is a label, too.
    """
    columns = [_numbers(concept.name, [of.get(concept.name, "") for of in labels]) for concept in ontology.global_]
    return torch.stack(columns, dim=1) if columns else torch.zeros(len(labels), 0, dtype=torch.int64)


def _numbers(name: str, values: list[str]) -> Tensor:
    try:
        numbers = torch.tensor([float(value) if value else torch.nan for value in values])
    except ValueError:
        known = {value: i for i, value in enumerate(dict.fromkeys(values))}
        return torch.tensor([known[value] for value in values])
    bounds = torch.tensor(_AGES) if name == "age" else numbers.nanquantile(torch.arange(1, _BINS) / _BINS)
    return torch.where(numbers.isnan(), -1, torch.bucketize(numbers, bounds, right=True)).add(1)
