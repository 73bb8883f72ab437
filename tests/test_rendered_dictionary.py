"""The built-in dictionary of rendered faces, as a dictionary (the drawing itself is tested in test_faces.py)."""

from __future__ import annotations

import pytest
import torch

from lightning_hnd import PAPER, FaceDictionary


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
