"""Units of known truth: true detectors, and every kind of impostor that is to be told from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from truth import Truth

from lightning_hnd.concepts import PAPER

DETECTORS = ("concept", "part", "two concepts", "group")
"""Kinds of units that a rule should name right; all other kinds are impostors."""

_KIND = torch.tensor(PAPER.concept_kind)
_PART = PAPER.kinds.index("part")
_ANY = frozenset(range(len(PAPER.local)))
_PRESENCE = frozenset(c for c in _ANY if _KIND[c] != _PART)
_MISSED = 0.1  # share of faces in which even a detector stays silent
_SPREAD = 0.25  # of the logarithm of its strength from face to face


@dataclass(frozen=True)
class Plant:
    """What one unit is.

    Attributes:
        kind: One of :data:`DETECTORS`, or a kind of impostor.
        concepts: Local concepts that it detects; naming one of them first is right.
        accused: Local concepts that it must not be called a detector of.
        groups: Positions on the axis of all groups that it detects.
        accused_groups: Positions of groups that it must not be paired with.
    """

    kind: str
    concepts: frozenset[int] = frozenset()
    accused: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()
    accused_groups: frozenset[int] = frozenset()


def plant(truth: Truth, cells: tuple[int, int], each: int, seed: int) -> tuple[list[Plant], Tensor]:
    """Signals of units of every kind.

    A detector is silent in a tenth of the faces that it should fire in, and its strength varies from face to face.

    Args:
        truth: The faces.
        cells: ``(h, w)`` of the maps.
        each: Units of each kind.
        seed: Of all chance.

    Returns:
        The plants, and their signals ``[N, U, h, w]``, about 1 where on and 0 where off.
    """
    sower = _Sower(truth, cells, torch.Generator().manual_seed(seed))
    shown = torch.tensor(truth.faces.images_per_concept) > 0
    presence = [c for c in _PRESENCE if shown[c]]
    parts = [c for c in _ANY - _PRESENCE if shown[c]]
    plants, signals = [], []

    def sow(units: Sequence[tuple[Plant, Tensor]]) -> None:
        for made, signal in units:
            plants.append(made)
            signals.append(signal)

    sow([sower.concept(c) for c in sower.some(presence, 2 * each)])
    sow([sower.concept(c, "part") for c in sower.some(parts, each)])
    sow([sower.two(c, presence) for c in sower.some(presence, each)])
    for kind in dict.fromkeys(pair.kind for pair in truth.pairs):
        pairs = [pair for pair in truth.pairs if pair.kind == kind]
        sow([sower.confound(kind, *pairs[i % len(pairs)][1:]) for i in range(each)])
    sow([sower.group(i) for i in range(each)])
    sow([sower.place(c) for c in sower.some(presence, each)])
    sow([sower.fixed(c) for c in sower.some([*presence, *parts], each)])
    nothing = torch.zeros(len(truth.present), *cells, dtype=torch.float16)
    sow([(Plant("noise", accused=_ANY), nothing)] * each)
    sow([(Plant("dead", accused=_ANY), nothing.clone().fill_(-torch.inf))] * max(1, each // 4))
    return plants, torch.stack(signals, dim=1)


@dataclass(frozen=True)
class _Sower:
    truth: Truth
    cells: tuple[int, int]
    generator: torch.Generator

    def some(self, concepts: Sequence[int], count: int) -> list[int]:
        """Concepts in chance order, none a second time before all had their turn."""
        rounds = [torch.randperm(len(concepts), generator=self.generator) for _ in range(-(-count // len(concepts)))]
        return [concepts[int(i)] for i in torch.cat(rounds)[:count]]

    def _signal(self, on: Tensor, concept: int) -> Tensor:
        """On in these faces (but for those missed) at the place of a concept: ``[N, h, w]`` float16."""
        on = on & (torch.rand(len(on), generator=self.generator) >= _MISSED)
        signal = torch.zeros(len(on), *self.cells, dtype=torch.float16)
        rows = on.nonzero().flatten()
        strength = (torch.randn(len(rows), generator=self.generator) * _SPREAD).exp()
        signal[rows] = self.truth.place_on(self.cells, rows, concept) * strength.half()[:, None, None]
        return signal

    def concept(self, c: int, kind: str = "concept") -> tuple[Plant, Tensor]:
        return Plant(kind, concepts=frozenset([c])), self._signal(self.truth.present[:, c], c)

    def two(self, first: int, presence: Sequence[int]) -> tuple[Plant, Tensor]:
        away = [c for c in presence if PAPER.concept_region[c] != PAPER.concept_region[first]]
        second = self.some(away, 1)[0]
        signal = torch.maximum(*(self._signal(self.truth.present[:, c], c) for c in (first, second)))
        return Plant("two concepts", concepts=frozenset([first, second])), signal

    def place(self, c: int) -> tuple[Plant, Tensor]:
        """At the concept's place in every face, whether or not it is there."""
        return Plant("place", accused=_PRESENCE), self._signal(torch.ones_like(self.truth.present[:, c]), c)

    def fixed(self, c: int) -> tuple[Plant, Tensor]:
        """At one place of the frame in every face: where the concept is on average."""
        usual = self.truth.place_on(self.cells, self.truth.present[:, c].nonzero().flatten(), c).float().mean(0)
        usual = torch.where(usual >= 0.5 * usual.max(), usual / usual.max(), 0.0)
        on = torch.rand(len(self.truth.present), generator=self.generator) >= _MISSED
        strength = on * (torch.randn(len(on), generator=self.generator) * _SPREAD).exp()
        return Plant("fixed place", accused=_ANY), (strength[:, None, None] * usual).half()

    def confound(self, kind: str, fires: str, accused: str) -> tuple[Plant, Tensor]:
        """On a concept or on the last group of a global one, accused of what goes along with it."""
        local = {c.name: i for i, c in enumerate(PAPER.local)}
        if accused in local:
            plant = Plant(kind, accused=frozenset([local[accused]]))
        else:
            plant = Plant(kind, accused_groups=frozenset(_groups(accused)))
        if fires in local:
            return plant, self._signal(self.truth.present[:, local[fires]], local[fires])
        k = PAPER.global_index(fires)
        return plant, self._on_group(k, len(PAPER.global_[k].groups) - 1)

    def group(self, i: int) -> tuple[Plant, Tensor]:
        shown = [g for g, n in enumerate(self.truth.faces.images_per_group) if n]
        g = shown[i % len(shown)]
        k = max(k for k, first in enumerate(PAPER.group_offsets[:-1]) if first <= g)
        return Plant("group", groups=frozenset([g])), self._on_group(k, g - PAPER.group_offsets[k])

    def _on_group(self, k: int, g: int) -> Tensor:
        """In the faces of a group, and by chance in as many of those of which nobody knows the group, at some part."""
        group = self.truth.group[:, k]
        known = group >= 0
        rate = (group[known] == g).float().mean()
        guessed = torch.rand(len(group), generator=self.generator) < rate
        part = self.some([c for c in _ANY - _PRESENCE if self.truth.faces.images_per_concept[c]], 1)[0]
        return self._signal(torch.where(known, group == g, guessed), part)


def _groups(name: str) -> range:
    k = PAPER.global_index(name)
    return range(PAPER.group_offsets[k], PAPER.group_offsets[k + 1])
