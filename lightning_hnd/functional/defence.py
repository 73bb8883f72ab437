"""Which pairings can be defended: the three questions put together into verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hnd.functional.significance import (
    benjamini_hochberg,
    exceedance,
    units_then_concepts,
    upper_tail,
)

LEVEL = 0.05
"""False discovery rate."""

WORTH_ASKING = 0.05
"""The p-value above which nobody asks on: of an association whether it has a place, of both whether they are learnt."""


NULL = frozenset(f"{name}_{number}" for name in ("mode", "associated", "placed") for number in ("mean", "spread")) | {
    "mode_share",
    "mean",
    "spread",
    "best_concept",
    "best_group",
}
"""The names of what :func:`learnt_null` returns."""


class Defence(NamedTuple):
    """What pairings survive.

    Attributes:
        paired: ``[U, C]`` bool, pairs of units and local concepts that survive all that applies to them.
        associated: ``[U, C]`` int8, 1 survived, 0 not, -1 not applicable (a concept without absence, or one that the
            images cannot tell from another, or for this unit not from a group).
        placed: ``[U, C]`` int8.
        learnt: ``[U, C]`` int8, -1 where too few masks say no place, and for all where no networks with fresh weights
            were measured.
        groups: ``[U, G]`` bool, pairs of units and groups that survive.
        confounding_group: ``[U, C]`` int64, of pairs that survive all else the group that makes a larger difference
            than the concept, so that they are not paired; -1 of all others.
    """

    paired: Tensor
    associated: Tensor
    placed: Tensor
    learnt: Tensor
    groups: Tensor
    confounding_group: Tensor


def defend(
    evidence: Mapping[str, Tensor], live: Tensor, fresh: Mapping[str, Tensor] | None = None, level: float = LEVEL
) -> Defence:
    """Puts the statistics of a layer to the test.

    A pair is as good as the weaker of its answers: its p-value is the larger one, which is valid whatever their
    dependence. Whether a unit is placed at a concept that can be absent is asked only where it seems associated, with a
    p-value of :data:`WORTH_ASKING` at most; this is divided by that then, for it was selected by it (Zhao, Small and Su
    2019). That of *placed* need not be: to exchange masks among the faces that carry a concept changes nothing in how a
    unit responds to the concept at its usual place, so that of pairs which are not placed the selection tells nothing.
    Fewer questions are asked so, and more is found of what is there. Parts and concepts that can be absent are two
    families, of which each is granted half the level; in each, units are tested first, then concepts within those that
    passed. A pair must also be associated when that is asked by itself: a unit that surely detects several concepts
    would be granted another one unasked.

    Nor is a concept named where a group makes a larger difference to the same response, at the concept's usual place,
    than the concept does, and the labels of the concept's images do not tell the group. If a unit responds to a group
    alone, then whatever is more frequent in the group makes a difference, but never a larger one: among faces with the
    concept the response is a mean of those of the groups, and so it is among the others. And if it responds to the
    concept alone, groups that have it more often make no larger difference. Such a pair is asked and fails, with a
    p-value of 1, whether it is learnt as well: to drop it afterwards would name as many false pairs among fewer true
    ones.

    Args:
        evidence: What :meth:`~lightning_hnd.evidence.evidence.Evidence.compute` returned.
        live: ``[U]`` bool.
        fresh: What :func:`learnt_null` returned.
        level: The false discovery rate of pairs, and of each question by itself.

    Returns:
        The verdicts.
    """
    p_associated, p_placed = (upper_tail(evidence[name]) for name in ("associated_z", "placed_z"))
    has_absence = evidence["associated_auc"].isfinite()
    larger = evidence["confound_ratio"] > 1
    # as if no group stood behind anything, which says what one stands behind, and as it is
    (seems_associated, would_pair), (is_associated, paired) = (
        _local_pairs(p_associated, p_placed, has_absence, failed, live, level)
        for failed in (torch.zeros_like(larger), larger)
    )
    confounded = would_pair & larger
    # what is paired, or would be, has answered it, among fewer
    is_placed = units_then_concepts(p_placed, live, level) | paired | confounded
    associated = _verdict(is_associated, ~p_associated.isnan() & ~(seems_associated & larger))
    placed = _verdict(is_placed, ~p_placed.isnan())
    groups = units_then_concepts(upper_tail(evidence["group_z"]), live, level)
    learnt = torch.full_like(placed, -1)
    if fresh is not None:
        concepts_beyond, groups_beyond = beyond_fresh(evidence, live, fresh, level)
        learnt = _verdict(concepts_beyond, ~p_placed.isnan())  # by itself, whatever stands behind it
        paired = paired & beyond_fresh(evidence, live, fresh, level, larger)[0]
        confounded, groups = confounded & concepts_beyond, groups & groups_beyond
    confounding_group = torch.where(confounded, evidence["confound_group"], -1)
    return Defence(paired, associated, placed, learnt, groups, confounding_group)


def _local_pairs(
    p_associated: Tensor, p_placed: Tensor, has_absence: Tensor, failed: Tensor, live: Tensor, level: float
) -> tuple[Tensor, Tensor]:
    """Which pairs are associated, and which survive all that applies to them, if the association of some has failed."""
    is_associated = units_then_concepts(torch.where(failed, 1.0, p_associated), live, level)
    worth_asking = p_associated <= WORTH_ASKING  # also of those that failed, or what is left would be few for a reason
    weaker = torch.where(failed, 1.0, torch.maximum(p_associated / WORTH_ASKING, p_placed))
    paired = units_then_concepts(torch.where(has_absence, torch.nan, p_placed), live, level / 2)
    paired |= units_then_concepts(torch.where(worth_asking, weaker, torch.nan), live, level / 2) & is_associated
    return is_associated, paired


def _verdict(passed: Tensor, applies: Tensor) -> Tensor:
    return torch.where(applies, passed.to(torch.int8), -1)


def effects(evidence: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> Tensor:
    """The numbers in which fresh weights must be exceeded: ``[U, C + G]``.

    Of a concept with absence the effects of association and of place together, each counted in the spreads that fresh
    weights give to it: a random filter may answer to eyeglasses as much as a detector does, or lie as well, and hardly
    both; NaN where it has no place. Of another one what its place gives: correlations with the modes of its masks,
    likewise, weighted as in :func:`~lightning_hnd.functional.significance.exchanged_masks_test`. Of a group the effect
    of association.

    Args:
        evidence: What :meth:`~lightning_hnd.evidence.evidence.Evidence.compute` returned.
        fresh: ``associated_mean``, ``associated_spread``, ``placed_mean``, ``placed_spread [C]``, and ``mode_mean``,
            ``mode_spread``, ``mode_share [C, K]`` of :func:`learnt_null`.
    """
    associated, place = (
        _beyond(evidence[f"{question}_effect"], fresh[f"{question}_mean"], fresh[f"{question}_spread"])
        for question in ("associated", "placed")
    )
    modes = _beyond(evidence["placed_correlation"].double(), fresh["mode_mean"], fresh["mode_spread"])
    of_part = torch.where(place.isnan(), torch.nan, (modes * fresh["mode_share"]).nansum(2))
    has_absence = evidence["associated_auc"].isfinite()
    local = torch.where(has_absence, associated + place, of_part)
    return torch.cat([local, evidence["group_effect"]], dim=1)


def _beyond(effect: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Effects in the spreads that fresh weights give to them; 0 where these do not differ at all."""
    return torch.where(spread > 1e-9, (effect - mean) / spread.clamp(min=1e-9), 0 * effect)


