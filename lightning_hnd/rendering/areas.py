"""Where concepts show in rendered faces: the area that a concept changes, in faces with it and without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_hnd.rendering.drawing import Box, Pose, Window, ellipse
from lightning_hnd.rendering.marks import MARKS
from lightning_hnd.rendering.parameters import FaceParameters
from lightning_hnd.rendering.parts import Brows, DoubleChin, Eyes, FacialHair, Glasses, Head, Mouth, Nose

# boxes that hold what is looked for in them
_FOREHEAD: Box = (0.0, -0.42), (1.1, 0.47)
_EYES: Box = (0.0, 0.06), (1.1, 0.38)
_GLASSES: Box = (0.0, 0.05), (1.25, 0.45)
_NOSE: Box = (0.0, 0.37), (0.6, 0.64)
_CHEEKS: Box = (0.0, 0.65), (1.15, 0.55)
_MOUTH: Box = (0.0, 1.22), (0.78, 0.66)
_LOWER: Box = (0.0, 1.1), (1.05, 0.82)
_JAW: Box = (0.0, 1.25), (1.3, 1.2)


def draw_areas(faces: FaceParameters, concepts: Sequence[str], masks: Tensor) -> None:
    """Draws the masks of concepts.

    Args:
        faces: N faces.
        concepts: Local concepts of the paper.
        masks: ``[N, len(concepts), H, W]`` bool, where to, all off.
    """
    pose = faces.pose((masks.shape[-2], masks.shape[-1]))
    areas = _Areas(faces, pose, Window.frame(pose, (masks.shape[-2], masks.shape[-1])))
    for c, name in enumerate(concepts):
        for i, (box, inside) in enumerate(areas.of(name).items()):
            window, plane = areas.window(box), masks[:, c : c + 1]
            here = inside[:, None] | window.take(plane, areas.picture) if i else inside[:, None]
            window.put(here, plane, areas.picture)


_Span: TypeAlias = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Areas:
    """The areas of concepts in some faces; what several concepts need is computed once."""

    faces: FaceParameters
    pose: Pose
    picture: Window
    _windows: dict[Box, Window] = field(default_factory=dict)
    _spans: dict[str, _Span] = field(default_factory=dict)
    _heads: dict[Box, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def window(self, box: Box) -> Window:
        """The window that holds a box."""
        if box not in self._windows:
            self._windows[box] = Window.around(self.pose, self.picture, *box)
        return self._windows[box]

    def of(self, name: str) -> dict[Box, Tensor]:
        """The area of a concept as a union: boxes, and which pixels of their windows belong to it."""
        if name in _PARTS:
            box, outside = _PARTS[name]
            return {box: outside(self, self.window(box)) < 0}
        if name in _STANDING:
            box, outside = _STANDING[name]
            return {box: outside(self, self.window(box)) < _MARGIN * self.pose.edge}
        areas = {}
        for part, (box, names, span) in _RESHAPED.items():
            if name in names.split():
                areas[box] = self._swept(part, box, span, self.faces.flipped(name))
        for mark in MARKS.get(name, ()):
            box = next(box for box in (*areas, _FOREHEAD, _EYES, _CHEEKS, _LOWER) if mark.lies_in(box))
            inside = mark.squared(self.window(box).u, self.window(box).v) < 1
            areas[box] = areas[box] | inside if box in areas else inside
        if name == "AU_26":
            window, (centre, *radii) = self.window(_JAW), Head.JAW
            areas[_JAW] = ellipse(window.u, window.v - centre, *radii) < 1
        return areas

    def _swept(
        self, part: str, box: Box, span: Callable[[FaceParameters, Tensor], _Span], flipped: FaceParameters
    ) -> Tensor:
        """Pixels between the highest and the lowest place of a part, in faces with and without a concept."""
        window = self.window(box)
        if part not in self._spans:
            self._spans[part] = span(self.faces, window.u)
        (top, bottom, ends), (other_top, other_bottom, other_ends) = self._spans[part], span(flipped, window.u)
        margin = _MARGIN * window.edge
        inside = (window.v > top.minimum(other_top) - margin) & (window.v < bottom.maximum(other_bottom) + margin)
        return inside & (ends.minimum(other_ends) < margin)

    def head(self, box: Box) -> tuple[Tensor, Tensor]:
        """Rows in a face whose jaw is shut, and squared distance from the head's middle, in the window of a box."""
        if box not in self._heads:
            window, head = self.window(box), Head.of(self.faces)
            shut = head.jaw(window.u, window.v)
            self._heads[box] = shut, head.inside(window.u, shut)
        return self._heads[box]


_MARGIN = 0.8  # in widths of an edge: shapes fade over half of one, brows over three quarters


_Outside: TypeAlias = Callable[[_Areas, Window], Tensor]


def _brow(side: int) -> _Outside:
    def outside(areas: _Areas, window: Window) -> Tensor:
        brows = Brows.of(areas.faces)
        t = brows.along(window.u.abs())
        return ((window.v - brows.line(t)).abs() - brows.half(t)).maximum(-side * window.u)

    return outside


