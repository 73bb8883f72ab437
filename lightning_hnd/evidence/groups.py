"""Tests of groups: what units do on the faces of a group, with all that else is known of the faces held fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hnd.dictionary import DictionaryBatch, FaceDictionary
from lightning_hnd.dictionary.known import other_labels
from lightning_hnd.functional.host import averaged
from lightning_hnd.functional.significance import Contrast, strongest

GRID = 8
"""Cells of maps on a side, each of which is asked; larger maps are averaged down to it."""


@dataclass(frozen=True)
class _Comparison:
    """One global concept's groups against each other, as far as images decide it.

    Attributes:
        place: ``[N]``, the row of each image, -1 where it has no group of the concept.
        left: ``[n, G]``, what other labels do not explain of each group; all 0 if they explain nearly all.
        basis: ``[n, r]``, orthonormal: a constant and the other labels.
    """

    place: Tensor
    left: Tensor
    basis: Tensor

    @classmethod
    def of(cls, faces: FaceDictionary, k: int) -> _Comparison:
        concept, group = faces.ontology.global_[k], faces.group[:, k]
        images = (group >= 0).nonzero().flatten()
        place = torch.full((len(faces),), -1)
        place[images] = torch.arange(len(images))
        others = other_labels(faces.known[images], faces.ontology, concept.name)
        if not len(images):
            return cls(place, torch.zeros(0, len(concept.groups)).double(), torch.zeros(0, 0).double())
        contrasts = [Contrast.of(group[images] == g, others) for g in range(len(concept.groups))]
        return cls(place, torch.stack([contrast.left for contrast in contrasts], dim=1), contrasts[0].basis)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many sums are of responses, and how many of their squares."""
        groups, rank = self.left.shape[1], self.basis.shape[1]
        return groups + rank + groups * rank, 1 + groups

    def weights(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What responses to images ``[m]``, and their squares, are multiplied with before they add up: ``[.., m]``."""
        row = self.place[images]
        some = (row >= 0).unsqueeze(1)  # others do not count
        left, basis = (torch.where(some, part[row], 0.0) for part in (self.left, self.basis))
        linear = torch.cat([left, basis, (left.square().unsqueeze(2) * basis.unsqueeze(1)).flatten(1)], dim=1)
        return linear.t(), torch.cat([some.double(), left.square()], dim=1).t()

    def tests(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        r"""Score tests and partial correlations of each response with each group: ``[G, P]``, NaN where undecided.

        Args:
            sums: ``[.., P]``, over images what :meth:`weights` makes of responses, then of their squares.

        With :math:`\tilde x` what other labels leave of a group, and :math:`e = y - B \beta` what they leave of the
        responses, the test is :math:`\sum \tilde x e / \sqrt{\sum \tilde x^2 e^2}`, written out in sums over images.
        The variance is at least that of noise alike in all images: the few of a group may be equal by chance. The null
        hypothesis is an effect of 0: a group has no place of its own, on which a unit could fire anyway.
        """
        groups, rank = self.left.shape[1], self.basis.shape[1]
        total, beta, cross, square = sums.split([groups, rank, groups * rank, 1 + groups])
        weight = torch.einsum("ng,nr,ns->grs", self.left.square(), self.basis, self.basis)
        spread = square[0] - beta.square().sum(0)
        variance = square[1:] - 2 * (cross.unflatten(0, (groups, rank)) * beta).sum(1) + ((weight @ beta) * beta).sum(1)
        constant = spread <= 1e-9 * square[0]
        norm = (self.left.square().sum(0)[:, None] * spread.clamp(min=1e-200)).sqrt()
        told = self.left.square().sum(0)[:, None] > 0
        alike = norm.square() / max(1, len(self.left) - rank)
        z = torch.where(constant, 0.0, total / torch.maximum(variance, alike).clamp(min=1e-200).sqrt())
        return torch.where(told, z, torch.nan), torch.where(told, torch.where(constant, 0.0, total / norm), torch.nan)


class GroupEvidence:
    """What the units of one layer do on the groups of a dictionary: sums, whose size does not hang on the images.

    Args:
        faces: The dictionary that streams by.

    Attributes:
        sums: For each global concept, once an image with a group was seen; those of processes add up.
    """

    def __init__(self, faces: FaceDictionary) -> None:
        self._comparisons = [faces.once(_Comparison.of, k) for k in range(len(faces.ontology.global_))]
        self._groups = [len(concept.groups) for concept in faces.ontology.global_]
        self.sums: list[Tensor] = []

    def update(self, maps: Tensor, batch: DictionaryBatch) -> None:
        """Takes in the maps ``[B, U, h, w]`` of one batch."""
        rows = (batch.group >= 0).any(1).nonzero().flatten()
        if not len(rows):
            return
        if len(rows) < len(maps):
            maps = maps.index_select(0, rows)
        images, y = batch.index[rows].cpu(), responses(maps).flatten(1)
        powers = y, y.square()
        if not self.sums:
            self.sums = [y.new_zeros(sum(comparison.sizes), y.shape[1]) for comparison in self._comparisons]
        for comparison, sums in zip(self._comparisons, self.sums, strict=True):
            if bool((comparison.place[images] >= 0).any()):
                parts = zip(sums.split(comparison.sizes), comparison.weights(images), powers, strict=True)
                for total, weight, power in parts:
                    total.addmm_(weight.to(y), power)

    def compute(self, sums: Sequence[Tensor], units: int) -> dict[str, Tensor]:
        """``group_z`` and ``group_effect [U, G]``: those of each unit's strongest response, of as many as were asked.

        Args:
            sums: Those of all processes; empty if nobody has seen a group.
            units: ``U``.
        """
        z, effect = [torch.zeros(units, 0, dtype=torch.float64)], [torch.zeros(units, 0, dtype=torch.float64)]
        for i, (comparison, groups) in enumerate(zip(self._comparisons, self._groups, strict=True)):
            undecided = torch.full((groups, units, 1), torch.nan, dtype=torch.float64)
            tests = [t.unflatten(1, (units, -1)) for t in comparison.tests(sums[i].cpu())] if sums else [undecided] * 2
            z.append(strongest(tests[0], _shares(tests[0].shape[2])).t())
            effect.append(tests[1].amax(2).t())
        return {"group_z": torch.cat(z, dim=1), "group_effect": torch.cat(effect, dim=1)}


def responses(maps: Tensor) -> Tensor:
    """What is asked of maps ``[n, U, h, w]``: the peak, the mean, and each cell less the mean, ``[n, U, 2 + cells]``.

    Roots are taken, so that a few strong responses do not decide.
    """
    height, width = (min(size, GRID) for size in maps.shape[2:])
    cells = averaged(maps.float(), (height, width)).flatten(2)
    mean = cells.mean(2, keepdim=True)
    values = torch.cat([maps.flatten(2).amax(2, keepdim=True), mean, cells - mean], dim=2).double()
    return values.abs().sqrt_().copysign_(values)


def _shares(asked: int) -> Tensor:
    """Of the error a quarter is for the peak, a quarter for the mean, and half for all cells together."""
    cells = max(asked - 2, 0)
    return torch.tensor([0.25, 0.25, *[0.5 / max(cells, 1)] * cells], dtype=torch.float64)[:asked]