def learnt_null(networks: Sequence[tuple[Mapping[str, Tensor], Tensor]]) -> dict[str, Tensor]:
    """What fresh weights do: the null hypothesis of :func:`beyond_fresh`.

    Args:
        networks: Of networks with fresh weights the evidence and the live units ``[U]``.

    Returns:
        Over their live units mean and spread of what :func:`effects` counts in spreads, ``mode_share [C, K]``, and
        ``mean`` and ``spread [C + G]`` of what it returns; ``best_concept`` and ``best_group [n]``: of each live
        unit the largest effect over concepts and over groups, of those worth asking (:data:`WORTH_ASKING`), counted in
        spreads from the mean; ``-inf`` where none is. Mean and spread are those of all other networks then, or of the
        other half of a single one, as they are of other units for a model: else no unit could lie far from what it is
        measured by, and the units of a model would seem to.
    """
    found = [_of_units(evidence, live) for evidence, live in networks if bool(live.any())]
    found = found or [_of_units(*networks[0])]  # all dead
    first = found[0]
    halves = torch.arange(len(first["placed_z"])) % 2 == 0
    folds = found if len(found) > 1 else [_of_units(first, halves), _of_units(first, ~halves)]
    best = []
    for i, fold in enumerate(folds):
        others = _moments([*folds[:i], *folds[i + 1 :]])
        best.append(_excess(fold, others))
    excess, concepts = torch.cat(best), first["placed_z"].shape[1]
    nothing = excess.new_full((len(excess), 1), -torch.inf)
    return {
        **_moments(found),
        "best_concept": torch.cat([nothing, excess[:, :concepts]], dim=1).amax(1),
        "best_group": torch.cat([nothing, excess[:, concepts:]], dim=1).amax(1),
    }


