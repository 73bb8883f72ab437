"""The geometry of a face's parts, as functions of its labels and traits. Lengths in distances of the eyes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hnd.rendering.drawing import bump, ellipse, plateau, rounded
from lightning_hnd.rendering.parameters import FaceParameters


@dataclass(frozen=True)
class Head:
    """The outline of the face: an ellipse, wider towards the jaw's corners, and a jaw that may drop."""

    width: Tensor
    chin: Tensor
    square: Tensor
    drop: Tensor

    TOP = 1.55
    JAW = (1.75, 0.95, 0.62)  # row of its centre, radii: all that a dropping jaw moves

    @classmethod
    def of(cls, faces: FaceParameters) -> Head:
        """The heads of these faces."""
        male, child = faces.is_group("gender", 0), faces.is_group("age", 0)
        return cls(
            width=faces.between("face_width", 1.08, 1.24) + 0.03 * male,
            chin=faces.between("face_length", 1.74, 1.96) - 0.24 * child + 0.04 * male,
            square=faces.between("jaw", 0.0, 0.35) + 0.3 * male,
            drop=0.17 * faces.on("AU_26"),
        )

    def jaw(self, u: Tensor, v: Tensor) -> Tensor:
        """Rows in a face whose jaw is shut, of pixels at ``u, v``."""
        centre, radius_u, radius_v = self.JAW
        return v - self.drop * bump(ellipse(u, v - centre, radius_u, radius_v))

    def inside(self, u: Tensor, v: Tensor) -> Tensor:
        """Squared distance from the middle, 1 on the outline; ``v`` in a face whose jaw is shut."""
        below = v >= 0
        return rounded(u, v, self.width, torch.where(below, self.chin, self.TOP), self.square * below)


@dataclass(frozen=True)
class Brows:
    """Two bands of hair. Along a brow ``t`` runs from 0 at its inner to 1 at its outer end."""

    start: Tensor
    height: Tensor
    arch: Tensor
    inner: Tensor
    outer: Tensor
    lower: Tensor
    thickness: Tensor

    LENGTH = 0.64

    @classmethod
    def of(cls, faces: FaceParameters) -> Brows:
        """The brows of these faces."""
        return cls(
            start=faces.between("brow_gap", 0.22, 0.29) - 0.06 * faces.on("AU_4"),
            height=faces.between("brow_height", -0.33, -0.25),
            arch=faces.between("brow_arch", 0.02, 0.06) + 0.12 * faces.on("Arched_Eyebrows"),
            inner=0.15 * faces.on("AU_1"),
            outer=0.16 * faces.on("AU_2"),
            lower=0.1 * faces.on("AU_4"),
            thickness=faces.between("brow_thickness", 0.03, 0.045)
            + 0.01 * faces.is_group("gender", 0)
            - 0.008 * faces.is_group("age", 0)
            + 0.045 * faces.on("Bushy_Eyebrows"),
        )

    def along(self, s: Tensor) -> Tensor:
        """``t`` at distance ``s`` from the middle of the face."""
        return (s - self.start) / self.LENGTH

    def line(self, t: Tensor) -> Tensor:
        """The row of a brow's middle."""
        raised = self.inner * (1 - t).clamp(min=0).square() + self.outer * t.clamp(min=0).square()
        return self.height + self.lower * (1 - 0.6 * t) - self.arch * (4 * t * (1.15 - t)) - raised + 0.05 * t

    def half(self, t: Tensor) -> Tensor:
        """Half its thickness, negative beyond its ends."""
        return self.thickness * (1.1 - 0.7 * t) - 1.5 * ((t - 0.5).abs() - 0.5).clamp(min=0)