def _eye(side: int) -> _Outside:
    def outside(areas: _Areas, window: Window) -> Tensor:
        eyes = Eyes.of(areas.faces)
        return (eyes.outside(eyes.along(window.u.abs()), window.v) - 0.015).maximum(-side * window.u)

    return outside


def _cheek(side: int) -> _Outside:
    def outside(areas: _Areas, window: Window) -> Tensor:
        cheek = (ellipse(window.u.abs() - 0.7, window.v - 0.62, 0.3, 0.34) - 1).maximum(-side * window.u)
        return cheek.maximum(-_nose(areas, window))

    return outside


def _hair(box: Box, *growths: Callable[[Tensor, Tensor], Tensor]) -> _Outside:
    def outside(areas: _Areas, window: Window) -> Tensor:
        shut, squared = areas.head(box)
        grows = torch.stack([growth(window.u, shut) > 0 for growth in growths]).any(0)
        return torch.where(grows & (squared < 1), -1.0, 1.0)

    return outside


def _double_chin(areas: _Areas, window: Window) -> Tensor:
    return DoubleChin.of(areas.faces).outside(window.u, window.v).maximum(0.85 - areas.head(_JAW)[1])


def _glasses(areas: _Areas, window: Window) -> Tensor:
    glasses, s = Glasses.of(areas.faces), window.u.abs()
    return glasses.lens(s, window.v).minimum(glasses.frame(s, window.v))


def _nose(areas: _Areas, window: Window) -> Tensor:
    return Nose.of(areas.faces).outside(window.u.abs(), window.v)


def _mouth(areas: _Areas, window: Window) -> Tensor:
    return Mouth.of(areas.faces).outside(window.u, window.v)


_PARTS: dict[str, tuple[Box, _Outside]] = {
    "nose": (_NOSE, _nose),
    "mouth": (_MOUTH, _mouth),
    "left_brow": (_FOREHEAD, _brow(-1)),
    "right_brow": (_FOREHEAD, _brow(1)),
    "left_eye": (_EYES, _eye(-1)),
    "right_eye": (_EYES, _eye(1)),
    "left_cheek": (_CHEEKS, _cheek(-1)),
    "right_cheek": (_CHEEKS, _cheek(1)),
}
"""Distances from the outlines of parts, right in sign."""

_STANDING: dict[str, tuple[Box, _Outside]] = {
    "Eyeglasses": (_GLASSES, _glasses),
    "5_o_Clock_Shadow": (_JAW, _hair(_JAW, FacialHair.jaw, FacialHair.lip)),
    "No_Beard": (_JAW, _hair(_JAW, FacialHair.jaw, FacialHair.lip, FacialHair.chin)),
    "Goatee": (_LOWER, _hair(_LOWER, FacialHair.chin)),
    "Mustache": (_MOUTH, _hair(_MOUTH, FacialHair.lip)),
    "Double_Chin": (_JAW, _double_chin),
}
"""The same for what comes and goes without moving anything."""


def _brow_span(faces: FaceParameters, u: Tensor) -> _Span:
    brows = Brows.of(faces)
    t = brows.along(u.abs())
    line, half = brows.line(t), brows.half(t)
    return line - half, line + half, (t - 0.5).abs() - 0.62


def _eye_span(faces: FaceParameters, u: Tensor) -> _Span:
    eyes = Eyes.of(faces)
    q = eyes.along(u.abs())
    arc = 1 - q.square()
    return (
        -eyes.upper * arc.clamp(min=0) - 0.075,
        (eyes.lower * arc).clamp(min=0) + 0.025,
        (q.abs() - 1) * eyes.width - 0.03,
    )


def _nose_span(faces: FaceParameters, u: Tensor) -> _Span:
    nose, s = Nose.of(faces), u.abs()
    return nose.top(s), nose.bottom(s), s - nose.width - 0.13


def _mouth_span(faces: FaceParameters, u: Tensor) -> _Span:
    mouth = Mouth.of(faces)
    top, _, _, bottom = mouth.rows((u / mouth.width).square().clamp(max=1))
    return top, bottom, u.abs() - mouth.width


_RESHAPED: dict[str, tuple[Box, str, Callable[[FaceParameters, Tensor], _Span]]] = {
    "brows": (_FOREHEAD, "AU_1 AU_2 AU_4 Arched_Eyebrows Bushy_Eyebrows", _brow_span),
    "eyes": (_EYES, "AU_5 AU_6 Narrow_Eyes", _eye_span),
    "nose": (_NOSE, "AU_9 Big_Nose Pointy_Nose", _nose_span),
    "mouth": (
        _MOUTH,
        "AU_12 AU_15 AU_17 AU_20 AU_25 AU_26 Big_Lips Mouth_Slightly_Open Smiling Wearing_Lipstick",
        _mouth_span,
    ),
}
"""Parts that concepts reshape: between which rows they lie, and where along them."""
