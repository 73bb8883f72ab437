"""True masks of parts, where a source has them: the areas of concepts that they give, and five points of the face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from lightning_hnd.building.drawing import Mask
from lightning_hnd.building.geometry import areas
from lightning_hnd.building.landmarks import Points, from_five
from lightning_hnd.concepts import PAPER

Regions: TypeAlias = dict[str, Mask]
"""Masks ``[H, W]`` of one size by name: ``nose``, ``brow_1``, ``brow_2``, ``eye_1``, ``eye_2``, ``mouth`` (lips
included), ``glasses``, ``skin``. Which of two is the left one is told by where it is."""

PARTS = frozenset(concept.name for concept in PAPER.local if concept.kind == "part")
"""The parts of a face: landmarks or true masks show all of them."""

_WHOLE: Mapping[str, tuple[str, ...]] = {
    "nose": ("nose",),
    "Big_Nose": ("nose",),
    "Pointy_Nose": ("nose",),
    "Arched_Eyebrows": ("brow_1", "brow_2"),
    "Bushy_Eyebrows": ("brow_1", "brow_2"),
    "Narrow_Eyes": ("eye_1", "eye_2"),
    "mouth": ("mouth",),
    "Big_Lips": ("mouth",),
    "Mouth_Slightly_Open": ("mouth",),
    "Smiling": ("mouth",),
    "Wearing_Lipstick": ("mouth",),
    "Eyeglasses": ("glasses",),
}
"""Concepts whose area is a part, or several."""


def true_areas(
    regions: Regions, landmarks: Points | None, names: frozenset[str]
) -> tuple[dict[str, Mask], dict[str, str]]:
    """The areas of concepts by true masks as far as they tell them, by landmarks elsewhere.

    Args:
        regions: Of one face.
        landmarks: ``[68, 2]`` in pixels of the masks; None: a mean face laid over what the masks show.
        names: Concepts.

    Returns:
        As :func:`~lightning_hnd.building.geometry.areas`.

    Raises:
        ValueError: If landmarks are needed and cannot be those of a face in the picture.
    """
    shown = {name: mask for name, mask in regions.items() if mask.any()}
    found: dict[str, Mask] = {}
    hidden: dict[str, str] = {}
    for name in sorted(names):
        if name.partition("_")[0] in ("left", "right") and not name.endswith("cheek"):
            side, _, part = name.partition("_")
            pair = sorted((shown[p] for p in (f"{part}_1", f"{part}_2") if p in shown), key=_middle)
            if len(pair) == 2:
                found[name] = pair[0 if side == "left" else 1]
            else:
                hidden[name] = f"{name} is hidden: the source has no mask of it"
        elif name in _WHOLE and all(part in shown for part in _WHOLE[name]):
            found[name] = np.logical_or.reduce([shown[part] for part in _WHOLE[name]])
        elif name in ("nose", "mouth"):
            hidden[name] = f"{name} is hidden: the source has no mask of it"
    missing = sorted(names - found.keys() - hidden.keys())
    if not missing:
        return found, hidden
    points = landmarks if landmarks is not None else five_points(shown)
    if points is None:
        hidden |= {name: f"{name} needs landmarks, or masks of both eyes, nose and mouth" for name in missing}
        return found, hidden
    height, width = next(iter(regions.values())).shape
    drawn, not_drawn = areas(points, (height, width), missing)
    if "skin" in shown:
        cheek = np.logical_and.reduce([shown["skin"], *(~mask for part, mask in shown.items() if part != "skin")])
        drawn = {n: mask & cheek if n.endswith("cheek") else mask for n, mask in drawn.items()}
    empty = {n: f"{n} is hidden: its area has no pixel" for n, mask in drawn.items() if not mask.any()}
    return found | {n: mask for n, mask in drawn.items() if n not in empty}, hidden | not_drawn | empty


def five_points(regions: Regions) -> Points | None:
    """Coarse landmarks by the masks of eyes, nose and mouth: ``[68, 2]``; None where one of them is hidden."""
    if not all(name in regions and regions[name].any() for name in ("eye_1", "eye_2", "nose", "mouth")):
        return None
    eyes = sorted((_centre(regions[name]) for name in ("eye_1", "eye_2")), key=lambda centre: centre[0])
    nose_rows = np.flatnonzero(regions["nose"].any(1))
    tip_row = round(nose_rows[0] + 0.8 * (nose_rows[-1] - nose_rows[0]))
    tip = np.array([_middle(regions["nose"][tip_row : tip_row + 1]), tip_row + 0.5])
    columns = np.flatnonzero(regions["mouth"].any(0))
    corners = [
        np.array([column + 0.5, np.flatnonzero(regions["mouth"][:, column]).mean() + 0.5])
        for column in (columns[0], columns[-1])
    ]
    return from_five(np.stack([*eyes, tip, *corners]))


def _centre(mask: Mask) -> Points:
    y, x = mask.nonzero()
    return np.array([x.mean() + 0.5, y.mean() + 0.5])


def _middle(mask: Mask) -> float:
    """Mean column of a mask; the middle of the picture for an empty one."""
    columns = mask.nonzero()[1]
    return float(columns.mean() + 0.5) if len(columns) else mask.shape[1] / 2
