"""The 68 landmarks of a face, and what can be told of them without its picture.

Numbered as in iBUG's 300-W, from the left of the picture to its right: 0-16 jaw, 17-21 and 22-26 brows, 27-35 nose,
36-41 and 42-47 eyes, 48-59 outer and 60-67 inner lips. Coordinates are pixels from the top left corner, x before y; the
first pixel reaches from 0 to 1.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Line = npt.NDArray[np.float64]

COUNT = 68

LEFT_EYE, RIGHT_EYE = slice(36, 42), slice(42, 48)
_BETWEEN_EYES = (np.bincount(range(42, 48), minlength=COUNT) - np.bincount(range(36, 42), minlength=COUNT)) / 6

_PARTS_MIRRORED = (
    "16 15 14 13 12 11 10 9 8 7 6 5 4 3 2 1 0  26 25 24 23 22 21 20 19 18 17  27 28 29 30 35 34 33 32 31 "
    "45 44 43 42 47 46  39 38 37 36 41 40  54 53 52 51 50 49 48 59 58 57 56 55  64 63 62 61 60 67 66 65"
)
MIRROR = np.array(_PARTS_MIRRORED.split(), np.int64)
"""The landmark that takes the place of each one in the mirrored face."""

_NOSE_LENGTH = 1.2
"""Distance between the eyes in lengths of the nose, less than that of 19 in 20 faces seen from the front."""

_MEAN_FACE = """
    -1.13,0.00 -1.11,0.31 -1.06,0.60 -1.01,0.86 -0.91,1.14 -0.76,1.38 -0.58,1.54 -0.35,1.70 0.00,1.80
    0.35,1.70 0.58,1.54 0.76,1.38 0.91,1.14 1.01,0.86 1.06,0.60 1.11,0.31 1.13,0.00 -0.91,-0.25
    -0.78,-0.34 -0.59,-0.36 -0.43,-0.34 -0.29,-0.28 0.29,-0.28 0.43,-0.34 0.59,-0.36 0.78,-0.34 0.91,-0.25
    0.00,0.04 0.00,0.25 0.00,0.45 0.00,0.63 -0.19,0.72 -0.11,0.75 0.00,0.77 0.11,0.75 0.19,0.72
    -0.68,-0.01 -0.58,-0.06 -0.43,-0.06 -0.30,0.02 -0.42,0.06 -0.58,0.05 0.30,0.02 0.43,-0.06 0.58,-0.06
    0.68,-0.01 0.58,0.05 0.42,0.06 -0.42,1.06 -0.28,1.00 -0.10,0.95 0.00,0.98 0.10,0.95 0.28,1.00
    0.42,1.06 0.27,1.19 0.14,1.26 0.00,1.28 -0.14,1.26 -0.27,1.19 -0.39,1.06 -0.13,1.05 0.00,1.05
    0.13,1.05 0.39,1.06 0.13,1.13 0.00,1.14 -0.13,1.13
"""
MEAN_FACE: Points = np.array([pair.split(",") for pair in _MEAN_FACE.split()], np.float64)
"""``[68, 2]``, median of 2,000 CelebA faces turned upright, made symmetric; the centres of the eyes are 1 apart."""

_MEAN_DEPTH = """
    -0.97 -0.93 -0.93 -0.94 -0.90 -0.76 -0.54 -0.29 -0.21 -0.29 -0.54 -0.76 -0.90 -0.94 -0.93 -0.93 -0.97
    -0.17 0.03 0.16 0.25 0.29 0.29 0.25 0.16 0.03 -0.17 0.31 0.46 0.63 0.67 0.27 0.34 0.37 0.34 0.27
    -0.10 0.03 0.03 0.01 0.03 -0.01 0.01 0.03 0.03 -0.10 -0.01 0.03 -0.07 0.18 0.33 0.33 0.33 0.18 -0.07
    0.08 0.16 0.19 0.16 0.08 -0.06 0.22 0.26 0.22 -0.06 0.17 0.20 0.17
