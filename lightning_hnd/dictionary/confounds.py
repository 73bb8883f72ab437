"""Which labels of a dictionary go together, so that a unit cannot be told to serve one of them and not the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lightning_hnd.dictionary.face_dictionary import FaceDictionary

DOUBTFUL = 0.3
"""Cramér's V from which two labels count as confounded: Cohen's "medium" effect for two groups."""

MOST_VALUES = 12
"""A column of ``labels.csv`` with more values is cut into quarters if it holds numbers, and ignored if it does not."""

_MEASURED = {"ita_degrees": "skin_tone", "years": "age", "race": "ethnicity"}
"""Columns that measure what a global concept groups: no confounds of it."""

_NAMES = frozenset(("file", "identity"))
"""Columns that tell images and people apart, no labels."""


@dataclass(frozen=True, eq=False)
class CrossTable:
    """How many images of each group of a concept carry each value of another label.

    Attributes:
        concept: A global concept, or a local one, whose groups are ``present`` and ``absent``.
        label: The other concept, or a column of ``labels.csv``.
        rows: The groups of ``concept``.
        columns: The values of ``label``.
        counts: ``[rows, columns]`` int64, over the images of which both are known.
    """

    concept: str
    label: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: npt.NDArray[np.int64]

    @cached_property
    def strength(self) -> float:
        """Cramér's V, corrected for chance (Bergsma, J. Korean Stat. Soc. 2013): from 0, independent, to 1."""
        counts = self.counts[self.counts.sum(1) > 0][:, self.counts.sum(0) > 0]
        total, (rows, columns) = int(counts.sum()), counts.shape
        if min(rows, columns) < 2 or total < 2:
            return 0.0
        expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / total
        excess = ((counts - expected) ** 2 / expected).sum() / total - (rows - 1) * (columns - 1) / (total - 1)
        fewer = min(rows - (rows - 1) ** 2 / (total - 1), columns - (columns - 1) ** 2 / (total - 1)) - 1
        return float(np.sqrt(max(excess, 0.0) / fewer)) if fewer > 0 else 0.0

    @property
    def doubtful(self) -> bool:
        """Whether a unit that follows one of them can hardly be told from a unit that follows the other."""
        return self.strength >= DOUBTFUL


def cross_tables(dictionary: FaceDictionary) -> tuple[CrossTable, ...]:
    """Every concept that is measured by presence or by groups, against every other label that is known of its images.

    Global concepts are counted over the images in their groups, local ones over the images of their kind; parts, which
    have no absence, are left out.

    Args:
        dictionary: Any. Columns of ``labels.csv`` come from ``dictionary.labels``.

    Returns:
        The tables in which both sides take two values or more, strongest first.

    Example:
        >>> from lightning_hnd import FaceDictionary
        >>> from lightning_hnd.dictionary.confounds import cross_tables
        >>> tables = cross_tables(FaceDictionary.rendered(size=16, images=80))
        >>> any(table.concept == "gender" and table.label == "age" for table in tables)
        True
    """
    of_concept = {**_groups(dictionary), **_presence(dictionary)}
    known = {**_columns(dictionary), **of_concept}
    for name, concept in _groups(dictionary).items():  # groups of which only labels.csv tells
        known[name] = concept.filled(_column(dictionary, name))
    tables = []
    for concept_name, concept in of_concept.items():
        for name, label in known.items():
            both = (concept.code >= 0) & (label.code >= 0)
            if name == concept_name or _MEASURED.get(name) == concept_name or not both.any():
                continue
            cells = concept.code[both] * len(label.names) + label.code[both]
            counts = np.bincount(cells, minlength=len(concept.names) * len(label.names))
            table = counts.reshape(len(concept.names), len(label.names))
            if min(((table > 0).any(axis).sum()) for axis in (0, 1)) > 1:
                tables.append(CrossTable(concept_name, name, concept.names, label.names, table))
    return tuple(sorted(tables, key=lambda table: -table.strength))


@dataclass(frozen=True)
class _Variable:
    """One label of all images: ``code [N]`` int64 into ``names``, ``-1`` where unknown."""

    code: npt.NDArray[np.int64]
    names: tuple[str, ...]

    def filled(self, values: Sequence[str]) -> _Variable:
        place = {name.lower(): g for g, name in enumerate(self.names)}
        told = np.array([place.get(value.lower(), -1) for value in values], np.int64)
        return _Variable(np.where(self.code >= 0, self.code, told), self.names)


def _groups(dictionary: FaceDictionary) -> dict[str, _Variable]:
    group = dictionary.group.numpy()
    return {c.name: _Variable(group[:, k], c.groups) for k, c in enumerate(dictionary.ontology.global_)}


def _presence(dictionary: FaceDictionary) -> dict[str, _Variable]:
    ontology, source = dictionary.ontology, dictionary.source.numpy()
    carries = np.zeros((len(dictionary), len(ontology.local)), np.bool_)
    carries[dictionary.mask_image.numpy(), dictionary.mask_concept.numpy()] = True
    result = {}
    for c, concept in enumerate(ontology.local):
        of_kind = source == ontology.concept_kind[c]
        if of_kind.any() and not carries[of_kind, c].all():
            code = np.where(of_kind, np.where(carries[:, c], 0, 1), -1)
            result[concept.name] = _Variable(code, ("present", "absent"))
    return result


def _columns(dictionary: FaceDictionary) -> dict[str, _Variable]:
    names = [n for n in dict.fromkeys(name for labels in dictionary.labels for name in labels) if n not in _NAMES]
    found = ((name, _categories(_column(dictionary, name))) for name in names)
    return {name: variable for name, variable in found if variable is not None}


def _column(dictionary: FaceDictionary, name: str) -> list[str]:
    return [labels.get(name, "").strip() for labels in dictionary.labels]


def _categories(values: list[str]) -> _Variable | None:
    distinct = sorted(set(values) - {""})
    if len(distinct) <= MOST_VALUES:
        place = {value: i for i, value in enumerate(distinct)}
        return _Variable(np.array([place.get(value, -1) for value in values], np.int64), tuple(distinct))
    try:
        numbers = np.array([float(value) if value else np.nan for value in values])
    except ValueError:
        return None
    cuts = np.unique(np.nanquantile(numbers, [0.25, 0.5, 0.75]))
    code = np.where(np.isnan(numbers), -1, np.searchsorted(cuts, numbers, side="right"))
    ends = [f"{cut:g}" for cut in cuts]
    names = (f"below {ends[0]}", *(f"{a} to {b}" for a, b in pairwise(ends)), f"from {ends[-1]}")
    return _Variable(code, names)
