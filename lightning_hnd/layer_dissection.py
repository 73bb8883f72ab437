"""LayerDissection: what the units of one layer were found to be under a rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from lightning_hnd.concepts import Ontology
from lightning_hnd.functional import pair_concepts, pair_groups
from lightning_hnd.functional.affinity import affinity_within, combine_affinity
from lightning_hnd.functional.defence import LEVEL, NULL, Defence, defend
from lightning_hnd.rules import Rule
from lightning_hnd.unit import ConceptPairing, ConfoundedConcept, GroupPairing, Unit

Array = npt.NDArray[Any]

_QUESTIONS = ("associated", "placed", "group")
_OTHER_VERSION = "{} another version of lightning-hnd: dissect it anew, or read it with .with_rule(README)"


@dataclass(frozen=True, eq=False)
class LayerDissection:
    """The units of one layer under a rule.

    Attributes:
        name: The layer.
        ontology: The concepts, in the order of the ``C`` and ``G`` axes.
        rule: What decides the pairings.
        statistics: What :class:`~lightning_hnd.DissectionMetric` measured, as read-only arrays.
    """

    name: str
    ontology: Ontology
    rule: Rule
    statistics: Mapping[str, Array]

    @classmethod
    def of(cls, name: str, ontology: Ontology, rule: Rule, statistics: Mapping[str, Array]) -> LayerDissection:
        """Makes one whose statistics cannot be changed any more."""
        frozen = {key: _frozen(value) for key, value in statistics.items()}
        return cls(name, ontology, rule, MappingProxyType(frozen))

    def __reduce__(self) -> tuple[Any, ...]:
        return LayerDissection.of, (self.name, self.ontology, self.rule, dict(self.statistics))

    def __len__(self) -> int:
        return len(self.dead)

    @property
    def dead(self) -> Array:
        """``[U]`` bool."""
        return self.statistics["dead"]

    @property
    def iou(self) -> Array:
        """``[U, C]``, of the kind that the rule asks for."""
        return self.statistics["iou_firing" if self.rule.firing_only else "iou_labelled"]

    @property
    def asked_fresh(self) -> bool:
        """Whether networks with fresh weights were asked what is learnt."""
        return any(name.startswith("fresh_") for name in self.statistics)

    @cached_property
    def defence(self) -> Defence:
        """What each pairing survives at the rule's level, 5 % for rules without one.

        Raises:
            ValueError: If the statistics hold no evidence, or it, or that of fresh weights, is not of this version.
        """
        if "placed_z" not in self.statistics:
            raise ValueError(f"layer {self.name!r} was measured without evidence of chance: dissect it with level=0.05")
        if "confound_ratio" not in self.statistics:
            raise ValueError(_OTHER_VERSION.format(f"the evidence of layer {self.name!r} is of"))
        numbers = {name: torch.tensor(value) for name, value in self.statistics.items() if value.dtype.kind in "fi"}
        null = null_of(self.statistics)
        if null and null.keys() != NULL:
            raise ValueError(_OTHER_VERSION.format(f"layer {self.name!r} was compared with fresh weights by"))
        return defend(numbers, torch.tensor(~self.dead), null or None, self.rule.level or LEVEL)

    @cached_property
    def _affinity(self) -> tuple[Array, Array]:
        if self.rule.level is not None:
            return self._defended_affinity()
        region, probability = combine_affinity(
            torch.tensor(self.statistics["response"]),
            torch.tensor(self.iou),
            self._concept_region,
            iou_threshold=self.rule.iou_threshold,
        )
        return _frozen(region.numpy()), _frozen(probability.numpy())

    def _defended_affinity(self) -> tuple[Array, Array]:
        """A unit's region is that of the paired concept whose masks its maps agree with most."""
        agreement = torch.where(self.defence.paired, torch.tensor(self.statistics["agreement"]), -torch.inf)
        # before them no concept, which is the first of the largest where none is paired
        strongest = functional.pad(agreement, (1, 0), value=-torch.inf).argmax(1)
        region = functional.pad(self._concept_region, (1, 0), value=-1)[strongest]
        probability = affinity_within(
            region, torch.tensor(self.statistics["response"]), torch.tensor(self.iou), self._concept_region
        )
        return _frozen(region.numpy()), _frozen(probability.numpy())

    @property
    def _concept_region(self) -> Tensor:
        return torch.tensor(self.ontology.concept_region, dtype=torch.int64)  # also where there are none

    @property
    def region(self) -> Array:
        """``[U]`` index into ``ontology.regions``, -1 where the unit is not local."""
        return self._affinity[0]

    @property
    def probability(self) -> Array:
        """``[U, C]``, of each concept of the unit's region."""
        return self._affinity[1]

    @property
    def group_probability(self) -> Array:
        """``[U, G]``, of each group within its global concept."""
        return self.statistics["group_probability"]

    @cached_property
    def paired_concepts(self) -> Array:
        """``[U, C]`` bool: :func:`~lightning_hnd.functional.pair_concepts`."""
        if self.rule.level is not None:
            return _frozen(self.defence.paired.numpy())
        probability, images = torch.tensor(self.probability), torch.tensor(self.statistics["images_per_concept"])
        return _frozen(pair_concepts(probability, self._concept_region, images).numpy())

    @cached_property
    def paired_groups(self) -> Array:
        """``[U, G]`` bool: :func:`~lightning_hnd.functional.pair_groups`, concept by concept."""
        if self.rule.level is not None:
            return _frozen(self.defence.groups.numpy())
        offsets = self.ontology.group_offsets
        probability, images = torch.tensor(self.group_probability), torch.tensor(self.statistics["images_per_group"])
        paired = [
            pair_groups(probability[:, first:last], images[first:last], concept.times_chance)
            for concept, first, last in zip(self.ontology.global_, offsets[:-1], offsets[1:], strict=True)
        ]
        return _frozen(torch.cat([*paired, torch.zeros(len(self), 0, dtype=torch.bool)], dim=1).numpy())

    @cached_property
    def confounding_group(self) -> Array:
        """``[U, C]``, of each :class:`ConfoundedConcept` the group, on the axis of all; -1 elsewhere."""
        if self.rule.level is None:
            return _frozen(np.full(self.iou.shape, -1))
        return _frozen(self.defence.confounding_group.numpy())

    @property
    def live(self) -> int:
        """How many units are not dead."""
        return len(self) - int(self.dead.sum())

    @cached_property
    def units_per_region(self) -> Array:
        """``[regions]`` int64: interpretable units of each region."""
        return _frozen(np.bincount(self.region[self.interpretable], minlength=len(self.ontology.regions)))

    @cached_property
    def interpretable(self) -> Array:
        """``[U]`` bool: units that are paired with at least one local concept."""
        return _frozen(np.asarray(self.paired_concepts.any(axis=1)))

    @property
    def strength(self) -> Array:
        """``[U, C]``, what the concepts of a unit are ranked by: :attr:`~lightning_hnd.ConceptPairing.strength`."""
        return self.probability if self.rule.level is None else self.statistics["agreement"]

    @cached_property
    def strongest(self) -> tuple[int, ...]:
        """The interpretable units, by what the rule goes by: highest IoU first or, with a level, highest strength."""
        by = self.iou if self.rule.level is None else np.where(self.paired_concepts, self.strength, -np.inf)
        order = np.argsort(-by.max(axis=1, initial=-np.inf), kind="stable")
        return tuple(int(u) for u in order if self.interpretable[u])

    @cached_property
    def confounded_alone(self) -> tuple[int, ...]:
        """The units that would be interpretable if no group stood behind their concepts, by index."""
        found = (self.confounding_group >= 0).any(axis=1) & ~self.interpretable
        return tuple(int(u) for u in np.flatnonzero(found))

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """Every unit, by index."""
        return tuple(self._unit(u) for u in range(len(self)))

    def _unit(self, u: int) -> Unit:
        local = self.ontology.local
        paired = np.flatnonzero(self.paired_concepts[u])
        concepts = sorted(paired, key=lambda c: (-self.strength[u, c], c))
        groups = [(c.name, g) for c in self.ontology.global_ for g in c.groups]
        return Unit(
            index=u,
            dead=bool(self.dead[u]),
            threshold=float(self.statistics["threshold"][u]),
            region=self.ontology.regions[self.region[u]] if self.region[u] >= 0 else None,
            concepts=tuple(
                ConceptPairing(
                    local[c].name,
                    local[c].kind,
                    float(self.probability[u, c]),
                    float(self.iou[u, c]),
                    *self._survived(u, int(c)),
                )
                for c in concepts
            ),
            groups=tuple(
                GroupPairing(*groups[g], float(self.group_probability[u, g]), *self._group_survived(u, int(g)))
                for g in np.flatnonzero(self.paired_groups[u])
            ),
            confounded=tuple(
                ConfoundedConcept(
                    local[c].name,
                    *groups[int(self.confounding_group[u, c])],
                    float(self.statistics["confound_ratio"][u, c]),
                )
                for c in np.flatnonzero(self.confounding_group[u] >= 0)
            ),
        )

    def _survived(self, u: int, c: int) -> tuple[Any, ...]:
        if self.rule.level is None:
            return ()
        verdicts = (self.defence.associated, self.defence.placed, self.defence.learnt)
        survived = [None if int(verdict[u, c]) < 0 else bool(verdict[u, c]) for verdict in verdicts]
        return (*survived, float(self.statistics["agreement"][u, c]))

    def _group_survived(self, u: int, g: int) -> tuple[Any, ...]:
        if self.rule.level is None:
            return ()
        return float(self.statistics["group_effect"][u, g]), True, True if self.asked_fresh else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerDissection):
            return NotImplemented
        return (
            (self.name, self.ontology, self.rule) == (other.name, other.ontology, other.rule)
            and self.statistics.keys() == other.statistics.keys()
            and all(
                a.dtype == other.statistics[name].dtype
                and np.array_equal(a, other.statistics[name], equal_nan=a.dtype.kind == "f")
                for name, a in self.statistics.items()
            )
        )

    __hash__ = None  # type: ignore[assignment]  # compared by value

    @property
    def headline(self) -> str:
        """One sentence: how many units are interpretable, in which regions; how many others confounded; dead."""
        regions = [f"{r} {n}" for r, n in zip(self.ontology.regions, self.units_per_region, strict=True) if n]
        where = f" ({', '.join(regions)})" if regions else ""
        dead = f"; {len(self) - self.live} dead" if self.live < len(self) else ""
        found, others = int(self.interpretable.sum()), len(self.confounded_alone)
        confounded = f"; {others} {'more ' if found else ''}confounded with groups" if others else ""
        asked = "" if self.rule.level is None or self.asked_fresh else "; nobody asked what is learnt"
        if self.rule.level is not None and all(np.isnan(self.statistics[f"{q}_z"]).all() for q in _QUESTIONS):
            asked = "; the dictionary lets nothing be asked: too few faces, or all alike"
        return f"{self.name}: {found} of {self.live} live units interpretable{where}{confounded}{dead}{asked}"

    def assignments(self, rows: int, *, concepts: int | None = None, separator: str = ", ") -> list[tuple[str, ...]]:
        """The strongest units in words, as :attr:`columns` says; after them those that are confounded alone.

        A concept that a group may stand behind reads ``Wearing_Lipstick or gender=Female, 1.5 x``: so many times as
        large is the difference that the group makes.

        Args:
            rows: Units at most.
            concepts: Concepts of a unit at most, None for all.
            separator: Stands between them.
        """

        def row(unit: Unit) -> tuple[str, ...]:
            named = (f"{c.name} {c.strength:.2f} ({c.iou:.3f})" for c in unit.concepts[:concepts])
            confounded = (f"{c.name} or {c.concept}={c.group}, {c.ratio:.1f} x" for c in unit.confounded[:concepts])
            return (
                str(unit.index),
                unit.region or "",
                separator.join((*named, *confounded)),
                separator.join(f"{g.concept}={g.group} {g.strength:.2f}" for g in unit.groups),
            )

        return [row(self.units[u]) for u in (*self.strongest, *self.confounded_alone)[:rows]]

    @property
    def columns(self) -> tuple[str, ...]:
        """What stands in each of the :meth:`assignments`."""
        concepts, groups = ("probability", "probability") if self.rule.level is None else ("agreement", "effect")
        return "unit", "region", f"concepts: {concepts} (IoU)", f"groups: {groups}"

    def __str__(self) -> str:
        rows = [f"  unit {u:>4}  {r:8} {c}{'; ' if c and g else ''}{g}" for u, r, c, g in self.assignments(10)]
        return "\n".join([f"{self.headline} (rule {self.rule.name})", *rows])


def null_of(statistics: Mapping[str, Array]) -> dict[str, Tensor]:
    """The null hypothesis of *learnt* among the statistics of a layer; empty where nobody asked."""
    return {
        name.removeprefix("fresh_"): torch.tensor(value)
        for name, value in statistics.items()
        if name.startswith("fresh_")
    }


def _frozen(array: Array) -> Array:
    if array.flags.writeable:
        array = array.copy() if array.base is not None else array
        array.setflags(write=False)
    return array
