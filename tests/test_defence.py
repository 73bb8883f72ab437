"""Verdicts from given statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_hnd.functional.defence import _maximum_test, defend, learnt_null

UNITS, PARTS, CONCEPTS = 60, 12, 20


def statistics(associated: torch.Tensor, placed: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of parts, which have no absence, then of concepts: z-values ``[U, C]``; no group."""
    none = torch.full((len(placed), PARTS), torch.nan, dtype=torch.float64)
    z = torch.cat([none, associated.double()], dim=1)
    return {
        "associated_z": z,
        "associated_auc": torch.where(z.isnan(), torch.nan, 0.5),
        "placed_z": placed.double(),
        "confound_ratio": torch.zeros_like(z),
        "confound_group": torch.full(z.shape, -1),
        "group_z": torch.zeros(len(placed), 0, dtype=torch.float64),
    }


def test_a_pair_has_survived_each_of_its_questions() -> None:
    """Units placed at all parts and concepts, of which a few are weakly associated with one concept."""
    generator = torch.Generator().manual_seed(0)
    associated = torch.randn(UNITS, CONCEPTS, generator=generator)
    associated[:3, 0] = 12
    associated[3:, 0] = 2.2  # p = 0.014: enough beside twelve parts that are sure, not by itself
    placed = torch.full((UNITS, PARTS + CONCEPTS), 12.0)
    found = defend(statistics(associated, placed), torch.ones(UNITS, dtype=torch.bool))
    assert found.paired[:, :PARTS].all()
    assert not (found.paired & ((found.associated == 0) | (found.placed != 1))).any()
    assert torch.equal(found.paired[:, PARTS], torch.arange(UNITS) < 3)


def test_neither_question_alone_makes_a_pair() -> None:
    live = torch.ones(UNITS, dtype=torch.bool)
    sure, nothing = torch.full((UNITS, CONCEPTS), 12.0), torch.zeros(UNITS, CONCEPTS)
    no_parts = torch.zeros(UNITS, PARTS)
    for associated, placed in ((sure, nothing), (nothing, sure)):
        found = defend(statistics(associated, torch.cat([no_parts, placed], dim=1)), live)
        assert not found.paired.any()
    assert defend(statistics(sure, torch.cat([no_parts, sure], dim=1)), live).paired[:, PARTS:].all()


def test_whether_it_has_a_place_is_asked_of_what_seems_associated_alone() -> None:
    """Twenty concepts and twelve parts do not make a place doubtful that one associated concept has."""
    generator = torch.Generator().manual_seed(1)
    associated = torch.randn(UNITS, CONCEPTS, generator=generator).clamp(max=1.5)
    placed = torch.randn(UNITS, PARTS + CONCEPTS, generator=generator).clamp(max=1.0)
    associated[:, 0], placed[:, PARTS] = 12.0, 2.5  # p = 0.006, and 0.2 once multiplied by all 32
    found = defend(statistics(associated, placed), torch.ones(UNITS, dtype=torch.bool))
    assert found.paired[:, PARTS].all()
    assert found.placed[:, PARTS].eq(1).all()  # what is paired has survived
    assert found.paired.sum() == UNITS


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_of_pairs_that_lack_either_answer_few_are_named(correlation: float) -> None:
    """Concepts associated without a place, placed without association, and neither, beside a few that are both."""
    generator = torch.Generator().manual_seed(2)

    def noise(columns: int) -> torch.Tensor:  # units are alike in part
        own, common = (torch.randn(n, columns, generator=generator) for n in (UNITS, 1))
        return (1 - correlation) ** 0.5 * own + correlation**0.5 * common

    associated_only, placed_only, both = slice(0, 6), slice(6, 12), slice(12, 13)
    shares, found = [], []
    for _ in range(400):
        associated, placed = noise(CONCEPTS), noise(PARTS + CONCEPTS)
        few = torch.rand(UNITS, CONCEPTS, generator=generator) < 0.3
        for shift, where in ((associated, (associated_only, both)), (placed[:, PARTS:], (placed_only, both))):
            for concepts in where:
                shift[:, concepts] += 5.0 * few[:, concepts]
        true = torch.zeros(UNITS, CONCEPTS, dtype=torch.bool)
        true[:, both] = few[:, both]
        named = defend(statistics(associated, placed), torch.ones(UNITS, dtype=torch.bool)).paired[:, PARTS:]
        selected = named.any(1)
        false = (named & ~true).sum(1)[selected] / named.sum(1)[selected]
        shares.append(float(false.sum()) / max(int(selected.sum()), 1))
        found.append(float((named & true).sum() / true.sum()))
    assert np.mean(shares) <= 0.05 + 3 * np.std(shares) / len(shares) ** 0.5
    assert np.mean(found) > 0.8


