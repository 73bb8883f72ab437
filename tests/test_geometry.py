"""Areas of concepts by landmarks: exact against other ways to draw, and well placed against true masks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import landmarks_in

from lightning_hnd import PAPER
from lightning_hnd.building.geometry import AREAS, areas
from lightning_hnd.building.landmarks import MEAN_FACE, MIRROR, five_of, from_five, left_to_right, objection
from lightning_hnd.building.shapes import Points, Shape, draw, ellipse, hull, mean, moved, polygon

REAL = Path(os.environ.get("HND_REAL_DATA", Path(__file__).parents[2] / "shared" / "real"))
SIZE = (120, 100)
NAMES = sorted(AREAS)


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
    masks, problem = areas(landmarks, (44, 40), [name])
    assert problem is None
    eyes = np.linalg.norm(landmarks[42:48].mean(0) - landmarks[36:42].mean(0))
    unit = max(eyes, 1.2 * np.linalg.norm(landmarks[33] - landmarks[27]))
    np.testing.assert_array_equal(masks[name], naive(AREAS[name], landmarks, (44, 40), unit))


def test_shapes_in_closed_form() -> None:
    points = np.zeros((68, 2))
    points[:5] = [(10, 10), (30, 10), (30, 20), (10, 20), (20, 15)]
    points[36:42], points[42:48] = (10, 10), (30, 10)
    square, inside = draw([polygon(0, 1, 2, 3)], points, (40, 40), 20.0)
    assert square.sum() == 200
    assert square[10:20, 10:30].all()
    assert inside == 1
    round_, _ = draw(
        [ellipse(mean(4), along=moved(4, 4, 1, 1.0), across=moved(4, 1, 0, 0.25))], points * 8, (320, 320), 160.0
    )
    assert round_.sum() == pytest.approx(np.pi * abs(np.linalg.det([[80, -40], [-40, 0]])), rel=0.01)
    same, _ = draw([hull(4, 3, 2, 1, 0)], points, (40, 40), 20.0)
    np.testing.assert_array_equal(same, square)
    _, inside = draw([polygon(0, 1, 2, 3)], points - (20, 0), (40, 40), 20.0)
    assert inside == 0.5


@pytest.mark.parametrize("renumbered", [False, True])
def test_left_is_the_left_of_the_picture_also_in_a_mirrored_face(renumbered: bool) -> None:
    landmarks = face()
    mirrored = np.stack([SIZE[1] - landmarks[:, 0], landmarks[:, 1]], 1)
    masks, _ = areas(landmarks, SIZE, NAMES)
    flipped, problem = areas(mirrored[MIRROR] if renumbered else mirrored, SIZE, NAMES)
    assert problem is None
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


def test_a_face_in_profile_is_drawn_or_refused_but_never_breaks() -> None:
    for squeeze in (0.6, 0.3, 0.1, 0.0):
        landmarks = face()
        middle = landmarks[30, 0]
        far = landmarks[:, 0] > middle
        landmarks[far, 0] = middle + (landmarks[far, 0] - middle) * squeeze
        masks, problem = areas(landmarks, SIZE, NAMES)
        assert (problem is None) == (len(masks) == len(NAMES))
        if squeeze == 0.6:
            assert masks["right_cheek"].sum() < masks["left_cheek"].sum()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: np.full_like(p, np.nan), "not all numbers"),
        (lambda p: np.zeros_like(p), "0.0 pixels apart"),
        (lambda p: p * 2, "another size"),
        (lambda p: p + np.array([0, 55]), "lies outside of the picture by"),
        (lambda p: p * 1e6, "outside of the 100 x 120 picture"),
        (lambda p: np.where(np.arange(68)[:, None] == 8, 1e7, p), "far outside"),
    ],
)
def test_landmarks_that_cannot_be_used_say_why(change, says: str) -> None:
    masks, problem = areas(change(face()), SIZE, ["No_Beard"])
    assert masks == {}
    assert says in str(problem)


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
        masks, problem = areas(landmarks, truth.shape, names)
        assert problem is None
        ours = np.logical_or.reduce(list(masks.values()))
        if truth.any():  # else it is hidden
            both, either = both + int((ours & truth).sum()), either + int((ours | truth).sum())
    assert both / either >= least
