"""Where each of the paper's 38 local concepts shows in a face: one geometry, as data.

A part is drawn where it is. An attribute or an action unit is drawn where it shows: an attribute of a part on that
part, an action unit where its muscle moves the skin (Ekman, Friesen: Facial Action Coding System, 1978). Shapes turn,
shrink and slant with the landmarks. They are written down for the left half of the picture; the right half is its
mirror image. What the nose hides of a face in profile is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from lightning_hnd.building.drawing import Drawing, Mask, draw
from lightning_hnd.building.landmarks import Points, objection
from lightning_hnd.building.shapes import (
    PlacedFace,
    Shape,
    beside_nose,
    between,
    ellipse,
    hull,
    line,
    mean,
    moved,
    polygon,
)

VERSION = 2
"""Goes up whenever a shape changes; datacards name it."""

LEAST_INSIDE = 0.5
"""Share of a concept's area that must lie in the picture."""

_BROW = line(17, 18, 19, 20, 21, grow=0.06)
_EYE = polygon(*range(36, 42), grow=0.02)
_NOSE = hull(*range(27, 36), between(27, 39, 0.3), between(27, 42, 0.3), grow=0.03)
_MOUTH = polygon(*range(48, 60), grow=0.04)


def _on_cheek(height: float) -> Shape:
    """An ellipse between eye, nose and jaw, moved up by a share of the way from the mouth to the eye."""
    centre = moved((mean(36, 41) + mean(31) + mean(3)) / 3, 48, mean(36, 41), height)
    return ellipse(centre, along=moved(centre, 3, 31, 0.34), across=moved(centre, mean(36, 41), 48, 0.3))


_BEARD_CENTRE = between(33, 8, 0.55)
_BEARD = ellipse(_BEARD_CENTRE, along=moved(_BEARD_CENTRE, 4, 12, 0.47), across=moved(8, 33, 8, 0.1))
_CHIN = between(57, 8, 0.5)
_GOATEE = between(57, 8, 0.6)
_THROAT = moved(8, 57, 8, 0.15)


def _under_eye(depth: float) -> Shape:
    lid = (36, 41, 40, 39)
    return polygon(*lid, *(moved(point, 27, 33, depth) for point in reversed(lid)))


def _above_brow(*brow: int) -> Shape:
    return hull(*brow, *(moved(point, 33, 27, 0.3) for point in brow), grow=0.05)


_LEFT: Mapping[str, Shape] = {
    "brow": _BROW,
    "eye": beside_nose(_EYE),
    "cheek": beside_nose(_on_cheek(-0.15)),
}

_BOTH_SIDES: Mapping[str, Shape] = {
    "AU_2": _above_brow(17, 18, 19),
    "AU_5": beside_nose(
        hull(36, 37, 38, 39, between(37, 18, 0.4), between(37, 19, 0.4), between(38, 20, 0.4), grow=0.02)
    ),
    "AU_6": beside_nose(
        hull(between(36, 0, 0.5), 36, 41, 40, 39, between(40, 31, 0.5), between(41, 48, 0.45), grow=0.02)
    ),
    "AU_15": hull(48, 49, 59, between(48, 6, 0.45), between(48, 4, 0.25), grow=0.05),
    "Arched_Eyebrows": line(17, 18, 19, 20, 21, grow=0.07),
    "Bushy_Eyebrows": line(17, 18, 19, 20, 21, grow=0.07),
    "Bags_Under_Eyes": beside_nose(_under_eye(0.28)),
    "High_Cheekbones": beside_nose(_on_cheek(-0.1)),
    "Rosy_Cheeks": beside_nose(_on_cheek(-0.15)),
    "Narrow_Eyes": beside_nose(polygon(*range(36, 42), grow=0.04)),
}
_GLASS = beside_nose(hull(*range(36, 42), grow=0.25))

