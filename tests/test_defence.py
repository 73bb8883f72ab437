"""Verdicts from given statistics."""

from __future__ import annotations

import torch

from lightning_hnd.functional.defence import defend

UNITS, PARTS, CONCEPTS = 60, 12, 20


def statistics(associated: torch.Tensor, placed: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of parts, which have no absence, then of concepts: z-values ``[U, C]``; no group."""
    none = torch.full((len(placed), PARTS), torch.nan, dtype=torch.float64)
    z = torch.cat([none, associated.double()], dim=1)
    return {
        "associated_z": z,
        "associated_auc": torch.where(z.isnan(), torch.nan, 0.5),
        "placed_z": placed.double(),
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
    assert torch.equal(found.paired, (found.associated != 0) & (found.placed == 1))
    assert torch.equal(found.paired[:, PARTS], torch.arange(UNITS) < 3)


def test_neither_question_alone_makes_a_pair() -> None:
    live = torch.ones(UNITS, dtype=torch.bool)
    sure, nothing = torch.full((UNITS, CONCEPTS), 12.0), torch.zeros(UNITS, CONCEPTS)
    no_parts = torch.zeros(UNITS, PARTS)
    for associated, placed in ((sure, nothing), (nothing, sure)):
        found = defend(statistics(associated, torch.cat([no_parts, placed], dim=1)), live)
        assert not found.paired.any()
    assert defend(statistics(sure, torch.cat([no_parts, sure], dim=1)), live).paired[:, PARTS:].all()
