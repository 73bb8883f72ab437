"""Painting rendered faces: what is behind the head, the head, what lies over it, and the camera."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hnd.rendering.drawing import (
    Window,
    bump,
    ellipse,
    grain,
    grey,
    hue,
    over,
    overpaint,
    rgb,
    rounded,
    soft,
)
from lightning_hnd.rendering.parameters import FaceParameters
from lightning_hnd.rendering.parts import DoubleChin, Glasses, Head
from lightning_hnd.rendering.relief import hair_colour, head, skin_colour

_GLASSES = (0.0, 0.05), (1.25, 0.45)  # a box that holds them


def paint(faces: FaceParameters, size: tuple[int, int]) -> Tensor:
    """Draws the pictures of faces.

    Args:
        faces: N faces.
        size: Height and width.

    Returns:
        ``[N, 3, H, W]`` uint8.
    """
    pose = faces.pose(size)
    frame = Window.frame(pose, size)
    hair = _Hair.of(faces, frame)
    canvas = _background(faces, size)
    overpaint(canvas, hair.colour, hair.behind(frame))
    _body(faces, frame, canvas)
    window, skin, cover = head(faces, pose, frame)
    with _opened(canvas, window, frame) as below:
        _double_chin(faces, window, below)
        overpaint(below, skin, cover)
    window = Window.around(pose, frame, *_GLASSES)
    with _opened(canvas, window, frame) as below:
        _glasses(faces, window, below)
    overpaint(canvas, hair.colour, hair.front(frame))
    return _develop(faces, canvas)


@contextmanager
def _opened(canvas: Tensor, window: Window, frame: Window) -> Iterator[Tensor]:
    """The part of a canvas in a window, ``[N, 3, h, w]``, put back at the end."""
    part = window.take(canvas, frame)
    yield part
    window.put(part, canvas, frame)


def _background(faces: FaceParameters, size: tuple[int, int]) -> Tensor:
    device = faces.traits.device
    y, x = ((torch.arange(n, device=device) + 0.5) / n - 0.5 for n in size)
    turn = faces.between("back_turn", 0, 2 * torch.pi)
    across = x * turn.cos() + y[:, None] * turn.sin()
    first = hue(faces.between("back_hue", 0, 1), 0.3, faces.between("back_light", 0.1, 1.0))
    second = hue(faces.between("back_hue_2", 0, 1), 0.35, faces.between("back_light_2", 0.05, 0.95))
    share = (across + 0.5).clamp(0, 1) * 0.7
    panel = soft((across - faces.between("back_panel", -0.5, 1.1)).abs() - 0.14, 0.02)
    canvas = over(first.expand(-1, -1, *size), second, share.maximum(panel))
    # clouds: a sum of separable waves, so that they cost little more than one plane
    waves = torch.arange(1, 7, device=device)
    phase = faces.between("texture", 0, 40) * waves.view(1, -1, 1)
    rows = (y * (waves * 2.3)[:, None] + phase).sin() / waves.sqrt()[:, None]
    columns = (x * (waves.flip(0) * 2.9)[:, None] + 1.7 * phase).sin()
    cloud = torch.einsum("nkh,nkw->nhw", rows, columns) * faces.between("back_texture", 0.0, 0.2)
    return canvas * (1 + cloud)[:, None]


@dataclass(frozen=True)
class _Hair:
    """Hair: a hull around skull and, if long, shoulders; before the face all of it but an opening.

    Attributes:
        colour: ``[N, 3, H, W]``.
        hull: ``[N, H, W]``, signed distance from its outline.
        opening: ``[N, H, W]``, signed distance from the part of the face that it leaves free, positive inside.
        end: ``[N, 1, 1]``, the row of its lower end before the ears.
    """

    colour: Tensor
    hull: Tensor
    opening: Tensor
    end: Tensor

    @classmethod
    def of(cls, faces: FaceParameters, frame: Window) -> _Hair:
        """The hair of these faces."""
        u, v = frame.u, frame.v
        female = faces.is_group("gender", 1)
        long = faces.chance("hair_style", 0.05) + female * (
            faces.chance("hair_style", 0.88) - faces.chance("hair_style", 0.05)
        )
        volume = faces.between("hair_volume", 0.02, 0.25)
        phase = faces.between("texture", 0, 40)
        locks = (9 * u + 1.2 * (2.3 * v + phase).sin() + phase).sin() + 0.6 * (
            31 * u + 3 * v + 2 * (1.7 * v).sin()
        ).sin()
        curl = faces.between("hair_curls", -0.04, 0.06).clamp(min=0)
        radius = Head.of(faces).width + 0.04 + 0.3 * volume
        skull = (ellipse(u, v + 0.15, radius, 1.42 + volume).sqrt() - 1) * 1.3
        skull = skull.maximum(0.6 * (v - 0.25))
        length = faces.between("hair_length", 1.2, 2.9)
        half = (length + 1.5) / 2
        mane = (rounded(u, v + 1.45 + volume - half, radius + 0.12 + 0.6 * volume, half, 0.7).sqrt() - 1) * 1.2
        line = faces.between("hair_line", -1.15, -0.82) - 0.35 * (1 - female) * faces.is_group("age", 3)
        aside = u - faces.between("hair_part", -0.25, 0.25)
        opening = 1 - ellipse(aside, (v - 0.4).clamp(max=0), radius - 0.02 - 0.12 * long, 0.4 - line).sqrt()
        shine = 1 + 0.2 * locks + 0.4 * bump(ellipse(u - faces.between("light_x", -0.6, 0.6), v + 1.15, 1.1, 0.45))
        return cls(
            colour=hair_colour(faces) * shine[:, None],
            hull=torch.where(long > 0, mane.minimum(skull), skull) + curl * locks,
            opening=opening + 0.3 * curl * locks,
            end=torch.where(long > 0, length, 0.2),
        )

    def behind(self, frame: Window) -> Tensor:
        """Coverage of the hair behind the head."""
        return soft(self.hull, frame.edge)

    def front(self, frame: Window) -> Tensor:
        """Coverage of the hair before the head."""
        return soft(self.hull.maximum(self.opening).maximum(frame.v - self.end), 2 * frame.edge)


def _body(faces: FaceParameters, frame: Window, canvas: Tensor) -> None:
    u, v, edge = frame.u, frame.v, frame.edge
    s = u.abs()
    shape = Head.of(faces)
    male = faces.is_group("gender", 0)
    neck = (s - 0.55 - 0.1 * male - 0.25 * (v - 1.9).clamp(min=0)).maximum(0.6 - v)
    ears = (ellipse(s - shape.width - 0.02, v - 0.2, 0.13, 0.32).sqrt() - 1) * 0.2
    dim = 0.95 - faces.between("light_y", 0.5, 0.15) * bump(ellipse(u, v - shape.chin + 0.1, 1.0, 0.9))
    skin = skin_colour(faces)
    overpaint(canvas, skin * (dim * (0.9 - 0.2 * s.clamp(max=1)))[:, None], soft(neck.minimum(ears), edge))
    cloth = faces.between("shirt_hue", 2.0, 2.5) + 0.2 * s.square() - v - (0.75 * (0.6 - 0.8 * s).clamp(min=0)) * -1
    shirt = hue(faces.between("shirt_hue", 0, 1), 0.4, faces.between("shirt", 0.04, 0.9))
    shirt = shirt * (1 - 0.12 * s + 0.06 * (7 * u + 3 * v).sin())[:, None]
    overpaint(canvas, shirt, soft(cloth, edge))


def _double_chin(faces: FaceParameters, window: Window, canvas: Tensor) -> None:
    distance = DoubleChin.of(faces).outside(window.u, window.v)
    fold = skin_colour(faces) * (0.9 - 0.5 * (1 + 2 * distance).clamp(0, 1).square().square())[:, None]
    overpaint(canvas, fold, faces.on("Double_Chin") * soft(distance, window.edge))


def _glasses(faces: FaceParameters, window: Window, canvas: Tensor) -> None:
    s, v = window.u.abs(), window.v
    glasses, on = Glasses.of(faces), faces.on("Eyeglasses")
    dark = hue(faces.between("glasses_colour", 0, 1), 0.4, faces.between("glasses_tint", 0.02, 0.3))
    lens = soft(glasses.lens(s, v), window.edge)
    overpaint(canvas, dark, on * faces.between("glasses_tint", 0.05, 0.3) * lens)
    glare = lens * bump(((window.u + v - 0.35 * window.u.sign()) / 0.12).square())
    overpaint(canvas, grey(0 * on + 1.0), 0.25 * on * glare)
    overpaint(canvas, dark, 0.95 * on * soft(glasses.frame(s, v), window.edge))


def _develop(faces: FaceParameters, canvas: Tensor) -> Tensor:
    size = canvas.shape[-2], canvas.shape[-1]
    noise = grain(faces.between("noise_y", 0, 256).long(), faces.between("noise_x", 0, 256).long(), size)
    noise = noise * faces.between("noise", 0.0, 4.6)
    warm, light = faces.between("warmth", -0.06, 0.06), faces.between("exposure", 0.85, 1.1)
    light = light * 255
    canvas = canvas.mul_(rgb(light * (1 + warm), light, light * (1 - warm))).add_(noise[:, None])
    return canvas.round_().clamp_(0, 255).to(torch.uint8)