_UNITS_FIRST = (
    "associated_z",
    "placed_z",
    "group_z",
    "placed_effect",
    "placed_correlation",
    "associated_effect",
    "associated_auc",
    "group_effect",
)


def _of_units(evidence: Mapping[str, Tensor], some: Tensor) -> dict[str, Tensor]:
    return {**{name: evidence[name][some] for name in _UNITS_FIRST}, "placed_share": evidence["placed_share"]}


def _moments(networks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What :func:`effects` and :func:`beyond_fresh` need of the units of networks."""
    of_all = {name: torch.cat([network[name] for network in networks]) for name in _UNITS_FIRST}
    null = {"mode_share": torch.stack([network["placed_share"] for network in networks]).mean(0)}
    counted = {
        "mode": of_all["placed_correlation"].double(),
        "associated": of_all["associated_effect"],
        "placed": of_all["placed_effect"],
    }
    for name, values in counted.items():
        null[f"{name}_mean"], null[f"{name}_spread"] = _mean_and_spread(values)
    null["mean"], null["spread"] = _mean_and_spread(effects(of_all, null))
    return null


def _mean_and_spread(values: Tensor) -> tuple[Tensor, Tensor]:
    mean = values.nanmean(0)
    return mean, (values - mean).square().nanmean(0).sqrt()


def _excess(evidence: Mapping[str, Tensor], null: Mapping[str, Tensor]) -> Tensor:
    """Effects in spreads from their mean over fresh weights; ``-inf`` where nobody would ask."""
    excess = (effects(evidence, null) - null["mean"]) / null["spread"].clamp(min=1e-9)
    p_associated, p_placed, p_group = (upper_tail(evidence[name]) for name in ("associated_z", "placed_z", "group_z"))
    # what has no place, for want of masks, will not be paired: asked all the same, it would let others pass
    local = (p_placed <= WORTH_ASKING) & (p_associated.isnan() | (p_associated <= WORTH_ASKING))
    seems = torch.cat([local, p_group <= WORTH_ASKING], dim=1)
    return torch.where(seems & (excess > 0), excess, -torch.inf)


def beyond_fresh(
    evidence: Mapping[str, Tensor],
    live: Tensor,
    fresh: Mapping[str, Tensor],
    level: float,
    failed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Which pairs exceed what fresh weights do: ``[U, C]`` and ``[U, G]`` bool.

    Asked are pairs that seem to be there, by :data:`WORTH_ASKING` in all that applies, of the model and of fresh
    weights alike: what a unit does at concepts that it is not on says nothing of one that it is on. The effect of
    each pair, counted in the spreads that fresh weights give to it, is compared with the largest one that units with
    fresh weights reach over all concepts (all groups). Units are selected by Benjamini and Hochberg's procedure; of a
    selected unit those concepts are learnt that pass the same bar by themselves, so that within a unit no concept is
    claimed falsely but with the probability of the unit's own test (Westfall and Young 1993). Of ``n`` networks none
    has a finer p-value than ``1 / (n U + 1)``: ``1 / (n level)`` units must exceed all of theirs; fewer where some
    of the model's are dead, and more where some of theirs are.

    Pairs that have ``failed [U, C]`` otherwise count as asked, with a p-value of 1: selected, and dropped afterwards,
    they would let others pass more easily.
    """
    excess, concepts = _excess(evidence, fresh), evidence["placed_z"].shape[1]
    local = excess[:, :concepts]
    if failed is not None:
        local = local.masked_fill(failed, -torch.inf)
    return (
        _maximum_test(local, live, fresh["best_concept"], level),
        _maximum_test(excess[:, concepts:], live, fresh["best_group"], level),
    )


def _maximum_test(excess: Tensor, live: Tensor, best: Tensor, level: float) -> Tensor:
    passed = torch.zeros_like(excess, dtype=torch.bool)
    if not bool(live.any()) or not len(best) or not excess.shape[1]:
        return passed
    p = exceedance(excess[live], best)
    unit = p.amin(1)  # that of the largest
    selected = benjamini_hochberg(unit) <= level
    bar = unit[selected].amax() if bool(selected.any()) else -1.0
    passed[live] = (p <= bar) & selected[:, None]
    return passed
