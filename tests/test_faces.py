"""Rendered faces: labels as asked for, pictures that change where masks say, nothing left to chance."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from lightning_hnd.concepts import PAPER
from lightning_hnd.rendering import RenderedFaces
from lightning_hnd.rendering.drawing import Window

PARTS = [c.name for c in PAPER.local if c.kind == "part"]
LOCAL = [c.name for c in PAPER.local if c.kind != "part"]
HAIR = ["5_o_Clock_Shadow", "Goatee", "Mustache"]


def grown(mask, pixels):
    return functional.max_pool2d(mask.float(), 2 * pixels + 1, 1, pixels) > 0


def label(faces, name):
    values = faces.groups(name) if name in ("age", "gender", "skin_tone") else faces.carries([name])[:, 0]
    return values.double()


def correlation(faces, first, second):
    return float(torch.corrcoef(torch.stack([label(faces, first), label(faces, second)]))[0, 1])


# ------------------------------------------------------------------------------------------------- what concepts change


@pytest.mark.parametrize("concept", LOCAL)
def test_a_concept_shows_inside_its_mask_and_nowhere_else(concept):
    faces = RenderedFaces.sample(12, seed=5)
    for size in (64, (130, 110)):
        present, mask = faces.replace(**{concept: True}).draw(size, [concept])
        absent, same_mask = faces.replace(**{concept: False}).draw(size, [concept])
        assert torch.equal(mask, same_mask)
        changed = (present != absent).any(1)
        assert not (changed & ~grown(mask, 2)[:, 0]).any()
        assert (changed & mask[:, 0]).flatten(1).any(1).all()
        # nor is the mask wastefully large: a good part of it changes (of a beard, what a neck or a hat would hide not)
        assert (changed & mask[:, 0]).sum() > 0.3 * mask.sum()


def test_the_check_of_places_can_fail():
    faces = RenderedFaces.sample(4, seed=5)
    present, absent = (faces.replace(Smiling=value).draw(64)[0] for value in (True, False))
    elsewhere = faces.draw(64, ["AU_1"])[1]
    assert ((present != absent).any(1) & ~grown(elsewhere, 2)[:, 0]).any()


@pytest.mark.parametrize("name", ["age", "gender", "skin_tone"])
def test_groups_change_the_picture(name):
    faces = RenderedFaces.sample(8, seed=2)
    groups = next(c.groups for c in PAPER.global_ if c.name == name)
    drawn = [faces.replace(**{name: group}).draw(64)[0].float() for group in groups]
    for first, second in pairwise(drawn):
        difference = (first - second).abs().flatten(1)
        assert (difference.amax(1) > 20).all()
        assert difference.mean() > 0.5


def test_skin_tones_are_bright_and_dark():
    faces = RenderedFaces.sample(40, seed=3)
    images, masks = faces.draw(96, ["left_cheek", "right_cheek"])
    cheek = (images.float().mean(1) * masks.any(1)).sum((1, 2)) / masks.any(1).sum((1, 2))
    dark = faces.groups("skin_tone") == 1
    assert cheek[~dark].mean() > 1.4 * cheek[dark].mean()


# --------------------------------------------------------------------------------------------------------------- masks


def test_parts_lie_where_a_face_has_them():
    faces = RenderedFaces.sample(60, seed=1)
    _, masks = faces.draw(128, PARTS)
    assert masks.flatten(2).any(2).all()
    grid = torch.arange(128.0)
    area = masks.sum((2, 3))
    x = (masks.sum(2) * grid).sum(2) / area
    y = (masks.sum(3) * grid).sum(2) / area
    at = {name: (x[:, i], y[:, i]) for i, name in enumerate(PARTS)}
    for part in ("brow", "eye", "cheek"):
        assert (at[f"left_{part}"][0] < at[f"right_{part}"][0]).all()
    assert (at["left_brow"][1] + at["right_brow"][1] < at["left_eye"][1] + at["right_eye"][1]).all()
    assert (at["left_eye"][1] + at["right_eye"][1] < 2 * at["nose"][1]).all()
    assert (at["nose"][1] < at["mouth"][1]).all()
    # place in the frame predicts little
    assert (x.std(0) > 12.8).all()
    assert (y.std(0) > 12.8).all()


def test_parts_do_not_overlap():
    _, masks = RenderedFaces.sample(30, seed=4).draw(96, PARTS)
    assert masks.sum(1).max() == 1


def test_masks_scale_with_the_picture():
    faces = RenderedFaces.sample(6, seed=7)
    names = [*PARTS, *LOCAL]
    small, large = (faces.draw(size, names)[1].float() for size in (64, 192))
    shrunk = functional.avg_pool2d(large, 3) > 0.5
    union = (small.bool() | shrunk).sum((0, 2, 3))
    # edges fade over pixels, so masks of small pictures reach further: what differs is their border
    border = (grown(shrunk, 2) & ~shrunk).sum((0, 2, 3))
    assert ((small.bool() ^ shrunk).sum((0, 2, 3)) <= border).all()
    assert (union > 0).all()


def test_windows_hold_all_that_is_drawn(monkeypatch):
    faces = RenderedFaces.sample(8, seed=9)
    names = [*PARTS, *LOCAL]
    images, masks = faces.draw((80, 96), names)
    around = Window.around
    monkeypatch.setattr(Window, "around", lambda pose, within, centre, half: around(pose, within, (0, 0), (9, 9)))
    other_images, other_masks = faces.draw((80, 96), names)
    assert torch.equal(images, other_images)
    assert torch.equal(masks, other_masks)


# -------------------------------------------------------------------------------------------------------- determinism


def test_the_seed_decides_everything():
    before = torch.random.get_rng_state()
    first, again, other = (RenderedFaces.sample(20, seed=seed) for seed in (3, 3, 4))
    images, masks = first.draw(48, LOCAL)
    torch.rand(5)
    torch.random.set_rng_state(before)
    assert all(torch.equal(a, b) for a, b in zip((images, masks), again.draw(48, LOCAL), strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(images, other.draw(48)[0])


def test_a_subset_is_drawn_as_in_the_whole(monkeypatch):
    faces = RenderedFaces.sample(23, seed=3)
    images, masks = faces.draw(64, LOCAL)
    index = torch.tensor([20, 3, 7])
    monkeypatch.setattr("lightning_hnd.rendering.faces._PIXELS", 5000)  # one face at a time
    some_images, some_masks = faces[index].draw(64, LOCAL)
    assert torch.equal(some_images, images[index])
    assert torch.equal(some_masks, masks[index])
    assert len(faces[2:5]) == 3
    assert torch.equal(faces[2:5].draw(64)[0], images[2:5])


def test_saved_faces_come_back(tmp_path):
    faces = RenderedFaces.sample(5, seed=8)
    faces.save(tmp_path / "faces.npz")
    again = RenderedFaces.load(tmp_path / "faces.npz")
    assert torch.equal(again.draw(32)[0], faces.draw(32)[0])
    torch.save({"a": 1}, tmp_path / "other.npz")
    with pytest.raises((ValueError, KeyError)):
        RenderedFaces.load(tmp_path / "other.npz")


# -------------------------------------------------------------------------------------------------------------- labels


def test_probabilities_and_correlations_come_out_as_asked():
    wanted = {("Eyeglasses", "gender"): 0.7, ("Goatee", "skin_tone"): -0.25, ("No_Beard", "skin_tone"): 0.3}
    wanted |= {("age", "Bags_Under_Eyes"): 0.4, ("Goatee", "Mustache"): 0.5, ("AU_1", "AU_4"): 0.0}
    chances = {"Eyeglasses": 0.4, "AU_1": 0.1, "gender": (0.6, 0.4), "age": (0.1, 0.4, 0.3, 0.2), "Goatee": 0.3}
    n = 20_000
    faces = RenderedFaces.sample(n, seed=1, probabilities=chances, correlations=wanted)
    for pair, value in wanted.items():
        assert correlation(faces, *pair) == pytest.approx(value, abs=4 / math.sqrt(n))
    for name, chance in chances.items():
        if name in LOCAL:
            assert label(faces, name).mean() == pytest.approx(chance, abs=0.02)
        else:
            shares = torch.bincount(faces.groups(name)) / n
            assert shares.tolist() == pytest.approx(chance, abs=0.02)
    plain = RenderedFaces.sample(n, seed=1)
    assert abs(correlation(plain, "Eyeglasses", "gender")) < 4 / math.sqrt(n)
    assert correlation(plain, "Goatee", "No_Beard") < -0.3  # they exclude each other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probabilities": {"Eyeglases": 0.5}}, "did you mean Eyeglasses"),
        ({"probabilities": {"tattoo": 0.5}}, "there are AU_1"),
        ({"probabilities": {"Smiling": 1.5}}, "0..1"),
        ({"probabilities": {"age": [0.5, 0.5]}}, "zero_to_twenty"),
        ({"probabilities": {"No_Beard": 0.9, "Goatee": 0.2}}, "exclude each other"),
        ({"correlations": {("Smiling", "ethnicity"): 0.5}}, "no label 'ethnicity'"),
        ({"correlations": {("Smiling", "Smiling"): 1.0}}, "of two labels"),
        ({"correlations": {("AU_1", "AU_2"): 0.1, ("AU_2", "AU_1"): 0.1}}, "given twice"),
        ({"correlations": {("Goatee", "No_Beard"): 0.1}}, "exclude each other"),
        ({"probabilities": {"AU_1": 0.05, "AU_2": 0.5}, "correlations": {("AU_1", "AU_2"): 0.9}}, "cannot correlate"),
        ({"correlations": {("AU_1", "AU_2"): 0.8, ("AU_2", "AU_4"): 0.8, ("AU_1", "AU_4"): -0.5}}, "contradict"),
    ],
)
def test_what_cannot_be_sampled_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        RenderedFaces.sample(10, **arguments)


def test_no_beard_means_no_facial_hair():
    faces = RenderedFaces.sample(500, seed=2)
    none = faces.carries(["No_Beard"])[:, 0]
    hair = faces.carries(HAIR).any(1)
    assert none.any()
    assert (hair & ~none).any()
    assert not (hair & none).any()
    assert (~hair & ~none).any()  # full beards
    shaved = faces.replace(No_Beard=True)
    assert shaved.carries(["No_Beard"]).all()
    assert not shaved.carries(HAIR).any()
    assert not faces.replace(No_Beard=False).carries(["No_Beard"]).any()
    assert not shaved.replace(Goatee=True).carries(["No_Beard"]).any()
    assert shaved.replace(Goatee=True).replace(Goatee=False).carries(["No_Beard"]).all()
    with pytest.raises(ValueError, match="No_Beard excludes"):
        faces.replace(No_Beard=True, Mustache=True)


def test_replace_changes_what_it_is_told_and_leaves_the_rest():
    faces = RenderedFaces.sample(30, seed=6)
    some = torch.arange(30) % 2 == 0
    changed = faces.replace(Smiling=some, gender="Female", **{"5_o_Clock_Shadow": True})
    assert torch.equal(changed.carries(["Smiling"])[:, 0], some)
    assert (changed.groups("gender") == 1).all()
    rest = [name for name in LOCAL if name not in ("Smiling", "5_o_Clock_Shadow", "No_Beard")]
    assert torch.equal(changed.carries(rest), faces.carries(rest))
    assert torch.equal(changed.groups("age"), faces.groups("age"))
    assert changed.carries(PARTS).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Smile": True}, "no label 'Smile'"),
        ({"nose": True}, "no label 'nose'"),
        ({"Smiling": 0.5}, "True, False"),
        ({"Smiling": torch.ones(7, dtype=torch.bool)}, "3 values"),
        ({"gender": "female"}, "Male, Female"),
        ({"age": 4}, "0..3"),
    ],
)
def test_replace_refuses_what_it_cannot_do(changes, message):
    with pytest.raises(ValueError, match=message):
        RenderedFaces.sample(3).replace(**changes)


def test_draw_refuses_unknown_concepts_and_sizes():
    faces = RenderedFaces.sample(2)
    with pytest.raises(KeyError, match="no local concept"):
        faces.draw(32, ["Ears"])
    with pytest.raises(ValueError, match="positive"):
        faces.draw((0, 32))
    with pytest.raises(ValueError, match="age, gender, skin_tone"):
        faces.groups("ethnicity")


@pytest.mark.parametrize("size", [1, 7, (20, 50), (50, 20)])
def test_any_size_can_be_drawn(size):
    images, masks = RenderedFaces.sample(3).draw(size, LOCAL + PARTS)
    height, width = (size, size) if isinstance(size, int) else size
    assert images.shape == (3, 3, height, width)
    assert masks.shape == (3, 38, height, width)
    none = RenderedFaces.sample(0).draw(size, PARTS)
    assert none[0].shape == (0, 3, height, width)


def test_place_in_the_picture_predicts_little():
    _, masks = RenderedFaces.sample(400, seed=9).draw(64, PARTS)
    masks, place = masks.double(), (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    area = masks.sum((2, 3))
    seen = area.min(1).values > 0  # a part beyond the picture has no place
    assert seen.double().mean() > 0.9
    centre = torch.stack([(masks.sum(axis) * place).sum(2) / area for axis in (2, 3)])[:, seen]
    assert (centre.std(1) > 0.1).all(), centre.std(1)
