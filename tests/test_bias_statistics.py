"""Measures of bias in a dissection: the same as those of peaks gathered by hand, whatever the way through the units."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lightning_hnd import FaceDictionary, dissect
from lightning_hnd.concepts import PAPER, Ontology
from lightning_hnd.functional.bias import encoding, labelled, shortcut
from lightning_hnd.measuring.bias import BiasStatistics

FACES = FaceDictionary.rendered(size=32, images=320, seed=3)
NAMES = PAPER.labels


def carried(faces: FaceDictionary) -> Tensor:
    result = torch.zeros(len(faces), len(faces.ontology.local), dtype=torch.bool)
    result[faces.mask_image, faces.mask_concept] = True
    return result


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 10, 5, 2), nn.ReLU(), nn.Conv2d(10, 12, 3, 2), nn.ReLU())


def test_a_dissection_holds_the_measures_of_its_peaks() -> None:
    model = network()
    found = dissect(model, FACES, layers="3")["3"].statistics
    with torch.no_grad():
        peak = model(FACES.images(slice(0, len(FACES)))).amax((2, 3))
    attribute = FACES.source == PAPER.kinds.index("attribute")
    own = [c for c, kind in enumerate(PAPER.concept_kind) if kind == PAPER.kinds.index("attribute")]
    cues = labelled(peak[attribute], carried(FACES)[attribute][:, own], torch.arange(len(own)))
    shown = FACES.group[:, PAPER.global_index("gender")] >= 0
    known = [k for k, concept in enumerate(PAPER.global_) if concept.name != "ethnicity"]
    member = [FACES.group[shown, k, None] == torch.arange(len(PAPER.global_[k].groups)) for k in known]
    concept = torch.cat([torch.full((m.shape[1],), k) for k, m in enumerate(member)])
    groups = labelled(peak[shown], torch.cat(member, dim=1), concept)
    of_gender = (concept == known.index(PAPER.global_index("gender"))).nonzero().flatten()
    task = groups._replace(contrast=groups.contrast[:, of_gender])
    measured = shortcut(task, cues)
    rows = [NAMES.index("gender/Male"), NAMES.index("gender/Female")]
    for name, value in vars(measured).items():
        np.testing.assert_allclose(found[f"shortcut_{name}"][np.ix_(rows, own)], value, atol=1e-9)
    strength = encoding(task, torch.tensor(~found["dead"]))
    for name in ("index", "low", "high", "p"):
        np.testing.assert_allclose(
            found[f"encoding_{name}"][PAPER.global_index("gender")], getattr(strength, name), atol=1e-9
        )


def test_what_the_dictionary_cannot_tell_is_nan_and_nothing_else() -> None:
    found = dissect(network(), FACES, layers="3")["3"].statistics
    nan = np.isnan(found["shortcut_z"])
    parts = [NAMES.index(c.name) for c in PAPER.local if c.kind == "part"]
    assert nan[parts].all()  # every face has them
    assert nan.diagonal().all()
    assert nan[NAMES.index("gender/Male"), NAMES.index("gender/Female")]
    assert not nan[NAMES.index("gender/Male"), NAMES.index("Eyeglasses")]
    assert not nan[NAMES.index("Smiling"), NAMES.index("skin_tone/dark")]
    assert not nan[NAMES.index("gender/Male"), NAMES.index("age/sixty_plus")]
    assert nan[:, [i for i, name in enumerate(NAMES) if name.startswith("ethnicity")]].all()
    np.testing.assert_allclose(found["shortcut_z"], found["shortcut_z"].T, atol=1e-9)
    assert np.nanmax(np.abs(found["shortcut_index"])) <= 1


def test_what_labels_csv_knows_is_held_fixed(tmp_path: Path) -> None:
    """In a folder each face has one group, and the others in ``labels.csv``; in memory it has all of them."""
    FACES.to_folder(tmp_path / "faces")
    of_folder = FaceDictionary.from_folder(tmp_path / "faces", FACES.size)
    model = network()
    in_memory, read = (dissect(model, faces, layers="3", level=None)["3"].statistics for faces in (FACES, of_folder))
    for name in ("index", "error", "z"):
        np.testing.assert_allclose(read[f"shortcut_{name}"], in_memory[f"shortcut_{name}"], atol=1e-9, err_msg=name)
    np.testing.assert_allclose(read["encoding_lean"], in_memory["encoding_lean"], atol=1e-9)
    unlabelled = dataclasses.replace(of_folder, labels=({},) * len(of_folder))
    other = dissect(model, unlabelled, layers="3", level=None)["3"].statistics
    assert np.nanmax(np.abs(other["encoding_lean"] - in_memory["encoding_lean"])) > 0.005
    assert unlabelled.fingerprint != of_folder.fingerprint


def test_units_may_come_in_blocks() -> None:
    peak = torch.rand(len(FACES), 9, generator=torch.Generator().manual_seed(0))
    whole, parts = (BiasStatistics(PAPER, FACES.source, FACES.group, carried(FACES), FACES.known) for _ in range(2))
    whole.update(peak)
    for part in peak.split(4, dim=1):
        parts.update(part)
    for name, value in whole.compute(9).items():
        torch.testing.assert_close(parts.compute(9)[name], value, equal_nan=True, msg=name)


def test_an_ontology_of_one_kind_only() -> None:
    for ontology in (Ontology(PAPER.local, ()), Ontology((), PAPER.global_)):
        bias = BiasStatistics(
            ontology,
            torch.full((40,), -1 if not ontology.local else 0),
            torch.zeros(40, len(ontology.global_), dtype=torch.int64),
            torch.rand(40, len(ontology.local), generator=torch.Generator().manual_seed(0)) < 0.5,
            torch.zeros(40, len(ontology.global_), dtype=torch.int64),
        )
        bias.update(torch.rand(40, 3))
        found = bias.compute(3)
        assert found["encoding_index"].shape == (len(ontology.global_),)
        assert found["shortcut_index"].shape == (len(ontology.labels),) * 2
