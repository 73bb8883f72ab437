"""Unit: what one unit of a layer was found to be, in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConceptPairing:
    """A local concept that a unit is paired with: its probability within the unit's region, and their IoU.

    The probability is 0 for a concept of another region, with which a unit can be paired under a rule with a level.

    Under :data:`~lightning_hnd.ABOVE_CHANCE` also what the pairing survived, True or False, None where the question
    does not apply or was not asked: ``associated``, ``placed``, ``learnt``; and ``agreement``, the mean correlation
    between map and mask.
    """

    name: str
    kind: str
    probability: float
    iou: float
    associated: bool | None = None
    placed: bool | None = None
    learnt: bool | None = None
    agreement: float | None = None

    @property
    def strength(self) -> float:
        """What the concepts of a unit are ranked by: the agreement or, under a rule that has none, the probability."""
        return self.probability if self.agreement is None else self.agreement


@dataclass(frozen=True)
class GroupPairing:
    """A group of a global concept that a unit is paired with, and its probability.

    Under :data:`~lightning_hnd.ABOVE_CHANCE` also the ``effect``: the partial correlation of the group with that of the
    unit's responses (peak, mean, each cell) which goes with it most, all other labels held fixed; and what the pairing
    survived, ``associated`` and ``learnt``, None where that was not asked. A group has no place.
    """

    concept: str
    group: str
    probability: float
    effect: float | None = None
    associated: bool | None = None
    learnt: bool | None = None

    @property
    def strength(self) -> float:
        """What the pairing rests on: the effect or, under a rule that has none, the probability."""
        return self.probability if self.effect is None else self.effect


@dataclass(frozen=True)
class ConfoundedConcept:
    """A local concept that a unit is not paired with only because a group may stand behind it.

    At the usual place of the local concept ``name`` the global ``concept`` makes a difference that is ``ratio`` times
    as large, more than 1, and its ``group`` differs most, while ``labels.csv`` does not tell the groups of all images
    of the local concept's source. The ratio is infinite where the local concept makes no difference on average.
    """

    name: str
    concept: str
    group: str
    ratio: float


@dataclass(frozen=True)
class Unit:
    """One unit of a layer.

    Attributes:
        index: The channel.
        dead: Whether its activation never varies over the dictionary; it pairs with nothing then.
        threshold: The activation above which it fires.
        region: Its facial region, None where it is not local.
        concepts: The concepts that it is paired with, by :attr:`ConceptPairing.strength`; under a rule without a level
            those of its region alone.
        groups: The groups that it is paired with, in the order of the ontology.
        confounded: The concepts that it is not paired with for a group may stand behind them; under
            :data:`~lightning_hnd.ABOVE_CHANCE` alone.
    """

    index: int
    dead: bool
    threshold: float
    region: str | None
    concepts: tuple[ConceptPairing, ...]
    groups: tuple[GroupPairing, ...]
    confounded: tuple[ConfoundedConcept, ...] = ()

    @property
    def interpretable(self) -> bool:
        """Whether it is paired with at least one local concept."""
        return bool(self.concepts)
