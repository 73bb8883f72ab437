"""The head of a rendered face: colour and relief of its skin and features, lit at the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lightning_hnd.rendering.drawing import Pose, Window, bump, ellipse, grey, hue, over, rgb, soft
from lightning_hnd.rendering.marks import Mark, strength
from lightning_hnd.rendering.parameters import FaceParameters
from lightning_hnd.rendering.parts import Brows, Eyes, FacialHair, Head, Mouth, Nose

HEAD = (0.0, 0.25), (1.42, 2.0)
"""Centre and half size of the box that holds a head."""

_EYES = (0.0, -0.22), (1.1, 0.75)
_MOUTH = (0.0, 1.18), (1.28, 1.0)
_NOSE = (0.0, 0.45), (1.1, 0.55)


def skin_colour(faces: FaceParameters) -> Tensor:
    """The colour of the skin, ``[N, 3, 1, 1]``."""
    dark, tone, tint = faces.is_group("skin_tone", 1), faces.between("skin", 0, 1), faces.between("skin_hue", -1, 1)
    light = 0.98 - 0.12 * tone - dark * (0.3 + 0.2 * tone)
    return rgb(light, light * (0.75 - 0.07 * dark + 0.03 * tint), light * (0.63 - 0.11 * dark + 0.05 * tint))


def hair_colour(faces: FaceParameters) -> Tensor:
    """The colour of the hair, ``[N, 3, 1, 1]``: black to blond, greyer with apparent age."""
    pale = faces.between("hair_colour", 0, 1).square() * (1 - 0.8 * faces.is_group("skin_tone", 1))
    colour = rgb(0.1 + 0.68 * pale, 0.07 + 0.46 * pale, 0.055 + 0.22 * pale)
    old = faces.between("hair_grey", 0.5, 1) * faces.is_group("age", 3)
    grown = faces.between("hair_grey", -0.3, 0.6).clamp(min=0) * faces.is_group("age", 2)
    return torch.lerp(colour, grey(faces.between("hair_grey", 0.45, 0.78)), (old + grown)[:, None])


@dataclass
class Relief:
    """A part of the head before it is lit.

    Attributes:
        faces: Whose head.
        window: Which part of the picture.
        colour: ``[N, 3, h, w]``, of the surface.
        height: ``[N, h, w]``, of the surface towards the viewer, in units.
        shade: ``[N, h, w]``, what the colour is still to be multiplied by: one plane is cheaper than three.
    """

    faces: FaceParameters
    window: Window
    colour: Tensor
    height: Tensor
    shade: Tensor | None = None

    def tint(self, colour: Tensor, alpha: Tensor) -> None:
        """Paints a colour on the surface."""
        self.settle()
        self.colour = over(self.colour, colour, alpha)

    def darken(self, amount: Tensor) -> None:
        """Darkens the surface by a share of its colour."""
        kept = 1 - amount
        self.shade = kept if self.shade is None else self.shade.mul_(kept)

    def settle(self) -> None:
        """Applies the shade."""
        if self.shade is not None:
            self.colour = self.colour * self.shade[:, None]
            self.shade = None

    def part(self, window: Window) -> Relief:
        """A copy of what lies in ``window``, which this window holds, but for its borders perhaps."""
        height = window.take(self.height[:, None], self.window)[:, 0]
        return Relief(self.faces, window, window.take(self.colour, self.window), height)

    def put(self, part: Relief) -> None:
        """Takes a part back."""
        part.settle()
        part.window.put(part.colour, self.colour, self.window)
        part.window.put(part.height[:, None], self.height[:, None], self.window)

    def mark(self, mark: Mark, amount: Tensor) -> None:
        """Leaves a mark."""
        hill, lines = mark.hill(self.window.u, self.window.v)
        if mark.raised:
            self.height = self.height + (amount * mark.raised) * hill
        if mark.dark:
            self.darken((amount * mark.dark) * lines)
        if mark.tint:
            *colour, alpha = mark.tint
            self.tint(self.colour.new_tensor(colour).view(1, 3, 1, 1), (amount * alpha) * hill)

    def lit(self, pose: Pose) -> Tensor:
        """The surface under the light, ``[N, 3, h, w]``."""
        around = functional.pad(self.height, (1, 1, 1, 1), mode="replicate")
        slope_x = (around[:, 1:-1, 2:] - around[:, 1:-1, :-2]) * (pose.scale / 2)
        slope_y = (around[:, 2:, 1:-1] - around[:, :-2, 1:-1]) * (pose.scale / 2)
        light_x, light_y = self.faces.between("light_x", -0.6, 0.6), self.faces.between("light_y", -0.7, -0.05)
        steep = 1 + slope_x.square() + slope_y.square()
        strength = (1 + light_x.square() + light_y.square()).rsqrt()
        facing = (1 - slope_x * light_x - slope_y * light_y) * steep.rsqrt() * strength
        facing = facing.clamp(min=0)
        ambient = self.faces.between("ambient", 0.35, 0.6)
        gleam = 0.13 * facing.square().square().square().square()
        return self.colour * (ambient + (1.05 - ambient) * facing)[:, None] + gleam[:, None]


def head(faces: FaceParameters, pose: Pose, frame: Window) -> tuple[Window, Tensor, Tensor]:
    """Paints heads.

    Args:
        faces: N faces.
        pose: Where they are.
        frame: The whole picture.

    Returns:
        The window that holds the heads, their colours ``[N, 3, h, w]`` in it, and their coverage ``[N, h, w]``.
    """
    window = Window.around(pose, frame, *HEAD)
    shape = Head.of(faces)
    squared = shape.inside(window.u, shape.jaw(window.u, window.v))
    height = 0.85 * (1.02 - squared).clamp(min=0.02).sqrt()
    relief = Relief(faces, window, skin_colour(faces).expand(-1, -1, *window.size).clone(), height)
    marks = list(strength(faces).items())
    for box, paint in ((_NOSE, _nose), (_MOUTH, _chin), (_EYES, _eyes)):
        part = relief.part(Window.around(pose, window, *box))
        for mark, amount in [entry for entry in marks if _within(entry[0], box)]:
            part.mark(mark, amount)
        paint(part)
        relief.put(part)
    cover = soft((squared.clamp(min=1e-4).sqrt() - 1) * 1.3, pose.edge)
    return window, relief.lit(pose), cover


def _within(mark: Mark, box: tuple[tuple[float, float], tuple[float, float]]) -> bool:
    # each mark is left in one window, the one whose middle is nearest
    rows = {centre[1]: centre for centre, _ in (_EYES, _MOUTH, _NOSE)}
    return box[0] == rows[min(rows, key=lambda row: abs(row - mark.at[1]))]


def _eyes(relief: Relief) -> None:
    faces, u, v, edge = relief.faces, relief.window.u, relief.window.v, relief.window.edge
    s = u.abs()
    relief.height = relief.height - 0.1 * bump(ellipse(s - 0.42, v + 0.03, 0.4, 0.28))
    relief.height = relief.height + 0.05 * bump(ellipse(s - 0.5, v, 0.28, 0.18))
    relief.darken(0.22 * bump(ellipse(s - 0.4, v + 0.07, 0.4, 0.22)))
    eyes = Eyes.of(faces)
    q = eyes.along(s)
    out = eyes.outside(q, v)
    crease = (v + eyes.upper * (1 - q.square()) + 0.055).abs() - 0.008
    relief.darken(0.45 * soft(crease, 2 * edge) * bump((q / 1.15).square()))
    x = u - u.sign() * eyes.PLACE - faces.between("gaze", -0.05, 0.05)
    iris = ellipse(x, v + 0.015, 0.095, 0.095).sqrt() * 0.095
    ball = grey(faces.between("skin", 0.9, 0.8), 1, 0.97, 0.95).expand(-1, -1, *relief.window.size)
    brown = faces.between("iris", 0.0, 1.0)
    ball = over(ball, hue(0.06 + 0.5 * (brown > 0.7), 0.6, 0.12 + 0.3 * brown), soft(iris - 0.095, edge))
    ball = over(ball, grey(0 * brown + 0.03), soft(iris - 0.045, edge))
    glint = ellipse(x - 0.025, v + 0.05, 0.05, 0.05)
    ball = over(ball, grey(0 * brown + 1.15), 0.9 * bump(glint))
    ball = ball * (1 - 0.55 * bump(((v + eyes.upper * (1 - q.square())) / 0.09).square()))[:, None]
    relief.tint(ball, soft(out, edge))
    lash = soft(out.abs() - 0.014, edge) * ((0.05 - v) * 12).clamp(0.25, 1)
    relief.darken((0.7 + 0.2 * faces.is_group("gender", 1)) * lash)
    _brows(relief)


def _brows(relief: Relief) -> None:
    faces, s, v = relief.faces, relief.window.u.abs(), relief.window.v
    brows = Brows.of(faces)
    t = brows.along(s)
    hairs = 0.85 + 0.15 * (s * 60 + v * 40).sin()
    cover = soft((v - brows.line(t)).abs() - brows.half(t), 1.5 * relief.window.edge)
    relief.tint(0.6 * hair_colour(faces), 0.9 * hairs * cover)


def _nose(relief: Relief) -> None:
    faces, u, v = relief.faces, relief.window.u, relief.window.v
    s = u.abs()
    relief.height = relief.height + 0.07 * bump(ellipse(s - 0.62, v - 0.55, 0.42, 0.36))
    relief.tint(
        grey(1 + 0 * faces.between("skin", 0, 1), 0.85, 0.3, 0.3), 0.12 * bump(ellipse(s - 0.66, v - 0.58, 0.4, 0.35))
    )
    nose = Nose.of(faces)
    width, tip = nose.width, nose.tip
    down = ((v - nose.TOP) / (tip - nose.TOP)).clamp(0, 1)
    start = ((v - nose.TOP) * 4).clamp(0, 1)
    end = (1 - ((v - tip) / 0.16).clamp(0, 1)).square()
    ridge = bump((u / (0.15 + (width - 0.03) * down.square())).square()) * (0.03 + 0.2 * down) * start * end
    ball = bump(ellipse(u, v - tip, 0.75 * width - 0.04 * nose.sharp, 0.17))
    wings = bump(ellipse(s - 0.72 * width, v - tip - 0.03, 0.5 * width, 0.12))
    relief.height = relief.height + nose.height * (ridge + (0.07 + 0.09 * nose.sharp) * ball + 0.09 * wings)
    relief.darken(-0.35 * nose.sharp * bump(ellipse(u, v - tip + 0.12, 0.07, 0.28)))
    relief.darken(0.75 * bump(ellipse(s - 0.42 * width, v - tip - 0.095, 0.36 * width, 0.05)))
    relief.darken(0.35 * bump(ellipse(s - width, v - tip - 0.03, 0.05, 0.13)))
    relief.darken((0.25 + 0.4 * nose.sharp) * bump(ellipse(u, v - tip - 0.12, 0.95 * width, 0.07)))


def _chin(relief: Relief) -> None:
    u, v = relief.window.u, relief.window.v
    shut = Head.of(relief.faces).jaw(u, v)
    relief.height = relief.height + 0.06 * bump(ellipse(u, shut - 1.6, 0.35, 0.24))
    relief.darken(0.22 * bump(ellipse(u, v - 1.4, 0.32, 0.09)))
    relief.darken(0.12 * bump(ellipse(u, v - 0.9, 0.05, 0.1)))
    _beard(relief, shut)
    _mouth(relief)


def _beard(relief: Relief, shut: Tensor) -> None:
    faces, u = relief.faces, relief.window.u
    colour = 0.62 * hair_colour(faces)
    hairs = 0.9 + 0.1 * (u * 70).sin() * (shut * 50 + 9 * u).sin()
    jaw, lip, chin = (grow(u, shut) * hairs for grow in (FacialHair.jaw, FacialHair.lip, FacialHair.chin))
    around = jaw.maximum(lip)
    stubble = torch.lerp(colour, grey(faces.between("beard", 0.25, 0.35), 0.95, 1, 1.1), 0.4)
    relief.tint(stubble, 0.5 * faces.on("5_o_Clock_Shadow") * around)
    relief.tint(colour, 0.8 * faces.on("full_beard") * around)
    relief.tint(colour, 0.88 * faces.on("Goatee") * chin)
    relief.tint(colour, 0.88 * faces.on("Mustache") * lip)


def _mouth(relief: Relief) -> None:
    faces, u, v, edge = relief.faces, relief.window.u, relief.window.v, relief.window.edge
    mouth = Mouth.of(faces)
    q2 = (u / mouth.width).square()
    top, inner_top, inner_bottom, bottom = mouth.rows(q2)
    ends = u.abs() - mouth.width
    lips = soft((top - v).maximum(v - bottom).maximum(ends), edge)
    natural = skin_colour(faces) * grey(faces.between("lip_red", 0.95, 0.75), 0.95, 0.72, 0.76)
    red = faces.between("lipstick", 0, 1)
    stick = rgb(0.55 + 0.3 * red, 0.04 + 0.1 * red, 0.12 + 0.2 * red)
    relief.tint(torch.lerp(natural, stick, 0.85 * faces.on("Wearing_Lipstick")[:, None]), lips)
    swell = bump(((v - bottom) / 0.11 + 1).square()) - 0.6 * bump(((v - inner_bottom) / 0.05).square())
    relief.height = relief.height + 0.035 * lips * swell
    relief.darken(0.6 * soft((v - inner_top).abs() - 0.006, 1.5 * edge) * soft(ends, edge))
    relief.tint(_inner_mouth(relief, mouth, q2), soft((inner_top - v).maximum(v - inner_bottom).maximum(ends), edge))


def _inner_mouth(relief: Relief, mouth: Mouth, q2: Tensor) -> Tensor:
    """Teeth above, tongue below, dark between: ``[N, 3, h, w]``."""
    faces, u, v = relief.faces, relief.window.u, relief.window.v
    _, inner_top, inner_bottom, _ = mouth.rows(q2)
    dark = grey(faces.between("lip_red", 0.1, 0.2), 1, 0.35, 0.35).expand(-1, -1, *relief.window.size)
    tongue = 0.8 * bump(((v - inner_bottom) / 0.09).square()) * bump((u / 0.3).square())
    inside = over(dark, grey(faces.between("lip_red", 0.65, 0.55), 1, 0.42, 0.45), tongue)
    shown = (0.09 * ((mouth.parted + mouth.toothy) > 0) + 0.3 * mouth.open) * (1 - q2).clamp(min=0)
    white = grey(faces.between("skin", 0.98, 0.85), 1, 0.98, 0.93)
    return over(inside, white, soft(v - inner_top - shown, relief.window.edge))
