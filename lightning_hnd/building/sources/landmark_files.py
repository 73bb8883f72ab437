"""Files of landmarks: 68 points, or CelebA's five, a row for each picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lightning_hnd.building.landmarks import COUNT, from_five
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.tables import Table, read_table

Landmarks = npt.NDArray[np.float32]

_FIVE = [f"{point}_{axis}" for point in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for axis in "xy"]
_POINT = re.compile(r"([xy])_?(\d+)|(\d+)_?([xy])")


def read_landmarks(path: Path, findings: Findings) -> tuple[Mapping[str, Landmarks], bool]:
    """Reads the landmarks of pictures.

    Args:
        path: A table: the picture, and ``x0, y0, ... x67, y67`` in any order (also ``x_0``, or counted from 1; without
            a header in this order), or CelebA's ``lefteye_x ... rightmouth_y``.
        findings: Gets what could not be used.

    Returns:
        ``[68, 2]`` by the name of the picture; and whether they are made of five points.

    Raises:
        ValueError: If the file has neither set of columns.
    """
    points, coarse = read_points(path, findings)
    if coarse:
        return {name: from_five(five.astype(np.float64)).astype(np.float32) for name, five in points.items()}, True
    return points, False


def read_points(path: Path, findings: Findings) -> tuple[Mapping[str, Landmarks], bool]:
    """Reads points as the file has them: ``[68, 2]`` or ``[5, 2]``, and whether there are five; see above."""
    table = read_table(path, findings)
    five, order = _order(table)
    points = {}
    for name, row in table.rows.items():
        try:
            points[name] = np.array([row[i] for i in order], np.float32).reshape(-1, 2)
        except ValueError:
            findings.add(f"row of {path.name} left out: a landmark is no number", name)
    return points, five


def _order(table: Table) -> tuple[bool, list[int]]:
    """Whether there are five points only, and the places of all coordinates."""
    if not table.columns:
        width = len(next(iter(table.rows.values()), ()))
        if width not in (2 * COUNT, 10):
            raise ValueError(f"{table.path} has {width} numbers in each row; 68 landmarks take 136, CelebA's five 10")
        return width == 10, list(range(width))
    lowered = [column.lower() for column in table.columns]
    if all(name in lowered for name in _FIVE):
        return True, [lowered.index(name) for name in _FIVE]
    places = {}
    for i, column in enumerate(lowered):
        if found := _POINT.fullmatch(column):
            axis, point = (found[1], found[2]) if found[1] else (found[4], found[3])
            places[axis, int(point)] = i
    first = 0 if ("x", 0) in places else 1
    wanted = [(axis, point) for point in range(first, COUNT + first) for axis in "xy"]
    missing = next((place for place in wanted if place not in places), None)
    if missing is not None:
        raise ValueError(
            f"{table.path} has no column {missing[0]}{missing[1]}; landmarks are columns x0, y0, ... x67, y67, or "
            f"CelebA's {_FIVE[0]} ... {_FIVE[-1]}. Its columns are: {', '.join(table.columns[:8])} ..."
        )
    return False, [places[place] for place in wanted]