_MIDDLE: Mapping[str, tuple[Shape, ...]] = {
    "nose": (_NOSE,),
    "mouth": (_MOUTH,),
    "AU_1": (_above_brow(20, 21, 22, 23),),
    "AU_4": (line(*range(17, 22), grow=0.08), line(*range(22, 27), grow=0.08), hull(20, 21, 22, 23, 27, grow=0.04)),
    "AU_9": (hull(21, 22, between(27, 39, 0.8), between(27, 42, 0.8), 30, 31, 35),),
    "AU_12": (
        polygon(*range(48, 60), grow=0.1),
        line(48, between(48, 31, 0.4), grow=0.1),
        line(54, between(54, 35, 0.4), grow=0.1),
    ),
    "AU_17": (ellipse(_CHIN, along=moved(_CHIN, 7, 9, 0.45), across=moved(_CHIN, 57, 8, 0.5)),),
    "AU_20": (hull(*range(48, 60), between(48, 4, 0.25), between(54, 12, 0.25), grow=0.05),),
    "AU_25": (_MOUTH,),
    "AU_26": (hull(48, 54, 55, 56, 57, 58, 59, *range(5, 12)),),
    "5_o_Clock_Shadow": (_BEARD,),
    "No_Beard": (_BEARD,),
    "Big_Lips": (_MOUTH,),
    "Big_Nose": (_NOSE,),
    "Double_Chin": (ellipse(_THROAT, along=moved(_THROAT, 6, 10, 0.55), across=moved(_THROAT, 57, 8, 0.35)),),
    "Eyeglasses": (_GLASS, _GLASS.mirrored(), line(39, 42, grow=0.08)),
    "Goatee": (ellipse(_GOATEE, along=moved(_GOATEE, 7, 9, 0.5), across=moved(8, 57, 8, 0.05)),),
    "Mouth_Slightly_Open": (_MOUTH,),
    "Mustache": (
        polygon(
            between(31, 48, 0.35), 32, 33, 34, between(35, 54, 0.35), *range(54, 47, -1), grow=0.02
        ),
    ),
    "Pointy_Nose": (_NOSE,),
    "Smiling": (polygon(*range(48, 60), grow=0.07),),
    "Wearing_Lipstick": (_MOUTH,),
}  # fmt: skip

AREAS: Mapping[str, tuple[Shape, ...]] = {
    **{f"left_{name}": (shape,) for name, shape in _LEFT.items()},
    **{f"right_{name}": (shape.mirrored(),) for name, shape in _LEFT.items()},
    **{name: (shape, shape.mirrored()) for name, shape in _BOTH_SIDES.items()},
    **_MIDDLE,
}
"""The shapes whose union is the area of each concept."""


def areas(landmarks: Points, size: tuple[int, int], concepts: Sequence[str]) -> tuple[dict[str, Mask], dict[str, str]]:
    """Draws the masks of concepts; ``left_*`` is the left of the picture, whichever way the face is mirrored.

    Args:
        landmarks: ``[68, 2]``, x and y in pixels.
        size: ``(H, W)`` of the picture.
        concepts: Some of :data:`AREAS`.

    Returns:
        A mask ``[H, W]`` bool of each concept that the face shows; and why it does not show each of the others.

    Raises:
        KeyError: If the geometry has no such concept.
        ValueError: If the landmarks cannot be those of a face in the picture.
    """
    (found,) = areas_of_faces([(landmarks, size, concepts)])
    if isinstance(found, str):
        raise ValueError(found)
    return found


Areas: TypeAlias = tuple[dict[str, Mask], dict[str, str]]
"""What :func:`areas` returns."""


def areas_of_faces(wanted: Sequence[tuple[Points, tuple[int, int], Sequence[str]]]) -> list[Areas | str]:
    """The same for several faces, in one pass, which takes much less time for each.

    Args:
        wanted: Of each face the landmarks, the size and the concepts.

    Returns:
        Of each what it shows and hides, or why its landmarks cannot be those of a face.
    """
    problems = [objection(landmarks, size) for landmarks, size, _ in wanted]
    drawings: dict[tuple[int, tuple[Shape, ...]], Drawing] = {}  # several concepts of a face may share them
    shown: list[dict[str, tuple[Shape, ...]]] = []
    for i, ((landmarks, size, concepts), problem) in enumerate(zip(wanted, problems, strict=True)):
        shown.append({})
        if problem is None:
            face = PlacedFace.of(landmarks)
            shown[i] = {name: tuple(shape for shape in AREAS[name] if not shape.hidden(face)) for name in concepts}
            drawings.update({(i, shapes): Drawing(shapes, face, size) for shapes in shown[i].values() if shapes})
    drawn = dict(zip(drawings, draw(list(drawings.values())), strict=True))
    return [
        _told({name: drawn.get((i, shapes)) for name, shapes in shown[i].items()}) if problem is None else problem
        for i, problem in enumerate(problems)
    ]


def _told(drawn: Mapping[str, tuple[Mask, float] | None]) -> Areas:
    masks: dict[str, Mask] = {}
    hidden: dict[str, str] = {}
    for name, found in drawn.items():
        if found is None:
            hidden[name] = f"{name} is hidden behind the nose"
        elif not found[0].any():
            hidden[name] = f"{name} is hidden: its area has no pixel"
        elif found[1] < LEAST_INSIDE:
            hidden[name] = f"{name} lies outside of the picture by {1 - found[1]:.0%} of its area"
        else:
            masks[name] = found[0]
    return masks, hidden