@dataclass(frozen=True)
class Eyes:
    """Two openings between lids. Along an eye ``q`` runs from -1 at its inner to 1 at its outer corner."""

    width: Tensor
    upper: Tensor
    lower: Tensor

    PLACE = 0.5

    @classmethod
    def of(cls, faces: FaceParameters) -> Eyes:
        """The eyes of these faces."""
        narrow, wide = faces.on("Narrow_Eyes"), faces.on("AU_5")
        young = 1 + 0.25 * faces.is_group("age", 0) - 0.1 * faces.is_group("age", 3)
        opening = faces.between("eye_opening", 0.9, 1.1) * young * (1 - 0.72 * narrow)
        return cls(
            width=faces.between("eye_width", 0.175, 0.205) * (1 + 0.1 * faces.is_group("age", 0)),
            upper=0.09 * opening + 0.085 * wide,
            lower=0.054 * opening + 0.02 * wide - 0.012 * faces.on("AU_6"),
        )

    def along(self, s: Tensor) -> Tensor:
        """``q`` at distance ``s`` from the middle of the face."""
        return (s - self.PLACE) / self.width

    def outside(self, q: Tensor, v: Tensor) -> Tensor:
        """Signed distance from the opening."""
        arc = 1 - q.square()
        tilted = v + 0.015 * q
        return (-self.upper * arc - tilted).maximum(tilted - self.lower * arc).maximum((q.abs() - 1) * self.width)


@dataclass(frozen=True)
class Nose:
    """A bridge that widens towards tip and wings."""

    width: Tensor
    tip: Tensor
    height: Tensor
    sharp: Tensor

    TOP = -0.12

    @classmethod
    def of(cls, faces: FaceParameters) -> Nose:
        """The noses of these faces."""
        big, sharp, child = faces.on("Big_Nose"), faces.on("Pointy_Nose"), faces.is_group("age", 0)
        width = faces.between("nose_width", 0.19, 0.225) + 0.01 * faces.is_group("gender", 0) - 0.03 * child
        return cls(
            width=width * (1 + 0.42 * big) * (1 - 0.28 * sharp) * (1 + 0.06 * faces.on("AU_9")),
            tip=faces.between("nose_length", 0.62, 0.68) - 0.09 * child + 0.05 * big + 0.03 * sharp,
            height=faces.between("nose_height", 0.9, 1.1) * (1 + 0.2 * big),
            sharp=sharp,
        )

    def bottom(self, s: Tensor) -> Tensor:
        """The row of its lower edge at distance ``s`` from the middle of the face."""
        return self.tip + 0.2 - 0.6 * s.square()

    def top(self, s: Tensor) -> Tensor:
        """The row at which it begins there: the bridge is narrower than the wings."""
        down = ((s - 0.15) / (self.width - 0.02)).clamp(min=0).sqrt()
        return self.TOP + down * (self.tip - self.TOP)

    def outside(self, s: Tensor, v: Tensor) -> Tensor:
        """Signed distance from the outline, or about so."""
        return (self.top(s) - v).maximum(v - self.bottom(s)).maximum(s - self.width - 0.13)


