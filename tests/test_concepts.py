"""The paper's ontology as data, and others."""

from __future__ import annotations

from collections import Counter

import pytest

from lightning_hnd import PAPER, Concept, GlobalConcept, Ontology


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


def test_bars_over_chance() -> None:
    age, gender = PAPER.global_[0], PAPER.global_[1]
    assert age.bar(4) == pytest.approx(0.30)
    assert gender.bar(2) == pytest.approx(0.55)
    assert age.bar(3) == pytest.approx(0.40)  # where the dictionary shows three of the four
    assert GlobalConcept("hair", ("fair", "dark", "red"), margin=1.5).bar(3) == pytest.approx(0.5)


def test_plain_data_and_back() -> None:
    assert Ontology.from_dict(PAPER.to_dict()) == PAPER


def test_mistakes_are_named() -> None:
    with pytest.raises(KeyError, match="no local concept 'Smilling'; did you mean one of Smiling"):
        PAPER.concept_index("Smilling")
    with pytest.raises(KeyError, match="no global concept 'mood'"):
        PAPER.global_index("mood")
    with pytest.raises(ValueError, match="local concept 'nose' is listed twice"):
        Ontology((Concept("nose", "part", "Nose"), Concept("nose", "attribute", "Nose")))
    with pytest.raises(ValueError, match="needs at least two"):
        GlobalConcept("age", ("any",))
