"""Shapes whose corners are weighted means of landmarks, and which pixels they cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_hnd.building.landmarks import COUNT, MIRROR, Points, unit

Corner: TypeAlias = npt.NDArray[np.float64]
"""``[68]``: the weights of landmarks whose mean a corner is; they add up to one."""

Mask: TypeAlias = npt.NDArray[np.bool_]

_TURN = np.linspace(0, 2 * np.pi, 32, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
_HALF_TURN = np.linspace(np.pi / 2, 3 * np.pi / 2, 8)


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
class Shape:
    """An outline and how far beyond it the shape reaches.

    Attributes:
        weights: ``[V, 68]``, the corners in order; of a hull in any order.
        grow: In units of the face, see :func:`~lightning_hnd.building.landmarks.unit`.
        hull: Whether it is the convex hull of its corners.
    """

    weights: npt.NDArray[np.float64]
    grow: float = 0.0
    hull: bool = False

    def mirrored(self) -> Shape:
        """The same shape on the other side of the face."""
        return replace(self, weights=self.weights[:, MIRROR])

    def outline(self, landmarks: Points) -> Points:
        """Its corners in a face, ``[V, 2]``, before it grows."""
        corners = self.weights @ landmarks
        return convex_hull(corners) if self.hull else corners


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


def draw(shapes: Sequence[Shape], landmarks: Points, size: tuple[int, int]) -> tuple[Mask, float]:
    """The pixels whose centres lie in a union of shapes.

    Args:
        shapes: At least one.
        landmarks: ``[68, 2]``.
        size: ``(H, W)``.

    Returns:
        ``[H, W]`` bool, and which share of the union lies inside of the picture.
    """
    scale = unit(landmarks)
    outlines = [shape.outline(landmarks) for shape in shapes]
    margin = max(shape.grow for shape in shapes) * scale + 1
    low = np.floor(np.min([outline.min(0) for outline in outlines], axis=0) - margin).astype(int)
    high = np.ceil(np.max([outline.max(0) for outline in outlines], axis=0) + margin).astype(int)
    (left, top), (width, height) = low, high - low
    inside = np.zeros((height, width), np.bool_)
    for shape, outline in zip(shapes, outlines, strict=True):
        inside |= _fill(outline[None] - low, (height, width)) % 2 == 1
        if shape.grow > 0:
            inside |= _fill(_capsules(outline - low, shape.grow * scale), (height, width)) != 0
    mask = np.zeros(size, np.bool_)
    rows, columns = (slice(max(a, 0), max(a + n, 0)) for a, n in ((top, height), (left, width)))
    mine = mask[rows, columns]
    here = inside[max(-top, 0) :, max(-left, 0) :][: mine.shape[0], : mine.shape[1]]
    mine[...] = here
    area = int(inside.sum())
    return mask, int(here.sum()) / area if area else 0.0


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


def _capsules(outline: Points, radius: float) -> Points:
    """All that lies within a radius of each side of an outline: ``[V, 16, 2]`` polygons, all turning one way."""
    ends = np.roll(outline, -1, axis=0)
    way = np.arctan2(*(ends - outline).T[::-1])[:, None]
    back, front = way + _HALF_TURN, way + _HALF_TURN + np.pi
    circle = radius * np.stack([np.cos(np.hstack([back, front])), np.sin(np.hstack([back, front]))], axis=-1)
    centres = np.repeat(np.stack([outline, ends], axis=1), len(_HALF_TURN), axis=1)
    polygons: Points = centres + circle
    return polygons


def _fill(polygons: Points, size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """How often each pixel's centre is wound around, summed over ``[P, V, 2]`` polygons: ``[H, W]``."""
    height, width = size
    x, y = polygons[..., 0].ravel(), polygons[..., 1].ravel()
    next_x, next_y = (np.roll(polygons[..., axis], -1, axis=1).ravel() for axis in (0, 1))
    centres = np.arange(height)[:, None] + 0.5
    crosses = (y <= centres) != (next_y <= centres)
    row, side = crosses.nonzero()
    slope = (next_x - x)[side] / (next_y - y)[side]
    column = np.ceil(x[side] + (centres[row, 0] - y[side]) * slope - 0.5).astype(np.int64).clip(0, width)
    turns = np.zeros((height, width + 1), np.int64)
    np.add.at(turns, (row, column), np.where(next_y > y, 1, -1)[side])
    return turns.cumsum(1)[:, :width]