"""
MEAN_DEPTH: Line = np.array(_MEAN_DEPTH.split(), np.float64)
"""``[68]``, how far each landmark of the mean face is in front of its eyes, in the same unit: what best explains, by
turns of the head, the landmarks of these and of 24 FaceSynthetics faces (Tomasi, Kanade, Int. J. Comput. Vis. 1992)."""

MOST_UNLIKE = 0.2
"""Largest :func:`unlikeness` of landmarks that can be a face's. On 2,000 predicted sets of CelebA and 24 true ones of
FaceSynthetics the median is 0.05 and the largest of a face 0.16, a profile that screams; the three sets that missed
their faces have 0.24, 0.70 and 1.71."""


MOST_APART = 0.3
"""Largest :func:`apart` of landmarks and five points of one face. Of 1,923 faces of CelebA on which a second detector
(dlib) found points, 12 lie beyond, the median at 0.09; in about half of the 12 the landmarks miss the face, in the
others the second detector does."""


def five_of(landmarks: Points) -> Points:
    """The five points of CelebA in ``[68, 2]`` landmarks: eyes, tip of the nose, corners of the mouth: ``[5, 2]``."""
    eyes = [landmarks[eye].mean(0) for eye in (LEFT_EYE, RIGHT_EYE)]
    return np.stack([*eyes, landmarks[30], landmarks[48], landmarks[54]])


def apart(landmarks: npt.NDArray[np.float32], five: npt.NDArray[np.float32]) -> float:
    """How far landmarks are from five points that somebody else put on the same face, in units of the face.

    Args:
        landmarks: ``[68, 2]``.
        five: ``[5, 2]``, as :func:`five_of` orders them.

    Returns:
        The largest of the five distances.
    """
    ours, theirs = left_to_right(landmarks.astype(np.float64)), five.astype(np.float64)
    distance = np.hypot(*(five_of(ours) - theirs).T).max()
    return float(distance / max(unit(ours), math.hypot(*(theirs[1] - theirs[0])), 1e-9))


def from_five(points: Points) -> Points:
    """The mean face laid over five points by the nearest affine map: coarse landmarks where there are no better ones.

    The shape of each part is the average one, only its place, size, turn and slant are the face's own.

    Args:
        points: ``[5, 2]``: eyes, tip of the nose, corners of the mouth; the left ones first.

    Returns:
        ``[68, 2]``.

    Example:
        >>> import numpy as np
        >>> from lightning_hnd.building.landmarks import MEAN_FACE, five_of, from_five
        >>> bool(np.allclose(from_five(five_of(MEAN_FACE) * 20 + 50), MEAN_FACE * 20 + 50))
        True
    """
    one = np.ones((5, 1))
    map_, *_ = np.linalg.lstsq(np.hstack([five_of(MEAN_FACE), one]), points, rcond=None)
    landmarks: Points = np.hstack([MEAN_FACE, np.ones((COUNT, 1))]) @ map_
    return landmarks


def left_to_right(landmarks: Points) -> Points:
    """The same landmarks, numbered from the left of the picture; those of a mirrored face may not be."""
    to_right = between_eyes(landmarks)[0] or landmarks[16, 0] - landmarks[0, 0]
    swapped = to_right < 0
    return landmarks[MIRROR] if swapped else landmarks


def between_eyes(landmarks: Points) -> Points:
    """``[2]``, the way from the centre of the left eye to that of the right one."""
    way: Points = _BETWEEN_EYES @ landmarks
    return way


def unit(landmarks: Points) -> float:
    """The scale of a face, in pixels: the distance between the eyes, or in profile what the nose says it would be."""
    (eyes_x, eyes_y), (nose_x, nose_y) = between_eyes(landmarks), landmarks[33] - landmarks[27]
    return max(math.hypot(eyes_x, eyes_y), _NOSE_LENGTH * math.hypot(nose_x, nose_y))


_VIEWS = np.column_stack([MEAN_FACE, MEAN_DEPTH, np.ones(COUNT)])  # their combinations are views of the mean face
_NO_VIEW = np.eye(COUNT) - _VIEWS @ np.linalg.pinv(_VIEWS)


def unlikeness(landmarks: Points) -> float:
    """How far landmarks are from the nearest view of a mean face, from whatever side, in units of the face.

    The nearest view is the best affine image of the mean face in three dimensions, so that profiles are as like a face
    as others; landmarks that collapsed or are scattered are not.

    Args:
        landmarks: ``[68, 2]``.

    Returns:
        The root mean square distance.

    Example:
        >>> import numpy as np
        >>> from lightning_hnd.building.landmarks import MEAN_DEPTH, MEAN_FACE, unlikeness
        >>> profile = np.stack([0.2 * MEAN_FACE[:, 0] + MEAN_DEPTH, MEAN_FACE[:, 1]], axis=1)
        >>> round(unlikeness(profile * 20), 6)
        0.0
    """
    return float(np.sqrt(((_NO_VIEW @ landmarks) ** 2).sum(1).mean()) / unit(landmarks))


def objection(landmarks: Points, size: tuple[int, int]) -> str | None:
    """Why landmarks cannot be those of a face in a picture; None if they can.

    Args:
        landmarks: ``[68, 2]``.
        size: ``(H, W)`` of the picture.
    """
    height, width = size
    if not np.isfinite(landmarks).all():
        return "landmarks are not all numbers"
    if (scale := unit(landmarks)) < 4:
        return f"landmarks put the eyes {scale:.1f} pixels apart; masks need at least 4"
    inside = ((landmarks >= 0) & (landmarks <= (width, height))).all(1).mean()
    if inside < 0.5:
        return (
            f"{1 - inside:.0%} of the landmarks lie outside of the {width} x {height} picture; are they those of a "
            "picture of another size?"
        )
    if np.abs(landmarks).max() > 4 * max(size):
        return f"a landmark lies far outside of the {width} x {height} picture, at {np.abs(landmarks).max():.0f} pixels"
    if unlikeness(landmarks) > MOST_UNLIKE:
        return (
            f"landmarks are not those of a face: more than {MOST_UNLIKE:g} eye distances (root mean square) from a "
            "mean face seen from any side"
        )
    return None
