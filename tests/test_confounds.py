"""Cross-tables of labels, and the datacard that says where a dictionary comes from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_dictionary

from lightning_hnd import Dissection, FaceDictionary, dissect
from lightning_hnd.dictionary.confounds import CrossTable, cross_tables
from lightning_hnd.dictionary.datacard import read_datacard


def table(counts: list[list[int]]) -> CrossTable:
    rows, columns = np.shape(counts)
    return CrossTable("a", "b", tuple("abcdef"[:rows]), tuple("uvwxyz"[:columns]), np.array(counts))


def test_strength_is_cramers_v() -> None:
    assert table([[50, 0], [0, 50]]).strength == pytest.approx(1, abs=0.02)
    assert table([[25, 25], [25, 25]]).strength == 0
    # 2 x 2 in closed form: V = |ad - bc| / sqrt of the margins' product; the correction is small at this size
    a, b, c, d = 3000, 1000, 1500, 2500
    phi = (a * d - b * c) / np.sqrt((a + b) * (c + d) * (a + c) * (b + d))
    assert table([[a, b], [c, d]]).strength == pytest.approx(phi, abs=1e-3)
    assert table([[5, 5], [0, 0]]).strength == 0


def test_chance_alone_is_no_confound() -> None:
    rng = np.random.default_rng(0)
    strengths = [table(rng.multinomial(60, np.full(16, 1 / 16)).reshape(4, 4).tolist()).strength for _ in range(200)]
    assert np.mean([s >= 0.3 for s in strengths]) < 0.01


def test_tables_count_what_is_known() -> None:
    dictionary = random_dictionary(images=48)
    labels = [{"mood": "glad" if i % 2 else "sad", "ita_degrees": str(i), "age": str(i)} for i in range(48)]
    labels[40] = {}
    dictionary = replace(dictionary, labels=tuple(labels))
    tables = {(t.concept, t.label): t for t in cross_tables(dictionary)}
    gender = tables["gender", "mood"]  # groups alternate as the moods do
    assert (gender.rows, gender.columns) == (("Male", "Female"), ("glad", "sad"))
    assert gender.counts.tolist() == [[0, 7], [8, 0]]
    assert gender.doubtful
    assert ("age", "age") not in tables
    for (concept, label), found in tables.items():
        if {concept, label} <= {c.name for c in dictionary.ontology.local}:
            mine = {
                name: dictionary.mask_image[dictionary.mask_concept == dictionary.ontology.concept_index(name)].tolist()
                for name in (concept, label)
            }
            assert found.counts[0, 0] == len(set(mine[concept]) & set(mine[label]))


def test_groups_are_completed_from_labels(folder: Path) -> None:
    faces = FaceDictionary.from_folder(folder, size=8)
    age = [{"age": "zero_to_twenty"} if "Female" in name else {"age": "sixty_plus"} for name in faces.names]
    tables = cross_tables(replace(faces, labels=tuple(age)))
    found = next(t for t in tables if (t.concept, t.label) == ("gender", "age"))
    assert found.counts.tolist() == [[0, 0, 0, 1], [1, 0, 0, 0]]


def test_the_datacard_travels_into_every_dissection(folder: Path, tmp_path: Path) -> None:
    (folder / "datacard.json").write_text(json.dumps({"seed": 3, "sources": [{"name": "größer"}]}), encoding="utf-8")
    faces = FaceDictionary.from_folder(folder, size=16)
    assert faces.datacard["seed"] == 3
    assert faces.subset([0, 1]).datacard == faces.datacard
    dissect(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)), faces, layers="0").save(tmp_path / "one.hnd")
    info = Dissection.load(tmp_path / "one.hnd").info
    assert json.loads(str(info["datacard"])) == faces.datacard
    faces.subset([0, 1]).to_folder(tmp_path / "again")
    assert read_datacard(tmp_path / "again") == {
        "origin": f"2 images of {faces.origin}",
        "images": 2,
        "of": faces.datacard,
    }


@pytest.mark.parametrize(("text", "says"), [("{", "as JSON"), ("[1]", "JSON object"), (" " * 2**20 + "{}", "bytes")])
def test_a_bad_datacard_is_named(folder: Path, text: str, says: str) -> None:
    (folder / "datacard.json").write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        FaceDictionary.from_folder(folder, size=8)
    assert "datacard.json" in str(caught.value)
