"""Areas of concepts by landmarks: exact against other ways to draw, and well placed against true masks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import landmarks_in

from lightning_hnd import PAPER
from lightning_hnd.building.drawing import Drawing, draw
from lightning_hnd.building.geometry import AREAS, areas, areas_of_faces
from lightning_hnd.building.landmarks import (
    MEAN_DEPTH,
    MEAN_FACE,
    MIRROR,
    MOST_UNLIKE,
    five_of,
    from_five,
    left_to_right,
    objection,
    unlikeness,
)
from lightning_hnd.building.shapes import PlacedFace, Points, Shape, ellipse, hull, mean, moved, polygon

REAL = Path(os.environ.get("HND_REAL_DATA", Path(__file__).parents[2] / "shared" / "real"))
SIZE = (120, 100)
NAMES = sorted(AREAS)
RIGHT = np.array([1.0, 0.0])


def face(seed: int = 0) -> Points:
    return landmarks_in(SIZE, seed)


def test_the_geometry_has_every_concept_of_the_paper() -> None:
    assert set(AREAS) == {concept.name for concept in PAPER.local}
    for shapes in AREAS.values():
        for shape in shapes:
            np.testing.assert_allclose(shape.weights.sum(1), 1)  # else a shape would not move with the face


def naive(shapes: tuple[Shape, ...], landmarks: Points, size: tuple[int, int], unit: float) -> np.ndarray:
    """Pixel by pixel: the winding angle about its centre, and the distance to every side."""
    mask = np.zeros(size, bool)
    for y in range(size[0]):
        for x in range(size[1]):
            for shape in shapes:
                outline = shape.outline(landmarks) - (x + 0.5, y + 0.5)
                ends = np.roll(outline, -1, axis=0)
                cross = outline[:, 0] * ends[:, 1] - outline[:, 1] * ends[:, 0]
                turns = np.arctan2(cross, (outline * ends).sum(1)).sum() / (2 * np.pi)
                way = ends - outline
                length = np.maximum((way**2).sum(1), 1e-30)
                share = np.clip(-(outline * way).sum(1) / length, 0, 1)
                distance = np.linalg.norm(outline + share[:, None] * way, axis=1).min()
                mask[y, x] |= round(turns) % 2 != 0 or (shape.grow > 0 and distance <= shape.grow * unit)
    return mask


@pytest.mark.parametrize("name", ["left_eye", "nose", "mouth", "Eyeglasses", "No_Beard", "AU_12", "right_brow"])
def test_areas_equal_the_naive_drawing(name: str) -> None:
    landmarks = landmarks_in((44, 40), 3)
    masks, hidden = areas(landmarks, (44, 40), [name])
    assert not hidden
    eyes = np.linalg.norm(landmarks[42:48].mean(0) - landmarks[36:42].mean(0))
    unit = max(eyes, 1.2 * np.linalg.norm(landmarks[33] - landmarks[27]))
    np.testing.assert_array_equal(masks[name], naive(AREAS[name], landmarks, (44, 40), unit))


def test_faces_that_are_drawn_together_are_drawn_as_each_alone() -> None:
    sizes = [SIZE, (44, 40), (240, 240), SIZE]
    wanted = [(landmarks_in(size, i) + np.array([0, 40 * (i == 2)]), size, NAMES) for i, size in enumerate(sizes)]
    wanted.insert(1, (np.zeros((68, 2)), SIZE, NAMES))
    together = areas_of_faces(wanted)
    assert "0.0 pixels apart" in together.pop(1)
    del wanted[1]
    for found, alone in zip(together, wanted, strict=True):
        masks, hidden = areas(*alone)
        assert (found[0].keys(), found[1]) == (masks.keys(), hidden)
        assert all((found[0][name] == masks[name]).all() for name in masks)


def test_shapes_in_closed_form() -> None:
    points = np.zeros((68, 2))
    points[:5] = [(10, 10), (30, 10), (30, 20), (10, 20), (20, 15)]
    points[36:42], points[42:48] = (10, 10), (30, 10)
    [(square, inside)] = draw([Drawing([polygon(0, 1, 2, 3)], PlacedFace(points, 20.0, RIGHT), (40, 40))])
    assert square.sum() == 200
    assert square[10:20, 10:30].all()
    assert inside == 1
    [(round_, _)] = draw(
        [
            Drawing(
                [ellipse(mean(4), along=moved(4, 4, 1, 1.0), across=moved(4, 1, 0, 0.25))],
                PlacedFace(points * 8, 160.0, RIGHT),
                (320, 320),
            )
        ]
    )
    assert round_.sum() == pytest.approx(np.pi * abs(np.linalg.det([[80, -40], [-40, 0]])), rel=0.01)
    [(same, _)] = draw([Drawing([hull(4, 3, 2, 1, 0)], PlacedFace(points, 20.0, RIGHT), (40, 40))])
    np.testing.assert_array_equal(same, square)
    [(_, inside)] = draw([Drawing([polygon(0, 1, 2, 3)], PlacedFace(points - (20, 0), 20.0, RIGHT), (40, 40))])
    assert inside == 0.5


@pytest.mark.parametrize("renumbered", [False, True])
def test_left_is_the_left_of_the_picture_also_in_a_mirrored_face(renumbered: bool) -> None:
    landmarks = face()
    mirrored = np.stack([SIZE[1] - landmarks[:, 0], landmarks[:, 1]], 1)
    masks, _ = areas(landmarks, SIZE, NAMES)
    flipped, hidden = areas(mirrored[MIRROR] if renumbered else mirrored, SIZE, NAMES)
    assert not hidden
    for name in NAMES:
        other = name.replace("left_", "RIGHT_").replace("right_", "left_").replace("RIGHT_", "right_")
        assert (flipped[name] != masks[other][:, ::-1]).sum() <= 2  # centres that lie on an outline
    assert masks["left_eye"].nonzero()[1].max() < masks["right_eye"].nonzero()[1].min()


def test_areas_follow_scale_and_turn() -> None:
    names = ["nose", "mouth", "left_cheek", "Goatee"]
    small, _ = areas(face(), SIZE, names)
    large, _ = areas(face() * 4, (SIZE[0] * 4, SIZE[1] * 4), names)
    for name in names:
        assert large[name].sum() == pytest.approx(16 * small[name].sum(), rel=0.15)


def turned(degrees: float, size: tuple[int, int] = (240, 240)) -> Points:
    """The mean face seen from a side: turned to the right of the picture by an angle."""
    turn, side = np.radians(degrees), size[0] / 4
    x = np.cos(turn) * MEAN_FACE[:, 0] + np.sin(turn) * MEAN_DEPTH
    return np.stack([x, MEAN_FACE[:, 1]], axis=1) * side + (size[1] / 2, size[0] * 0.4)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 20, 45, 75])
def test_what_the_nose_hides_of_a_turned_face_is_left_out(degrees: int, mirrored: bool) -> None:
    size = (240, 240)
    landmarks = turned(-degrees if mirrored else degrees)
    far, near = ("left", "right") if mirrored else ("right", "left")
    masks, reasons = areas(landmarks, size, NAMES)
    assert masks.keys() >= {f"{near}_cheek", f"{near}_eye", "Rosy_Cheeks"}  # of both cheeks one is enough
    assert masks.keys() == set(NAMES) - reasons.keys()
    hidden = {name for name, why in reasons.items() if why == f"{name} is hidden behind the nose"}
    assert hidden == {0: set(), 20: set(), 45: {f"{far}_cheek"}}.get(degrees, {f"{far}_cheek", f"{far}_eye"})
    ridge = landmarks[27:31]
    rows, columns = np.nonzero(masks["Rosy_Cheeks"])
    if f"{far}_cheek" in hidden:  # nothing of it remains beyond the nose, nor on it
        at = np.interp(rows + 0.5, ridge[:, 1], ridge[:, 0])
        assert (columns + 0.5 > at).all() if mirrored else (columns + 0.5 < at).all()
        near_only, _ = areas(landmarks, size, [f"{near}_cheek"])
        np.testing.assert_array_equal(masks["Rosy_Cheeks"], near_only[f"{near}_cheek"])


def test_a_cheek_that_is_hidden_in_part_ends_at_the_nose() -> None:
    """Counterfactual: the same cheek where no nose hides it is larger, by what lies across the ridge."""
    size, landmarks = (240, 240), turned(30)
    (shape,) = AREAS["right_cheek"]
    placed = PlacedFace.of(landmarks)
    (cut, _), (whole, _) = draw([Drawing([part], placed, size) for part in (shape, replace(shape, side=0))])
    assert (whole & ~cut).any()
    assert not (cut & ~whole).any()
    (x0, y0), (x1, y1) = landmarks[27], landmarks[30]
    line = x0 + (x1 - x0) * (np.nonzero(whole)[0] + 0.5 - y0) / (y1 - y0)
    np.testing.assert_array_equal(cut[whole], np.nonzero(whole)[1] + 0.5 >= line)


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_a_face_on_its_side_hides_nothing(angle: int) -> None:
    rotate = {90: [[0, 1], [-1, 0]], 180: [[-1, 0], [0, -1]], 270: [[0, -1], [1, 0]]}[angle]
    landmarks = (MEAN_FACE - MEAN_FACE.mean(0)) @ np.array(rotate) * 50 + 120
    masks, hidden = areas(landmarks, (240, 240), NAMES)
    assert not hidden
    upright, _ = areas((MEAN_FACE - MEAN_FACE.mean(0)) * 50 + 120, (240, 240), NAMES)
    for name in ("Rosy_Cheeks", "Eyeglasses", "Narrow_Eyes"):
        assert masks[name].sum() == pytest.approx(upright[name].sum(), rel=0.05)


def test_landmarks_without_the_shape_of_a_face_are_refused() -> None:
    """Every view of a face passes, whatever its size, place, expression; collapsed and scattered ones do not."""
    rng = np.random.default_rng(0)
    for degrees in (-80, -40, 0, 40, 80):
        assert unlikeness(turned(degrees)) < 1e-9
        assert unlikeness(turned(degrees) + rng.normal(size=(68, 2)) * 3) < MOST_UNLIKE  # 0.05 of the eyes' distance
    screaming = turned(60)
    screaming[[*range(4, 13), *range(55, 60), *range(65, 68)], 1] += 18  # 0.3 of the eyes' distance
    assert unlikeness(screaming) < MOST_UNLIKE
    clump = rng.normal(size=(68, 2)) * 8 + 120
    assert unlikeness(clump) > MOST_UNLIKE
    dots = turned(0)
    dots[17:] = dots[30] + (dots[17:] - dots[30]) * 0.3  # all parts in the middle of the jaw
    for points in (clump, dots):
        with pytest.raises(ValueError, match="not those of a face"):
            areas(points, (240, 240), ["nose"])


def test_a_face_in_profile_is_drawn_or_refused_but_never_breaks() -> None:
    for squeeze in (0.6, 0.3, 0.1, 0.0):
        landmarks = face()
        middle = landmarks[30, 0]
        far = landmarks[:, 0] > middle
        landmarks[far, 0] = middle + (landmarks[far, 0] - middle) * squeeze
        masks, hidden = areas(landmarks, SIZE, NAMES)
        assert masks.keys() | hidden.keys() == set(NAMES)
        assert not masks.keys() & hidden.keys()
        if squeeze == 0.6:
            assert masks["right_cheek"].sum() < masks["left_cheek"].sum()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: np.full_like(p, np.nan), "not all numbers"),
        (lambda p: np.zeros_like(p), "0.0 pixels apart"),
        (lambda p: p * 2, "another size"),
        (lambda p: p * 1e6, "outside of the 100 x 120 picture"),
        (lambda p: np.where(np.arange(68)[:, None] == 8, 1e7, p), "far outside"),
    ],
)
def test_landmarks_that_cannot_be_used_say_why(change, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        areas(change(face()), SIZE, ["No_Beard"])


def test_what_lies_outside_of_the_picture_is_told_from_what_is_in_it() -> None:
    masks, hidden = areas(face() + np.array([0, 55]), SIZE, ["No_Beard", "left_eye"])
    assert masks.keys() == {"left_eye"}
    assert "lies outside of the picture by" in hidden["No_Beard"]


def test_five_points_put_the_mean_face_there() -> None:
    landmarks = face(5)
    coarse = from_five(five_of(landmarks))
    np.testing.assert_allclose(coarse, landmarks, atol=1e-6)  # these are mean faces, turned and moved
    rng = np.random.default_rng(0)
    noisy = landmarks + rng.normal(size=landmarks.shape)
    assert np.abs(from_five(five_of(noisy)) - landmarks).max() < 6
    assert objection(coarse, SIZE) is None
    np.testing.assert_array_equal(left_to_right(landmarks[MIRROR]), landmarks)
    np.testing.assert_array_equal(MIRROR[MIRROR], np.arange(68))
    np.testing.assert_allclose(MEAN_FACE[MIRROR] * (-1, 1), MEAN_FACE)


# ------------------------------------------------------------------------------------------------------ real masks

_PARTS = {
    "eyes": ((3, 4), ("left_eye", "right_eye"), 0.5),
    "nose": ((2,), ("nose",), 0.5),
    "mouth": ((9, 10, 11), ("mouth",), 0.6),
    "brows": ((5, 6), ("left_brow", "right_brow"), 0.4),  # true ones are thin strands
}


@pytest.mark.skipif(not (REAL / "facesynthetics").is_dir(), reason=f"no true masks at {REAL}; set HND_REAL_DATA")
@pytest.mark.parametrize("part", list(_PARTS))
def test_areas_agree_with_true_masks(part: str) -> None:
    ids, names, least = _PARTS[part]
    both = either = 0
    for path in sorted((REAL / "facesynthetics").glob("*_seg.png")):
        truth = np.isin(np.asarray(Image.open(path)), ids)
        landmarks = np.loadtxt(str(path).replace("_seg.png", "_ldmks.txt"))[:68]
        ours = np.zeros_like(truth)
        for name in names:
            masks, hidden = areas(landmarks, truth.shape, [name])
            assert hidden in ({}, {name: f"{name} is hidden behind the nose"})
            ours |= masks.get(name, ours)
        if truth.any():  # else it is hidden
            both, either = both + int((ours & truth).sum()), either + int((ours | truth).sum())
    assert both / either >= least
