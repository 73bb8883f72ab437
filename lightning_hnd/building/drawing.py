"""Which pixels shapes cover: all shapes of some faces in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_hnd.building.landmarks import Points
from lightning_hnd.building.shapes import PlacedFace, Shape

Mask: TypeAlias = npt.NDArray[np.bool_]
Places: TypeAlias = npt.NDArray[np.int64]
Line: TypeAlias = npt.NDArray[np.float64]

_COVERED = 2**8
"""What a disc or a rectangle adds to a pixel of the canvas; a side to the left of the pixel adds or takes one. No shape
has half as many sides, so that a sum tells both apart."""


class Drawing(NamedTuple):
    """What to draw.

    Attributes:
        shapes: Whose union it is, at least one.
        face: Where.
        size: ``(H, W)`` of its picture.
    """

    shapes: Sequence[Shape]
    face: PlacedFace
    size: tuple[int, int]


def draw(drawings: Sequence[Drawing]) -> list[tuple[Mask, float]]:
    """The pixels whose centres lie in unions of shapes.

    Args:
        drawings: Of any faces; many at once take much less time each.

    Returns:
        Of each, ``[H, W]`` bool, and which share of the union lies inside of the picture.
    """
    if not drawings:
        return []
    patches = _fill([(shape, drawing.face) for drawing in drawings for shape in drawing.shapes])
    return [_unite([next(patches) for _ in drawing.shapes], drawing.size) for drawing in drawings]


_Patch: TypeAlias = tuple[int, int, Mask]
"""Top, left, and the pixels from there on."""


def _unite(patches: Sequence[_Patch], size: tuple[int, int]) -> tuple[Mask, float]:
    """A union in a picture, and the share of it that lies inside."""
    top = min(y for y, _, _ in patches)
    left = min(x for _, x, _ in patches)
    bottom = max(y + pixels.shape[0] for y, _, pixels in patches)
    right = max(x + pixels.shape[1] for _, x, pixels in patches)
    union = np.zeros((bottom - top, right - left), np.bool_)
    for y, x, pixels in patches:
        union[y - top :, x - left :][: pixels.shape[0], : pixels.shape[1]] |= pixels
    mask = np.zeros(size, np.bool_)
    mine = mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    mine[...] = union[max(-top, 0) :, max(-left, 0) :][: mine.shape[0], : mine.shape[1]]
    area = np.count_nonzero(union)
    return mask, np.count_nonzero(mine) / area if area else 0.0


def _fill(shapes: Sequence[tuple[Shape, PlacedFace]]) -> Iterator[_Patch]:
    """The pixels of each shape in its face.

    A polygon covers what an odd number of its sides lie to the left of. Where it grows, it also covers discs about its
    corners and rectangles about its sides; these are convex, so that each covers an interval of every row. So it
    suffices to mark where rows enter and leave them, and to add up along the rows.
    """
    outlines = [shape.outline(face.landmarks) for shape, face in shapes]
    count = np.array([len(outline) for outline in outlines])
    of = np.repeat(np.arange(len(shapes)), count)
    last = count.cumsum() - 1
    start = np.concatenate(outlines)
    following = np.arange(1, len(start) + 1)
    following[last] = last - count + 1
    end = start[following]
    radius = np.array([shape.grow * face.scale for shape, face in shapes])

    canvas = _Canvas.around(start, last - count + 1, radius + 1)
    canvas.add_sides(start, end, of, np.ones(len(start)))
    if (grown := radius[of] > 0).any():
        start, end, of = start[grown], end[grown], of[grown]
        canvas.add_rectangles(start, end, of, radius[of])
        canvas.add_discs(start, of, radius[of])
    for (shape, face), patch in zip(shapes, canvas.patches(), strict=True):
        if shape.side:
            _cut_at_nose(patch, face, shape.side)
        yield patch


def _cut_at_nose(patch: _Patch, face: PlacedFace, side: int) -> None:
    """Takes away what lies on the other side of the ridge of the nose."""
    top, left, pixels = patch
    height, width = pixels.shape
    (ridge_x, ridge_y), (right_x, right_y) = face.landmarks[27], face.right * side
    x, y = (left + 0.5 - ridge_x) * right_x, (top + 0.5 - ridge_y) * right_y
    if x + y + min(0.0, (width - 1) * right_x) + min(0.0, (height - 1) * right_y) < 0:
        x, y = (np.arange(n) + first + 0.5 for n, first in ((width, left), (height, top)))
        pixels &= (x - ridge_x) * right_x + (y[:, None] - ridge_y) * right_y >= 0


@dataclass(frozen=True, eq=False)
class _Canvas:
    """Boxes about shapes, row by row, one after the other; each cell holds what is added from there on.

    What enters a row also leaves it: the sums are 0 at the end of each row, and one running sum does for all.

    Attributes:
        low: ``[N, 2]``, the column and the row of the picture at which each box begins.
        size: ``[N, 2]``, width and height; the last column of a box takes what ends beyond it.
        first: ``[N]``, the cell at which each begins.
        cells: ``[sum of widths x heights]``.
    """

    low: Places
    size: Places
    first: Places
    cells: npt.NDArray[np.int16]

    @classmethod
    def around(cls, corners: Points, first: Places, margin: Line) -> _Canvas:
        """Boxes about the corners from each ``first`` on."""
        low = np.floor(np.minimum.reduceat(corners, first) - margin[:, None]).astype(np.int64)
        high = np.ceil(np.maximum.reduceat(corners, first) + margin[:, None]).astype(np.int64)
        size = high - low + (1, 0)
        beyond = size.prod(1).cumsum()
        return cls(low, size, beyond - size.prod(1), np.zeros(beyond[-1], np.int16))

    def patches(self) -> Iterator[_Patch]:
        """What is covered in each box."""
        sums = self.cells.cumsum(dtype=np.int16)
        covered = ((sums & 1) | (sums >= _COVERED // 2)).astype(np.bool_)
        boxes = zip(self.low.tolist(), self.size.tolist(), self.first.tolist(), strict=True)
        for (left, top), (width, height), first in boxes:
            yield top, left, covered[first : first + width * height].reshape(height, width)[:, :-1]

    def add_sides(self, start: Points, end: Points, of: Places, weight: Line) -> None:
        """Adds a weight, or where sides go down takes it, from where they cross a row of the box ``of`` each on."""
        low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
        side, y = _rows(np.ceil(low - 0.5), np.ceil(high - 0.5))
        (from_x, from_y), (way_x, way_y) = start[side].T, (end - start)[side].T
        x = from_x + (y - from_y) * way_x / way_y
        self._add(np.ceil(x - 0.5), y, of[side], (weight * np.sign(start[:, 1] - end[:, 1]))[side])

    def add_rectangles(self, start: Points, end: Points, of: Places, radius: Line) -> None:
        """Covers all that lies beside a side, up to a radius from it."""
        way = end - start
        length = np.hypot(way[:, 0], way[:, 1])
        beside = way[:, ::-1] * (radius / np.where(length > 0, length, 1.0))[:, None] * (1, -1)
        corners = np.stack([start + beside, end + beside, end - beside, start - beside])
        start, end = corners.reshape(-1, 2), corners[[1, 2, 3, 0]].reshape(-1, 2)
        self.add_sides(start, end, np.tile(of, 4), np.full(len(start), float(_COVERED)))

    def add_discs(self, middle: Points, of: Places, radius: Line) -> None:
        """Covers all within a radius of some points."""
        disc, y = _rows(np.ceil(middle[:, 1] - radius - 0.5), np.floor(middle[:, 1] + radius - 0.5) + 1)
        half = np.sqrt(np.maximum(radius[disc] ** 2 - (y - middle[disc, 1]) ** 2, 0.0))
        x, weight = middle[disc, 0], np.full(len(disc), float(_COVERED))
        self._add(np.ceil(x - half - 0.5), y, of[disc], weight)
        self._add(np.floor(x + half + 0.5), y, of[disc], -weight)

    def _add(self, x: Line, y: Line, of: Places, weight: Line) -> None:
        left, top = self.low[of].T
        place = self.first[of] + (y.astype(np.int64) - top) * self.size[of, 0] + x.astype(np.int64) - left
        np.add.at(self.cells, place, weight.astype(np.int16))


def _rows(first: Line, beyond: Line) -> tuple[Places, Line]:
    """The position of each item as often as it has rows, and the middles of these rows."""
    count = (beyond - first).astype(np.int64)
    item = np.repeat(np.arange(len(count)), count)
    return item, np.arange(len(item)) + (first + 0.5 - (count.cumsum() - count))[item]