def test_units_that_groups_stand_behind_make_nothing_else_believed() -> None:
    """Where all units but a few go with a group, what is false stays a small part of what is named."""
    generator, shares = torch.Generator().manual_seed(3), []
    on_group, detectors = 100, 5
    for _ in range(40):
        associated = torch.randn(on_group + detectors, CONCEPTS, generator=generator)
        associated[:, 0] = 12
        none = torch.zeros(len(associated), PARTS)
        found = statistics(associated, torch.cat([none, torch.full(associated.shape, 12.0)], dim=1))
        found["confound_ratio"][:on_group, PARTS], found["confound_group"][:on_group, PARTS] = 2, 0
        verdict = defend(found, torch.ones(len(associated), dtype=torch.bool))
        assert verdict.confounding_group[:, PARTS].eq(0).tolist() == [True] * on_group + [False] * detectors
        assert verdict.associated[:, PARTS].tolist() == [-1] * on_group + [1] * detectors
        assert verdict.paired[on_group:, PARTS].all()
        named = verdict.paired[verdict.paired.any(1)].double()
        shares.append(float(1 - (named[:, PARTS] / named.sum(1)).mean()))
    assert sum(shares) / len(shares) < 0.05


def test_units_that_groups_stand_behind_make_nothing_else_learnt() -> None:
    """Of units that do what fresh weights do few are named, though many that go with a group do more."""
    generator = torch.Generator().manual_seed(4)
    on_group, detectors, random = 100, 5, 200

    def measured(units: int, beyond: float) -> dict[str, torch.Tensor]:
        sure = torch.full((units, 1), 12.0)
        effect = torch.randn(2, units, 1, generator=generator, dtype=torch.float64)
        effect[:, : on_group + detectors] += beyond
        return {
            **{name: value[:, -1:] for name, value in statistics(sure, sure.expand(-1, PARTS + 1)).items()},
            "group_z": torch.zeros(units, 0, dtype=torch.float64),
            "group_effect": torch.zeros(units, 0, dtype=torch.float64),
            "associated_effect": effect[0],
            "placed_effect": effect[1],
            "placed_correlation": torch.zeros(units, 1, 1),
            "placed_share": torch.ones(1, 1, dtype=torch.float64),
        }

    shares = []
    for _ in range(40):
        null = learnt_null([(measured(300, 0), torch.ones(300, dtype=torch.bool)) for _ in range(5)])
        found = measured(on_group + detectors + random, 8)
        found["confound_ratio"][:on_group], found["confound_group"][:on_group] = 2, 0
        verdict = defend(found, torch.ones(len(found["placed_z"]), dtype=torch.bool), null)
        assert verdict.confounding_group[:on_group].eq(0).all()
        assert verdict.learnt[: on_group + detectors].eq(1).all()
        assert verdict.paired[on_group : on_group + detectors].all()
        assert not verdict.paired[:on_group].any()
        shares.append(1 - detectors / int(verdict.paired.sum()))
    assert np.mean(shares) <= 0.05 + 3 * np.std(shares) / len(shares) ** 0.5


@pytest.mark.parametrize(("networks", "least"), [(5, 4), (20, 1)])
@pytest.mark.parametrize("units", [16, 2048])
def test_how_many_units_it_takes_for_any_to_have_learnt(networks: int, least: int, units: int) -> None:
    best_of_fresh, live = torch.linspace(0, 1, networks * units), torch.ones(units, dtype=torch.bool)
    for beyond in range(1, 7):
        excess = torch.full((units, 3), -1.0)
        excess[:beyond, 0] = 9.0
        assert int(_maximum_test(excess, live, best_of_fresh, 0.05).sum()) == (beyond if beyond >= least else 0)
