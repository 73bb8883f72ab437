"""The paper's ontology as data, and others."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from lightning_hnd import PAPER, Concept, GlobalConcept, Ontology
from lightning_hnd.functional import pair_groups


def test_the_papers_ontology() -> None:
    assert Counter(c.kind for c in PAPER.local) == {"action_unit": 12, "part": 8, "attribute": 18}
    assert Counter(c.region for c in PAPER.local) == {"Eye": 12, "Cheek": 8, "Nose": 4, "Mouth": 10, "Chin": 4}
    assert [(c.name, len(c.groups)) for c in PAPER.global_] == [
        ("age", 4),
        ("gender", 2),
        ("ethnicity", 4),
        ("skin_tone", 2),
    ]
    assert PAPER.local[PAPER.concept_index("AU_1")].region == "Eye"
    assert PAPER.local[PAPER.concept_index("AU_12")].region == "Mouth"


def test_margins_over_chance() -> None:
    assert [c.times_chance for c in PAPER.global_] == [1.2, 1.1, 1.2, 1.1]
    assert GlobalConcept("hair", ("fair", "dark", "red"), margin=1.5).times_chance == 1.5


def test_bars_follow_the_groups_that_are_shown() -> None:
    probability = torch.tensor([[0.31, 0.39, 0.30, 0.0]])
    four, three = torch.tensor([5, 5, 5, 5]), torch.tensor([5, 5, 5, 0])
    assert pair_groups(probability, four, 1.2).tolist() == [[True, True, False, False]]  # 0.30
    assert pair_groups(probability, three, 1.2).tolist() == [[False, False, False, False]]  # 0.40
    assert not pair_groups(probability, torch.tensor([5, 0, 0, 0]), 1.2).any()


def test_plain_data_and_back() -> None:
    assert Ontology.from_dict(PAPER.to_dict()) == PAPER


def test_mistakes_are_named() -> None:
    with pytest.raises(KeyError, match="no local concept 'Smilling'; did you mean Smiling"):
        PAPER.concept_index("Smilling")
    with pytest.raises(KeyError, match="no global concept 'mood'"):
        PAPER.global_index("mood")
    with pytest.raises(ValueError, match="concept 'nose' is listed twice"):
        Ontology((Concept("nose", "part", "Nose"), Concept("nose", "attribute", "Nose")))
    with pytest.raises(ValueError, match="concept 'beard' is listed twice"):  # labels_of could not tell them apart
        Ontology((Concept("beard", "attribute", "Chin"),), (GlobalConcept("beard", ("none", "full")),))
    with pytest.raises(ValueError, match="needs at least two"):
        GlobalConcept("age", ("any",))
