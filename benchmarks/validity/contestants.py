"""The rules that are judged, each from activations and labels to verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from exams import Exam
from torch import Tensor

from lightning_hnd import README, RELEASED, Dissection, DissectionMetric, LayerDissection, Rule
from lightning_hnd.concepts import PAPER
from lightning_hnd.evidence.evidence import Evidence
from lightning_hnd.functional.affinity import combine_affinity
from lightning_hnd.functional.defence import defend, learnt_null
from lightning_hnd.functional.pairing import pair_concepts
from lightning_hnd.functional.ranks import mid_ranks
from lightning_hnd.functional.significance import upper_tail

LEVEL = 0.05
"""False discovery rate that rules with p-values are run at."""


@dataclass(frozen=True)
class Verdict:
    """What a rule says of the units of an exam.

    Attributes:
        evidence: ``[U, C]`` for each local concept, the higher the more, ``-inf`` where the rule would never name it.
            For comparisons in which all rules are given the same share of false discoveries.
        named: ``[U, C]`` bool, concepts that the unit is called a detector of.
        first: ``[U]`` int64, the concept that is named first, -1 where none is.
        groups: ``[U, G]`` bool, groups that the unit is paired with.
    """

    evidence: Tensor
    named: Tensor
    first: Tensor
    groups: Tensor


Contestant = Callable[[Exam], Verdict]


@lru_cache(maxsize=2)  # one measurement serves several rules
def measured(exam: _Same, quantile: float) -> LayerDissection:
    metric = DissectionMetric(exam.it.faces.ontology, quantile, num_local=exam.it.faces.num_local)
    for maps, batch in exam.it.batches(exam.it.maps):
        metric.update(maps, batch)
    return Dissection.from_statistics({"": metric.compute()}, exam.it.faces.ontology, Rule(quantile))[""]


class _Same:
    """An exam, compared by identity."""

    def __init__(self, exam: Exam) -> None:
        self.it = exam

    def __hash__(self) -> int:
        return id(self.it)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.it is self.it


def by_area(rule: Rule) -> Contestant:
    """One of the two rules that rest on the IoU. The evidence is the IoU of what would be named with no bar."""

    def judge(exam: Exam) -> Verdict:
        layer = measured(_Same(exam), rule.quantile)
        layer = LayerDissection.of("", layer.ontology, rule, layer.statistics)
        iou, named = torch.tensor(layer.iou), torch.tensor(layer.paired_concepts)
        region = torch.tensor(PAPER.concept_region)
        _, probability = combine_affinity(torch.tensor(layer.statistics["response"]), iou, region, iou_threshold=0.0)
        would = pair_concepts(probability, region, torch.tensor(layer.statistics["images_per_concept"]))
        # what is named is ranked by its probability; what bars is the best IoU of the unit
        evidence = torch.where(would, iou.amax(1, keepdim=True) + 1e-6 * probability, -torch.inf)
        return Verdict(
            evidence, named, _first(torch.tensor(layer.probability), named), torch.tensor(layer.paired_groups)
        )

    return judge


def by_rank(exam: Exam) -> Verdict:
    """By rank alone, as INVERT (Bykov et al. 2023): AUROC of the peaks, with its Mann-Whitney p-value.

    A unit is called a detector of the concept with the highest AUROC, inside the concept's source, if it passes
    Benjamini-Hochberg over units after Bonferroni over concepts. Parts have no absence and are never named.
    """
    peak = exam.maps.flatten(2).amax(2)
    carried = exam.faces.carried
    auroc = torch.full((peak.shape[1], len(PAPER.local)), 0.5, dtype=torch.float64)
    z = torch.full_like(auroc, -torch.inf)
    for kind in range(len(PAPER.kinds)):
        rows = exam.faces.source == kind
        for c in (c for c in range(len(PAPER.local)) if PAPER.concept_kind[c] == kind):
            if carried[rows, c].any() and not carried[rows, c].all():
                auroc[:, c], z[:, c] = _mann_whitney(peak[rows], carried[rows, c])
    first = z.argmax(1)
    p = torch.special.ndtr(-z.amax(1)) * len(PAPER.local)
    passed = _benjamini_hochberg(p)
    named = torch.zeros_like(z, dtype=torch.bool)
    named[passed, first[passed]] = True
    groups = []
    for k, concept in enumerate(PAPER.global_):
        rows = exam.faces.group[:, k] >= 0
        member = exam.faces.group[rows, k]
        tested = [
            _mann_whitney(peak[rows], member == g)[1]
            if (member == g).any()
            else torch.full((peak.shape[1],), -torch.inf)
            for g in range(len(concept.groups))
        ]
        groups.append(torch.stack(tested, dim=1))
    p_group = torch.special.ndtr(-torch.cat(groups, dim=1).double())
    paired = _benjamini_hochberg(p_group.flatten()).view(p_group.shape)
    return Verdict(torch.where(z.isfinite(), auroc, -torch.inf), named, _first(auroc, named), paired)


def _mann_whitney(peak: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
    """AUROC of members against others and its standardised value, corrected for ties, for each unit."""
    ranks = mid_ranks(peak)
    n, inside = len(member), int(member.sum())
    outside = n - inside
    u = ranks[member].sum(0) - inside * (inside + 1) / 2
    variance = ((ranks - (n + 1) / 2) ** 2).sum(0) * inside * outside / (n * (n - 1))
    centred = u - inside * outside / 2
    return u / (inside * outside), torch.where(variance > 0, centred / variance.clamp(min=1e-12).sqrt(), 0.0)


def _benjamini_hochberg(p: Tensor) -> Tensor:
    order = p.argsort()
    bar = LEVEL * torch.arange(1, len(p) + 1) / len(p)
    below = (p[order] <= bar).nonzero()
    passed = torch.zeros(len(p), dtype=torch.bool)
    if len(below):
        passed[order[: int(below[-1]) + 1]] = True
    return passed


def _first(ranked_by: Tensor, named: Tensor) -> Tensor:
    best = torch.where(named, ranked_by, -torch.inf).argmax(1)
    return torch.where(named.any(1), best, -1)


def above_chance(exam: Exam) -> Verdict:
    """Ours: associated, placed and learnt. The evidence is the weaker z-value, where fresh weights are exceeded."""
    evidence, live = _evidence(exam, exam.maps)
    fresh = _fresh(_Same(exam))
    found = defend(evidence, live, fresh, LEVEL)
    agreement = torch.nan_to_num(evidence["agreement"], nan=-1.0)
    weaker = torch.fmin(evidence["associated_z"], evidence["placed_z"])
    cannot_be_told = (found.associated < 0) & evidence["associated_auc"].isfinite()  # from other labels, or a group
    score = torch.where((found.learnt == 1) & ~cannot_be_told, torch.nan_to_num(weaker, nan=-torch.inf), -torch.inf)
    return Verdict(score, found.paired, _first(agreement, found.paired), found.groups)


def each_alone(exam: Exam) -> Verdict:
    """No rule, but about the most that one could find: every pair by itself, associated and placed, at the level.

    As if a pair were the only one asked about, of the only unit, and fresh weights and groups were no matter. What is
    not found so lacks the images that could tell it; what impostors gain says what the difference is for.
    """
    evidence, _ = _evidence(exam, exam.maps)
    p = upper_tail(torch.stack([evidence["associated_z"], evidence["placed_z"]]))
    named = (p.isnan() | (p <= LEVEL)).all(0) & ~p.isnan().all(0)
    agreement = torch.nan_to_num(evidence["agreement"], nan=-1.0)
    groups = upper_tail(evidence["group_z"]) <= LEVEL
    return Verdict(torch.where(named, agreement, -torch.inf), named, _first(agreement, named), groups)


@lru_cache(maxsize=1)
def _fresh(exam: _Same) -> dict[str, Tensor]:
    return learnt_null([_evidence(exam.it, maps) for maps in exam.it.fresh])


def _evidence(exam: Exam, maps: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    evidence = Evidence(exam.faces)
    for some, batch in exam.batches(maps):
        evidence.update(some, batch)
    values = maps.flatten(2)
    return evidence.compute(), values.amax(2).amax(0) > values.amin(2).amin(0)


CONTESTANTS: dict[str, Contestant] = {
    "released": by_area(RELEASED),
    "readme": by_area(README),
    "rank only": by_rank,
    "above_chance": above_chance,
    "each alone": each_alone,
}
RULES = tuple(name for name in CONTESTANTS if name != "each alone")
"""Those that somebody would use."""
