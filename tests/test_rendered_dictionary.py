"""The built-in dictionary of rendered faces, as a dictionary (the drawing itself is tested in test_faces.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_hnd import PAPER, FaceDictionary
from lightning_hnd.report import contact_sheet


@pytest.fixture(scope="module")
def faces() -> FaceDictionary:
    return FaceDictionary.rendered(size=(40, 48), images=160, seed=1)


def test_each_face_is_labelled_in_one_kind_or_in_groups(faces: FaceDictionary) -> None:
    assert faces.drawn
    assert faces.size == (40, 48)
    local = faces.source >= 0
    assert int(local.sum()) == 80
    assert set(faces.source[local].tolist()) == {0, 1, 2}
    kind = torch.tensor(PAPER.concept_kind)
    assert torch.equal(kind[faces.mask_concept], faces.source[faces.mask_image])
    known = faces.group >= 0
    drawn = torch.tensor([c.name != "ethnicity" for c in PAPER.global_])
    assert torch.equal(known, ~local[:, None] & drawn)


def test_part_faces_carry_all_parts_and_no_concept_is_everywhere(faces: FaceDictionary) -> None:
    per_kind = torch.bincount(faces.source[faces.source >= 0], minlength=3)
    for concept, count in zip(PAPER.local, faces.images_per_concept, strict=True):
        images = int(per_kind[PAPER.kinds.index(concept.kind)])
        if concept.kind == "part":
            assert count == images
        else:
            assert 0 < count < images, concept.name
    assert min(faces.images_per_group[:6]) > 0


def test_a_seed_gives_the_same_faces_and_another_one_others(faces: FaceDictionary) -> None:
    again = FaceDictionary.rendered(size=(40, 48), images=160, seed=1)
    assert again.fingerprint == faces.fingerprint
    assert FaceDictionary.rendered(size=(40, 48), images=160, seed=2).fingerprint != faces.fingerprint


def test_grey_is_the_luminance_of_the_same_faces(faces: FaceDictionary) -> None:
    grey = FaceDictionary.rendered(size=(40, 48), images=160, seed=1, channels=1)
    luminance = (faces.pictures.double() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    assert (grey.pictures[:, 0] - luminance).abs().max() < 0.5001
    assert torch.equal(grey.masks.bits, faces.masks.bits)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="images=4 is too few"):
        FaceDictionary.rendered(images=4)


def test_labels_of_faces_with_local_labels_are_written_too(tmp_path: Path) -> None:
    faces = FaceDictionary.rendered(size=16, images=16)
    told = replace(faces, labels=tuple({"gender": "Male" if i % 2 else "Female"} for i in range(16)))
    told.to_folder(tmp_path / "faces")
    again = FaceDictionary.from_folder(tmp_path / "faces", size=16)
    read = {Path(name).parent.name: known["gender"] for name, known in zip(again.names, again.labels, strict=True)}
    local = {int(name): gender for name, gender in read.items() if name.isdigit()}
    assert local == {i: told.labels[i]["gender"] for i in (faces.source >= 0).nonzero().flatten().tolist()}


def test_written_out_in_the_released_layout_and_read_again(faces: FaceDictionary, tmp_path: Path) -> None:
    faces.to_folder(tmp_path / "faces")
    again = FaceDictionary.from_folder(tmp_path / "faces", size=(40, 48))
    local = (faces.source >= 0).nonzero().flatten()
    assert again.num_local == len(local)
    original = {int(Path(name).parent.name): i for i, name in enumerate(again.names) if name.endswith("original.png")}
    order = torch.tensor([original[i] for i in local.tolist()])
    assert torch.equal(again.pictures[order], faces.pictures[local])
    assert torch.equal(again.source[order], faces.source[local])
    assert again.images_per_concept == faces.images_per_concept
    assert again.images_per_group == faces.images_per_group
    truth, read = faces.subset(local), again.subset(order)
    assert torch.equal(truth.masks.bits, read.masks.bits)
    assert torch.equal(truth.mask_concept, read.mask_concept)
    labelled = dict(zip(again.names, again.labels, strict=True))
    i = int((faces.source < 0).nonzero()[0])
    age, gender = (PAPER.global_[k].groups[int(faces.group[i, k])] for k in (0, 1))
    copy = labelled[f"non_localizable/gender/{gender}/{i:06d}.png"]
    assert (copy["age"], copy["gender"]) == (age, gender)
    with pytest.raises(FileExistsError, match="exists already"):
        faces.to_folder(tmp_path / "faces")


def test_contact_sheets_show_faces_and_masks(faces: FaceDictionary) -> None:
    sheet = contact_sheet(faces, "nose", columns=4, rows=2)
    assert sheet.shape == (80, 192, 3)
    first = int((faces.mask_concept == PAPER.concept_index("nose")).nonzero()[0])
    face = faces.pictures[faces.mask_image[first]].permute(1, 2, 0).numpy()
    mask = faces.masks[first : first + 1].dense()[0].numpy()
    assert (sheet[:40, :48] == face).all()
    assert ((sheet[:40, 48:96] != face).any(-1) == mask).mean() > 0.999
    female = contact_sheet(faces, "gender/Female", columns=5, rows=1)
    assert (female[:, :48] == faces.pictures[faces.group[:, 1] == 1][0].permute(1, 2, 0).numpy()).all()
    with pytest.raises(ValueError, match="has no image of 'ethnicity/white'"):
        contact_sheet(faces, "ethnicity/white")
    with pytest.raises(KeyError, match="has no group 'Man'; it has Male, Female"):
        contact_sheet(faces, "gender/Man")
