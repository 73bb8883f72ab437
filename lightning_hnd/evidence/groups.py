"""Groups: what units do on the faces of a group, all else that is known held fixed, and at the places of concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.dictionary.known import other_labels
from lightning_hnd.functional.defence import WORTH_ASKING
from lightning_hnd.functional.host import averaged
from lightning_hnd.functional.labels import LEAST_IMAGES, LEAST_TOLERANCE
from lightning_hnd.functional.significance import Contrast, residual_spread, strongest, upper_tail

GRID = 8
"""Cells of maps on a side, each of which is asked; larger maps are averaged down to it."""


class _Tests(NamedTuple):
    """Of each group and response ``[G, P]``, NaN where undecided.

    Attributes:
        z: Score tests.
        effect: Partial correlations.
        mean: What the response of the group is on average, other labels held fixed, but for a constant: in standard
            deviations of what groups and other labels leave of it.
    """

    z: Tensor
    effect: Tensor
    mean: Tensor


@dataclass(frozen=True)
class _Comparison:
    """One global concept's groups against each other, as far as images decide it.

    Attributes:
        place: ``[N]``, the row of each image, -1 where it has no group of the concept.
        left: ``[n, G]``, what other labels do not explain of each group; all 0 if they explain nearly all.
        basis: ``[n, r]``, orthonormal: a constant and the other labels.
        joint: ``[G, G]``, what makes means of groups of sums with ``left``: the solution of least squares, all groups
            and other labels together. Of mixes of groups of which the others explain more than 90 % it makes nothing.
        pooled: Whether there are enough images of groups that are not told from the others, for one by itself has too
            few: of them together the mean is 0.
    """

    place: Tensor
    left: Tensor
    basis: Tensor
    joint: Tensor
    pooled: bool

    @classmethod
    def of(cls, faces: FaceDictionary, k: int) -> _Comparison:
        concept, group = faces.ontology.global_[k], faces.group[:, k]
        images = (group >= 0).nonzero().flatten()
        place = torch.full((len(faces),), -1)
        place[images] = torch.arange(len(images))
        others = other_labels(faces.known[images], faces.ontology, concept.name)
        member = functional.one_hot(group[images], len(concept.groups)).bool()
        if not len(images):
            none = torch.zeros(0, len(concept.groups), dtype=torch.float64)
            return cls(place, none, none[:, :0], none.t() @ none, pooled=False)
        contrasts = [Contrast.of(one, others) for one in member.t()]
        left, count = torch.stack([contrast.left for contrast in contrasts], dim=1), member.double().sum(0)
        told = (left != 0).any(0)
        scale = torch.where(told, (count * (1 - count / len(images))).clamp(min=1).rsqrt(), 0.0)
        correlations = scale[:, None] * (left.t() @ left) * scale  # of groups, as far as others do not explain them
        joint = torch.linalg.pinv(correlations, atol=LEAST_TOLERANCE, rtol=0.0, hermitian=True)
        pooled = bool(count[~told].sum() >= LEAST_IMAGES)
        return cls(place, left, contrasts[0].basis, scale[:, None] * joint * scale, pooled)

    @property
    def told(self) -> Tensor:
        """``[G]`` bool, the groups that images can tell from the others."""
        return (self.left != 0).any(0)

    @property
    def sides(self) -> int:
        """Tests of each group, of more and of less; what one of two has more than the other this one has less."""
        return 1 if int(self.told.sum()) == 2 and not self.pooled else 2

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

    def tests(self, sums: Tensor) -> _Tests:
        r"""Tests of each response with each group.

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
        told = self.told[:, None]
        alike = norm.square() / max(1, len(self.left) - rank)
        z = torch.where(constant, 0.0, total / torch.maximum(variance, alike).clamp(min=1e-200).sqrt())
        mean = self.joint @ total
        freedom = len(self.left) - rank - max(0, int(told.sum()) - 1)
        mean = mean / residual_spread(spread - (total * mean).sum(0), square[0], freedom)
        found = z, *(torch.where(constant, 0.0, part) for part in (total / norm, mean))
        return _Tests(*(torch.where(told, part, torch.nan) for part in found))

    def range(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """From the group with the least of a response to that with most, and which one is further from the average.

        Args:
            mean: ``[G, U, A]``, see :class:`_Tests`.

        Returns:
            How far ``[U, A]``, and the group ``[U, A]``.
        """
        most, high = torch.nan_to_num(mean, nan=-torch.inf).max(0)
        least, low = torch.nan_to_num(mean, nan=torch.inf).min(0)
        middle = mean.nanmean(0)
        lowest = middle - least > (1 + 1e-9) * (most - middle)
        if self.pooled:  # of those that have no name the other end is told
            lowest = torch.where((most < 0) | (least > 0), most < 0, lowest)
            most, least = most.clamp(min=0), least.clamp(max=0)
        return most - least, torch.where(lowest, low, high)


class GroupEvidence:
    """What the units of one layer do on the groups of a dictionary: sums, whose size does not hang on the images.

    Args:
        faces: The dictionary that streams by.
        confounders: Of ``A`` local concepts, at whose usual places it is asked as well, the global concepts ``[K]``
            bool that are not held fixed for it.

    Attributes:
        sums: For each global concept, once an image with a group was seen; those of processes add up.
    """

    def __init__(self, faces: FaceDictionary, confounders: Mapping[int, Tensor]) -> None:
        self._comparisons = [faces.once(_Comparison.of, k) for k in range(len(faces.ontology.global_))]
        self._groups = [len(concept.groups) for concept in faces.ontology.global_]
        self._concepts, self._local = [*confounders], len(faces.ontology.local)
        of_each = [own.tolist() for own in confounders.values()]
        self._confounds = torch.tensor(of_each, dtype=torch.bool).view(len(of_each), len(self._groups))
        self.sums: list[Tensor] = []

    def update(self, maps: Tensor, shown: Tensor, images: Tensor) -> None:
        """Takes in some images that have groups.

        Args:
            maps: ``[b, U, h, w]``.
            shown: ``[b, U, A]``, how active units are at the places of concepts.
            images: ``[b]``, their numbers in the dictionary.
        """
        y = torch.cat([responses(maps), roots(shown.double())], dim=2).flatten(1)
        powers, images = (y, y.square()), images.cpu()
        if not self.sums:
            self.sums = [y.new_zeros(sum(comparison.sizes), y.shape[1]) for comparison in self._comparisons]
        for comparison, sums in zip(self._comparisons, self.sums, strict=True):
            if bool((comparison.place[images] >= 0).any()):
                parts = zip(sums.split(comparison.sizes), comparison.weights(images), powers, strict=True)
                for total, weight, power in parts:
                    total.addmm_(weight.to(y), power)

    def compute(self, sums: Sequence[Tensor], units: int) -> dict[str, Tensor]:
        """What groups are to units, and to what they show at the places of concepts.

        Args:
            sums: Those of all processes; empty if nobody has seen a group.
            units: ``U``.

        Returns:
            - ``group_z``, ``group_effect [U, G]``: those of each unit's strongest response, of as many as were asked
            - ``confound_difference``, ``confound_group [U, C]``: of the confounder which makes the largest difference
              to what a unit shows at a concept's place, that between the groups with most and with least, in standard
              deviations of what is left of it, and the group that differs most from the others. Counted are those that
              make a difference at all: one group's p-value, of more or less than the others, times the number of
              groups, is at most :data:`~lightning_hnd.functional.defence.WORTH_ASKING`. 0 and -1 where none does
        """
        z, effect = [torch.zeros(units, 0, dtype=torch.float64)], [torch.zeros(units, 0, dtype=torch.float64)]
        at_places = []
        for i, (comparison, groups) in enumerate(zip(self._comparisons, self._groups, strict=True)):
            undecided = torch.full((groups, units * (1 + len(self._concepts))), torch.nan, dtype=torch.float64)
            tests = comparison.tests(sums[i].cpu()) if sums else _Tests(undecided, undecided, undecided)
            tests = _Tests(*(part.unflatten(1, (units, -1)) for part in tests))
            asked = tests.z.shape[2] - len(self._concepts)
            z.append(strongest(tests.z[:, :, :asked], _shares(asked)).t())
            effect.append(tests.effect[:, :, :asked].amax(2).t())
            at_places.append(_Tests(*(part[:, :, asked:] for part in tests)))
        found = {"group_z": torch.cat(z, dim=1), "group_effect": torch.cat(effect, dim=1)}
        return found | self._confounded(at_places, units)

    def _confounded(self, tests: Sequence[_Tests], units: int) -> dict[str, Tensor]:
        difference, group = torch.zeros(units, self._local).double(), torch.full((units, self._local), -1)
        told, first = sum(int(comparison.told.sum()) for comparison in self._comparisons), 0
        for k, (comparison, (z, _, mean)) in enumerate(zip(self._comparisons, tests, strict=True)):
            # one of many groups may have less, and each of the others hardly more than all together
            differs = torch.nan_to_num(upper_tail(z.abs()), nan=1.0).amin(0) * comparison.sides * told <= WORTH_ASKING
            most, of_group = comparison.range(mean)
            known = difference[:, self._concepts], group[:, self._concepts]
            larger = differs & self._confounds[:, k] & (most > known[0])
            difference[:, self._concepts] = torch.where(larger, most, known[0])
            group[:, self._concepts] = torch.where(larger, first + of_group, known[1])
            first += len(mean)
        return {"confound_difference": difference, "confound_group": group}


def responses(maps: Tensor) -> Tensor:
    """What is asked of maps ``[n, U, h, w]``: peak, mean, and each cell less the mean, ``[n, U, 2 + cells]``."""
    height, width = (min(size, GRID) for size in maps.shape[2:])
    cells = averaged(maps.float(), (height, width)).flatten(2)
    mean = cells.mean(2, keepdim=True)
    return roots(torch.cat([maps.flatten(2).amax(2, keepdim=True), mean, cells - mean], dim=2).double())


def roots(values: Tensor) -> Tensor:
    """Roots with the signs of values, so that a few strong responses do not decide. Takes the place of the values."""
    sign = values.sign()
    return values.abs_().sqrt_().mul_(sign)


def _shares(asked: int) -> Tensor:
    """Of the error a quarter is for the peak, a quarter for the mean, and half for all cells together."""
    cells = max(asked - 2, 0)
    return torch.tensor([0.25, 0.25, *[0.5 / max(cells, 1)] * cells], dtype=torch.float64)[:asked]
