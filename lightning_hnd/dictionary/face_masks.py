"""Where concepts show in rendered faces: the area that a concept changes, in faces with it and without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from lightning_hnd.dictionary.drawing import Window, ellipse
from lightning_hnd.dictionary.face_marks import marked
from lightning_hnd.dictionary.face_parts import Brows, DoubleChin, Eyes, FacialHair, Glasses, Head, Mouth, Nose

if TYPE_CHECKING:
    from lightning_hnd.dictionary.faces import RenderedFaces

Box: TypeAlias = tuple[tuple[float, float], tuple[float, float]]

_BOXES: dict[Box, str] = {
    ((0.0, -0.2), (1.22, 0.78)): (
        "AU_1 AU_2 AU_4 AU_5 AU_6 left_brow right_brow left_eye right_eye Arched_Eyebrows Bushy_Eyebrows "
        "Bags_Under_Eyes Eyeglasses Narrow_Eyes"
    ),
    ((0.0, 0.37), (0.52, 0.6)): "AU_9 nose Big_Nose Pointy_Nose",
    ((0.0, 0.65), (1.15, 0.55)): "left_cheek right_cheek High_Cheekbones Rosy_Cheeks",
    ((0.0, 1.05), (1.05, 0.75)): (
        "AU_12 AU_15 AU_20 AU_25 mouth Big_Lips Mouth_Slightly_Open Mustache Smiling Wearing_Lipstick"
    ),
    ((0.0, 1.25), (1.3, 1.2)): "AU_17 AU_26 5_o_Clock_Shadow No_Beard Double_Chin Goatee",
}
"""Boxes in the face, as centre and half size, that hold the areas of these concepts."""


def _side(name: str, u: Tensor) -> Tensor:
    return u if name.startswith("left_") else -u


def _brow(name: str, faces: RenderedFaces, u: Tensor, v: Tensor) -> Tensor:
    brows = Brows.of(faces)
    t = brows.along(u.abs())
    return ((v - brows.line(t)).abs() - brows.half(t)).maximum(_side(name, u))


def _eye(name: str, faces: RenderedFaces, u: Tensor, v: Tensor) -> Tensor:
    eyes = Eyes.of(faces)
    return (eyes.outside(eyes.along(u.abs()), v) - 0.015).maximum(_side(name, u))


def _cheek(name: str, faces: RenderedFaces, u: Tensor, v: Tensor) -> Tensor:
    return (ellipse(u.abs() - 0.7, v - 0.62, 0.3, 0.34) - 1).maximum(_side(name, u))


def _in_face(faces: RenderedFaces, u: Tensor, v: Tensor, density: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    head = Head.of(faces)
    shut = head.jaw(u, v)
    return (head.inside(u, shut) - 1).maximum(1e-4 - density(u, shut))


def _beard(faces: RenderedFaces, u: Tensor, v: Tensor) -> Tensor:
    around = _in_face(faces, u, v, FacialHair.jaw).minimum(_in_face(faces, u, v, FacialHair.lip))
    return around.minimum(_in_face(faces, u, v, FacialHair.chin))


def _glasses(faces: RenderedFaces, u: Tensor, v: Tensor) -> Tensor:
    glasses = Glasses.of(faces)
    return glasses.lens(u.abs(), v).minimum(glasses.frame(u.abs(), v))


_Distance: TypeAlias = "Callable[[RenderedFaces, Tensor, Tensor], Tensor]"

_PARTS: dict[str, _Distance] = {
    "nose": lambda faces, u, v: Nose.of(faces).outside(u.abs(), v),
    "mouth": lambda faces, u, v: Mouth.of(faces).outside(u, v),
} | {
    f"{side}_{part}": partial(distance, f"{side}_")
    for side in ("left", "right")
    for part, distance in {"brow": _brow, "eye": _eye, "cheek": _cheek}.items()
}
"""Signed distances, at least in sign, from the outlines of parts."""

_STANDING: dict[str, _Distance] = {
    "Eyeglasses": _glasses,
    "5_o_Clock_Shadow": _beard,
    "No_Beard": _beard,
    "Goatee": lambda faces, u, v: _in_face(faces, u, v, FacialHair.chin),
    "Mustache": lambda faces, u, v: _in_face(faces, u, v, FacialHair.lip),
    "Double_Chin": lambda faces, u, v: DoubleChin.of(faces).squared(u, v) - 1,
}
"""The same for what comes and goes without moving anything."""

_Span: TypeAlias = tuple[Tensor, Tensor, Tensor]


def _brow_span(faces: RenderedFaces, u: Tensor) -> _Span:
    brows = Brows.of(faces)
    t = brows.along(u.abs())
    line, half = brows.line(t), brows.half(t)
    return line - half, line + half, (t - 0.5).abs() - 0.58


def _eye_span(faces: RenderedFaces, u: Tensor) -> _Span:
    eyes = Eyes.of(faces)
    q = eyes.along(u.abs())
    arc = 1 - q.square()
    return -eyes.upper * arc - 0.075, (eyes.lower * arc).clamp(min=0) + 0.025, q.abs() - 1.15


def _mouth_span(faces: RenderedFaces, u: Tensor) -> _Span:
    mouth = Mouth.of(faces)
    q2 = (u / mouth.width).square().clamp(max=1)
    return mouth.top(q2), mouth.bottom(q2), u.abs() - mouth.width


def _nose_span(faces: RenderedFaces, u: Tensor) -> _Span:
    nose = Nose.of(faces)
    return nose.top(u.abs()), nose.bottom(u.abs()), u.abs() - nose.width - 0.13


_CHANGING = {
    name: span
    for span, names in (
        (_brow_span, "AU_1 AU_2 AU_4 Arched_Eyebrows Bushy_Eyebrows"),
        (_eye_span, "AU_5 AU_6 Narrow_Eyes"),
        (_mouth_span, "AU_12 AU_15 AU_17 AU_20 AU_25 AU_26 Big_Lips Mouth_Slightly_Open Smiling Wearing_Lipstick"),
        (_nose_span, "AU_9 Big_Nose Pointy_Nose"),
    )
    for name in names.split()
}
"""What these concepts reshape: between which rows it lies, and where along them."""


def _between(
    span: Callable[[RenderedFaces, Tensor], _Span], faces: RenderedFaces, flipped: RenderedFaces, window: Window
) -> Tensor:
    """Pixels between the highest and the lowest place of a part, in faces with and without a concept."""
    (top, bottom, ends), (other_top, other_bottom, other_ends) = span(faces, window.u), span(flipped, window.u)
    margin = 0.6 * window.edge
    inside = (window.v > top.minimum(other_top) - margin) & (window.v < bottom.maximum(other_bottom) + margin)
    return inside & (ends.minimum(other_ends) < margin)


def draw_areas(faces: RenderedFaces, concepts: Sequence[str], masks: Tensor) -> None:
    """Draws the masks of concepts.

    Args:
        faces: N faces.
        concepts: Local concepts of the paper.
        masks: ``[N, len(concepts), H, W]`` bool, where to, all off.
    """
    frame = masks.shape[-2], masks.shape[-1]
    pose = faces.pose(frame)
    picture = Window.frame(pose, frame)
    for box, names in _BOXES.items():
        here = [(c, name) for c, name in enumerate(concepts) if name in names.split()]
        if here:
            window = Window.around(pose, picture, *box)
            n, rows, columns = window.index(picture)
            for c, name in here:
                masks[n, c, rows, columns] = area(name, faces, window)


def area(name: str, faces: RenderedFaces, window: Window) -> Tensor:
    """Where a concept shows in a window, ``[N, h, w]`` bool."""
    u, v = window.u, window.v
    if name in _PARTS:
        return _PARTS[name](faces, u, v) < 0
    if name in _STANDING:
        return _STANDING[name](faces, u, v) < 0.6 * window.edge
    result = marked(name, u, v)
    if name in _CHANGING:
        flipped = faces.replace(**{name: ~faces.carries([name])[:, 0]})
        result |= _between(_CHANGING[name], faces, flipped, window)
    if name == "AU_26":
        centre, *radii = Head.JAW
        result |= ellipse(u, v - centre, *radii) < 1
    return result
