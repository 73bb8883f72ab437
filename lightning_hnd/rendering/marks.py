"""Marks on the skin: folds, wrinkles, bulges and tints that concepts bring. What a mark changes ends with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lightning_hnd.rendering.drawing import Box, bump, ellipse
from lightning_hnd.rendering.parameters import FaceParameters


@dataclass(frozen=True)
class Mark:
    """An ellipse on the skin, on both sides of the face unless in its middle. Lengths in distances of the eyes.

    Attributes:
        at: Its centre: distance from the middle of the face, and row.
        radii: Across and down.
        tilt: In degrees, of its lower end away from the middle of the face.
        raised: How far it stands out.
        dark: By what share it darkens the skin; brightens it if negative.
        lines: Number of lines that the darkening is broken into, across (level lines) if positive, upright ones if
            negative, 0 for none.
        tint: A colour and its opacity.
    """

    at: tuple[float, float]
    radii: tuple[float, float]
    tilt: float = 0.0
    raised: float = 0.0
    dark: float = 0.0
    lines: float = 0.0
    tint: tuple[float, float, float, float] | None = None

    def squared(self, u: Tensor, v: Tensor) -> Tensor:
        """Squared distance from its centre, 1 on its outline."""
        across, down = self._own(u, v)
        return ellipse(across, down, *self.radii)

    def lies_in(self, box: Box) -> bool:
        """Whether a box in the face holds it whole."""
        (middle, row), (half_width, half_height) = box
        tilt = math.radians(self.tilt)
        across = math.hypot(self.radii[0] * math.cos(tilt), self.radii[1] * math.sin(tilt))
        down = math.hypot(self.radii[0] * math.sin(tilt), self.radii[1] * math.cos(tilt))
        return self.at[0] + across <= half_width - abs(middle) and abs(self.at[1] - row) + down <= half_height

    def _own(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        across = u.abs() - self.at[0] if self.at[0] else u
        down = v - self.at[1]
        if not self.tilt:
            return across, down
        cos, sin = math.cos(math.radians(self.tilt)), math.sin(math.radians(self.tilt))
        return cos * across - sin * down, sin * across + cos * down

    def hill(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Its strength at each pixel, ``[N, h, w]`` in 0..1, and the same broken into lines."""
        across, down = self._own(u, v)
        hill = bump(ellipse(across, down, *self.radii))
        if not self.lines:
            return hill, hill
        phase = down / self.radii[1] if self.lines > 0 else across / self.radii[0]
        return hill, hill * (0.5 + 0.5 * (phase * (math.pi * abs(self.lines))).cos())


_FOLD = Mark((0.5, 0.82), (0.085, 0.36), tilt=34, dark=0.45, raised=-0.02)

MARKS: dict[str, tuple[Mark, ...]] = {
    "AU_1": (Mark((0, -0.62), (0.36, 0.24), dark=0.45, lines=2),),
    "AU_2": (Mark((0.72, -0.62), (0.34, 0.22), tilt=-15, dark=0.45, lines=2),),
    "AU_4": (Mark((0, -0.3), (0.19, 0.25), dark=0.55, lines=-2),),
    "AU_6": (
        Mark((0.88, 0.06), (0.17, 0.2), dark=0.5, lines=3),
        Mark((0.56, 0.27), (0.34, 0.12), raised=0.06, dark=-0.12),
        Mark((0.56, 0.17), (0.27, 0.05), dark=0.5),
    ),
    "AU_9": (
        Mark((0, 0.02), (0.24, 0.22), dark=0.6, lines=3),
        Mark((0.27, 0.5), (0.07, 0.22), tilt=25, dark=0.5),
    ),
    "AU_12": (_FOLD, Mark((0.6, 1.0), (0.1, 0.14), tilt=20, dark=0.5)),
    "AU_15": (Mark((0.5, 1.32), (0.09, 0.24), tilt=15, dark=0.6),),
    "AU_17": (Mark((0, 1.56), (0.36, 0.2), dark=0.45, lines=2), Mark((0, 1.4), (0.34, 0.07), dark=0.4)),
    "AU_20": (Mark((0.66, 1.14), (0.16, 0.28), dark=0.5, lines=-2),),
    "Bags_Under_Eyes": (
        Mark((0.5, 0.17), (0.25, 0.11), raised=0.05, tint=(0.45, 0.3, 0.4, 0.35)),
        Mark((0.5, 0.235), (0.25, 0.06), dark=0.45),
    ),
    "High_Cheekbones": (
        Mark((0.74, 0.44), (0.32, 0.17), tilt=-20, raised=0.05, dark=-0.22),
        Mark((0.76, 0.84), (0.2, 0.3), tilt=-20, dark=0.42),
    ),
    "Rosy_Cheeks": (Mark((0.68, 0.58), (0.34, 0.3), tint=(0.9, 0.3, 0.36, 0.6)),),
    "Smiling": (
        Mark((0.52, 0.84), (0.08, 0.33), tilt=30, dark=0.3),
        Mark((0.66, 0.62), (0.34, 0.26), raised=0.06),
    ),
}
"""The marks of each concept that has any."""

AGE_MARKS = (
    Mark((0, -0.66), (0.8, 0.26), dark=0.3, lines=3),
    Mark((0.5, 0.84), (0.07, 0.32), tilt=32, dark=0.35),
    Mark((0.86, 0.04), (0.14, 0.14), dark=0.25, lines=2),
    Mark((0.5, 1.3), (0.06, 0.2), tilt=10, dark=0.3),
)
"""The marks of apparent age."""


def strength(faces: FaceParameters) -> dict[Mark, Tensor]:
    """How strongly each face shows each mark, ``[N, 1, 1]`` by mark."""
    old = 0.85 * faces.is_group("age", 2) + 1.5 * faces.is_group("age", 3)
    aged = old * faces.between("wrinkles", 0.7, 1.1)
    marks = {mark: faces.on(name) for name, marks in MARKS.items() for mark in marks}
    return marks | dict.fromkeys(AGE_MARKS, aged)
