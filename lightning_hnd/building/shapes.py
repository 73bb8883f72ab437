"""Shapes whose corners are weighted means of landmarks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_hnd.building.landmarks import COUNT, MIRROR, Points, between_eyes, left_to_right, unit

Corner: TypeAlias = npt.NDArray[np.float64]
"""``[68]``: the weights of landmarks whose mean a corner is; they add up to one."""

_HALF_RIDGE = 0.05
"""In units of the face: how near the ridge of the nose the middle of a shape beside it may come before it is hidden."""

_TURN = np.linspace(0, 2 * np.pi, 32, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)


def mean(*landmarks: int) -> Corner:
    """The mean of some landmarks."""
    weights = np.zeros(COUNT)
    np.add.at(weights, list(landmarks), 1 / len(landmarks))
    return weights


def between(a: int | Corner, b: int | Corner, share: float = 0.5) -> Corner:
    """The place at a share of the way from ``a`` to ``b``; beyond 1 it lies beyond ``b``."""
    return (1 - share) * _corner(a) + share * _corner(b)


def moved(corner: int | Corner, start: int | Corner, end: int | Corner, share: float) -> Corner:
    """A place moved by a share of the way from ``start`` to ``end``."""
    return _corner(corner) + share * (_corner(end) - _corner(start))


@dataclass(frozen=True, eq=False)
class PlacedFace:
    """Landmarks, and what shapes want to know of them.

    Attributes:
        landmarks: ``[68, 2]``, numbered from the left of the picture.
        scale: Pixels in a unit of the face, see :func:`~lightning_hnd.building.landmarks.unit`.
        right: ``[2]``, of length 1: at right angles to the ridge of the nose, towards the right eye.
    """

    landmarks: Points
    scale: float
    right: Points

    @classmethod
    def of(cls, landmarks: Points) -> PlacedFace:
        """The face of landmarks ``[68, 2]``, also of a mirrored one."""
        placed = left_to_right(np.asarray(landmarks, np.float64))
        x, y = placed[30] - placed[27]
        right = np.array([y, -x]) / max(float(np.hypot(x, y)), 1e-9)
        return cls(
            placed, unit(placed), right * np.sign(right @ between_eyes(placed))
        )  # upside down, it is the other way


@dataclass(frozen=True, eq=False)
class Shape:
    """An outline and how far beyond it the shape reaches.

    Attributes:
        weights: ``[V, 68]``, the corners in order; of a hull in any order.
        grow: In units of the face, see :func:`~lightning_hnd.building.landmarks.unit`.
        hull: Whether it is the convex hull of its corners.
        side: -1 for a shape left of the nose, 1 for one right of it: the nose hides it in a face that is turned far
            enough. 0 for shapes that the nose never hides.
    """

    weights: npt.NDArray[np.float64]
    grow: float = 0.0
    hull: bool = False
    side: int = 0

    def mirrored(self) -> Shape:
        """The same shape on the other side of the face."""
        return replace(self, weights=self.weights[:, MIRROR], side=-self.side)

    def outline(self, landmarks: Points) -> Points:
        """Its corners in a face, ``[V, 2]``, before it grows."""
        corners = self.weights @ landmarks
        return convex_hull(corners) if self.hull else corners

    @cached_property
    def _middle(self) -> Corner:
        middle: Corner = self.weights.mean(0)
        return middle

    def hidden(self, face: PlacedFace) -> bool:
        """Whether the ridge of the nose is before its middle, as in the far half of a face in profile."""
        if not self.side:
            return False
        from_ridge = self._middle @ face.landmarks - face.landmarks[27]
        return bool(from_ridge @ face.right * self.side < _HALF_RIDGE * face.scale)


def polygon(*corners: int | Corner, grow: float = 0.0) -> Shape:
    """A polygon with these corners."""
    return Shape(np.stack([_corner(corner) for corner in corners]), grow)


def hull(*corners: int | Corner, grow: float = 0.0) -> Shape:
    """The convex hull of these corners."""
    return replace(polygon(*corners, grow=grow), hull=True)


def line(*corners: int | Corner, grow: float) -> Shape:
    """A line through these corners, as wide as it grows to either side."""
    return polygon(*corners, *corners[-2:0:-1], grow=grow)


def ellipse(centre: Corner, along: int | Corner, across: int | Corner, grow: float = 0.0) -> Shape:
    """An ellipse that touches the ends of two half axes, which need not stand at right angles."""
    axes = np.stack([_corner(along) - centre, _corner(across) - centre])
    return Shape(centre + _CIRCLE @ axes, grow)


def beside_nose(shape: Shape) -> Shape:
    """A shape of the left half of the face that the nose hides when the face is turned."""
    return replace(shape, side=-1)


def convex_hull(points: Points) -> Points:
    """The corners of the convex hull of ``[N, 2]`` points, in order (Andrew's monotone chain)."""

    def chain(ordered: list[tuple[float, float]]) -> list[tuple[float, float]]:
        kept: list[tuple[float, float]] = []
        for x, y in ordered:
            while len(kept) > 1 and (kept[-1][0] - kept[-2][0]) * (y - kept[-2][1]) <= (kept[-1][1] - kept[-2][1]) * (
                x - kept[-2][0]
            ):
                kept.pop()
            kept.append((x, y))
        return kept[:-1]

    ordered = sorted({(float(x), float(y)) for x, y in points})
    return np.array(chain(ordered) + chain(ordered[::-1]) or ordered)


def _corner(corner: int | Corner) -> Corner:
    return mean(corner) if isinstance(corner, int) else corner