@dataclass(frozen=True)
class Mouth:
    """Two lips and what is between them. Along the mouth ``q`` runs from -1 to 1."""

    width: Tensor
    lift: Tensor
    pushed: Tensor
    upper: Tensor
    lower: Tensor
    parted: Tensor
    toothy: Tensor
    open: Tensor
    drop: Tensor

    PLACE = 1.08

    @classmethod
    def of(cls, faces: FaceParameters) -> Mouth:
        """The mouths of these faces."""
        smile, pull, stretch = faces.on("Smiling"), faces.on("AU_12"), faces.on("AU_20")
        opened = faces.on("Mouth_Slightly_Open")
        thick = (1 + 1.2 * faces.on("Big_Lips")) * (1 - 0.15 * stretch) * (1 - 0.2 * smile)
        return cls(
            width=faces.between("mouth_width", 0.37, 0.42) + 0.14 * smile + 0.04 * pull + 0.1 * stretch,
            lift=0.21 * smile + 0.06 * pull - 0.09 * faces.on("AU_15"),
            pushed=0.06 * faces.on("AU_17"),
            upper=faces.between("upper_lip", 0.055, 0.075) * thick,
            lower=faces.between("lower_lip", 0.085, 0.11) * thick * (1 + 0.15 * faces.on("AU_17")),
            parted=0.075 * faces.on("AU_25"),
            toothy=0.12 * smile * faces.chance("toothy", 0.75).maximum(opened),
            open=0.12 * opened,
            drop=0.13 * faces.on("AU_26"),
        )

    def rows(self, q2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows of the upper lip's upper and lower edge, and of the lower lip's; ``q2`` is the square of ``q``."""
        arc = 1 - q2
        open_arc = arc.clamp(min=0)
        middle = self.PLACE + self.lift * (0.35 - q2) - self.pushed * arc
        half = (0.5 * (self.parted + self.toothy)) * (open_arc * (1 + q2))
        deep = self.open * plateau(q2) + self.drop * open_arc
        inner_top, inner_bottom = middle - half - 0.2 * deep, middle + half + 0.8 * deep
        top = inner_top - self.upper * arc * (0.75 + 1.3 * q2)
        return top, inner_top, inner_bottom, inner_bottom + self.lower * arc

    def outside(self, u: Tensor, v: Tensor) -> Tensor:
        """Signed distance from the outline of the lips."""
        top, _, _, bottom = self.rows((u / self.width).square())
        return (top - v).maximum(v - bottom).maximum(u.abs() - self.width)


class FacialHair:
    """How dense hair grows, ``[N, h, w]`` in 0..1; rows are those of a face whose jaw is shut."""

    @staticmethod
    def jaw(u: Tensor, v: Tensor) -> Tensor:
        """A beard along cheeks and jaw, and around the chin."""
        edge = (ellipse(u, v - 0.28, 0.93, 0.86) - 0.85) * 3
        return edge.clamp(0, 1) * ((v - 0.15) * 6).clamp(0, 1)

    @staticmethod
    def lip(u: Tensor, v: Tensor) -> Tensor:
        """A mustache."""
        return plateau(ellipse(u, v - 0.885 - 0.33 * u.square(), 0.47, 0.105))

    @staticmethod
    def chin(u: Tensor, v: Tensor) -> Tensor:
        """A goatee."""
        return plateau(ellipse(u, v - 1.58, 0.36, 0.27))


@dataclass(frozen=True)
class Glasses:
    """Two lenses in rims, a bridge and arms."""

    width: Tensor
    height: Tensor
    box: Tensor
    rim: Tensor

    @classmethod
    def of(cls, faces: FaceParameters) -> Glasses:
        """The glasses of these faces, or those that they would wear."""
        return cls(
            width=faces.between("glasses_shape", 0.34, 0.4),
            height=faces.between("glasses_height", 0.22, 0.32),
            box=faces.between("glasses_shape", 0.0, 0.8),
            rim=faces.between("glasses_rim", 0.018, 0.04),
        )

    def lens(self, s: Tensor, v: Tensor) -> Tensor:
        """Signed distance from the lenses' outline."""
        return (rounded(s - 0.5, v - 0.05, self.width, self.height, self.box).sqrt() - 1) * self.height

    def frame(self, s: Tensor, v: Tensor) -> Tensor:
        """Signed distance from rims, bridge and arms."""
        rims = self.lens(s, v).abs() - self.rim
        bridge = (s - 0.52 + self.width).maximum((v + 0.02).abs() - 0.035)
        arms = (s - 1.17).maximum((v + 0.06).abs() - 0.03).maximum(0.48 + self.width - s)
        return rims.minimum(bridge).minimum(arms)


@dataclass(frozen=True)
class DoubleChin:
    """A fold of skin below the chin."""

    chin: Tensor

    @classmethod
    def of(cls, faces: FaceParameters) -> DoubleChin:
        """The folds of these faces, or those that they would have."""
        return cls(Head.of(faces).chin)

    def outside(self, u: Tensor, v: Tensor) -> Tensor:
        """Signed distance from the outline of the fold, -0.5 in its middle."""
        return (ellipse(u, v - self.chin + 0.12, 0.78, 0.46).sqrt() - 1) * 0.5
