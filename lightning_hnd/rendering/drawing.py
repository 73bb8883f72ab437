"""Drawing on many faces at once: windows of pixels, soft shapes, compact bumps and a grain that is always the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Box: TypeAlias = tuple[tuple[float, float], tuple[float, float]]
"""A box in the face: its centre ``(u, v)`` and half its width and height."""

_TILE = 256  # height and width of the grain, a power of two


@contextmanager
def in_float32() -> Iterator[None]:
    """While open new tensors are float32, whatever the default type is: pictures are the same everywhere."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@dataclass(frozen=True)
class Pose:
    """Where the faces are in the picture. A face's own unit is the distance of its eyes, its origin between them.

    Attributes:
        x: ``[N, 1, 1]``, column of the origin, in pixels.
        y: ``[N, 1, 1]``, its row.
        scale: ``[N, 1, 1]``, pixels per unit.
        roll: ``[N, 1, 1]``, in radians, clockwise.
        yaw: ``[N, 1, 1]``, how far the middle of the face is turned aside, in units.
        edge: ``[N, 1, 1]``, over how many units an edge fades: the blur of the picture.
    """

    x: Tensor
    y: Tensor
    scale: Tensor
    roll: Tensor
    yaw: Tensor
    edge: Tensor


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels of each picture, at a place of its own and of one size for all.

    Attributes:
        top: ``[N]`` int64, its first row in each picture.
        left: ``[N]`` int64, its first column.
        size: Its height and width in pixels.
        u: ``[N, h, w]``, how far right in the face the pixels lie, in units.
        v: ``[N, h, w]``, how far down.
        edge: ``[N, 1, 1]``, over how many units an edge fades.
    """

    top: Tensor
    left: Tensor
    size: tuple[int, int]
    u: Tensor
    v: Tensor
    edge: Tensor

    @classmethod
    def frame(cls, pose: Pose, size: tuple[int, int]) -> Window:
        """The whole picture of ``size``; its coordinates are those of a head that is not turned."""
        zero = torch.zeros(pose.x.shape[0], dtype=torch.int64, device=pose.x.device)
        return cls(zero, zero, size, *_coordinates(pose, zero, zero, size), pose.edge)

    @classmethod
    def around(cls, pose: Pose, within: Window, centre: tuple[float, float], half: tuple[float, float]) -> Window:
        """The part of another window that holds a box in the face, turned with it.

        Args:
            pose: Where the faces are.
            within: The other window.
            centre: Of the box, ``(u, v)``.
            half: Half its width and height.
        """
        cos, sin, scale = pose.roll.cos(), pose.roll.sin(), pose.scale
        x = pose.x + scale * (cos * centre[0] - sin * centre[1])
        y = pose.y + scale * (sin * centre[0] + cos * centre[1])
        half_width = float((scale * (cos * half[0] + sin.abs() * half[1])).max())
        half_height = float((scale * (sin.abs() * half[0] + cos * half[1])).max())
        size = min(within.size[0], int(2 * half_height) + 3), min(within.size[1], int(2 * half_width) + 3)
        top = (y.flatten() - size[0] / 2).round().long()
        top = top.maximum(within.top).minimum(within.top + within.size[0] - size[0])
        left = (x.flatten() - size[1] / 2).round().long()
        left = left.maximum(within.left).minimum(within.left + within.size[1] - size[1])
        u, v = _coordinates(pose, top, left, size)
        return cls(top, left, size, turn(u, pose.yaw), v, pose.edge)

    def take(self, planes: Tensor, within: Window) -> Tensor:
        """Its part ``[N, C, h, w]`` of planes ``[N, C, H, W]`` that fill another window."""
        index = self._index(within).expand(-1, planes.shape[1], -1)
        return planes.reshape(*planes.shape[:2], -1).gather(2, index).view(*planes.shape[:2], *self.size)

    def put(self, part: Tensor, planes: Tensor, within: Window) -> None:
        """Puts ``part [N, C, h, w]`` in its place in planes ``[N, C, H, W]``, each contiguous."""
        index = self._index(within).expand(-1, planes.shape[1], -1)
        planes.view(*planes.shape[:2], -1).scatter_(2, index, part.reshape(*part.shape[:2], -1))

    def _index(self, within: Window) -> Tensor:
        # gather and scatter on flat positions are several times faster than indexing by row and column
        device = self.top.device
        rows = (self.top - within.top)[:, None, None] + torch.arange(self.size[0], device=device)[:, None]
        columns = (self.left - within.left)[:, None, None] + torch.arange(self.size[1], device=device)
        return (rows * within.size[1] + columns).flatten(1)[:, None]


def _coordinates(pose: Pose, top: Tensor, left: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    device = top.device
    y = top[:, None, None] + torch.arange(size[0], device=device)[:, None] + 0.5 - pose.y
    x = left[:, None, None] + torch.arange(size[1], device=device) + 0.5 - pose.x
    cos, sin = pose.roll.cos() / pose.scale, pose.roll.sin() / pose.scale
    return cos * x + sin * y, cos * y - sin * x


def turn(u: Tensor, yaw: Tensor) -> Tensor:
    """Turns the head: moves its middle aside by ``yaw``, its outline not at all."""
    return u - yaw * (1 - (u / 1.3).square()).clamp(min=0)


def soft(distance: Tensor, edge: Tensor | float) -> Tensor:
    """Coverage in 0..1 of a shape at a signed distance from its outline, negative inside."""
    return (0.5 - distance / edge).clamp(0, 1)


def ellipse(u: Tensor, v: Tensor, radius_u: Tensor | float, radius_v: Tensor | float) -> Tensor:
    """Squared distance from the origin, 1 on the ellipse."""
    return (u * (1 / radius_u)).square() + (v * (1 / radius_v)).square()


def rounded(u: Tensor, v: Tensor, radius_u: Tensor | float, radius_v: Tensor | float, box: Tensor | float) -> Tensor:
    """Like :func:`ellipse`, of a shape between an ellipse (``box`` 0) and a rectangle (1)."""
    x, y = (u * (1 / radius_u)).square(), (v * (1 / radius_v)).square()
    return x + y - box * x.clamp(max=1) * y.clamp(max=1)


def bump(squared: Tensor) -> Tensor:
    """A smooth hill over an ellipse: 1 in its middle, 0 on its outline and exactly 0 beyond."""
    return (1 - squared).clamp(min=0).square()


def plateau(squared: Tensor) -> Tensor:
    """A flatter hill over an ellipse, 0 beyond it."""
    return (1 - squared.square()).clamp(min=0)


def over(below: Tensor, colour: Tensor, alpha: Tensor) -> Tensor:
    """Paints ``colour [N, 3, (h, w)]`` over ``below [N, 3, h, w]`` with opacity ``alpha [N, h, w]``."""
    return torch.lerp(below, colour, alpha[:, None])


def overpaint(canvas: Tensor, colour: Tensor, alpha: Tensor) -> None:
    """Paints over ``canvas`` itself, as :func:`over` does on a copy."""
    canvas.lerp_(colour, alpha[:, None])


def rgb(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    """A colour of each face, ``[N, 3, 1, 1]``, from channels ``[N, 1, 1]`` in 0..1."""
    return torch.stack([red, green, blue], dim=1)


def grey(values: Tensor, red: float = 1.0, green: float = 1.0, blue: float = 1.0) -> Tensor:
    """A grey, or a tint of it, of each face: ``[N, 3, 1, 1]`` from ``[N, 1, 1]``."""
    return rgb(red * values, green * values, blue * values)


def hue(angle: Tensor, saturation: float, value: Tensor) -> Tensor:
    """A colour of each face by its hue in 0..1, ``[N, 3, 1, 1]``."""
    waves = [((angle + shift) * (2 * torch.pi)).cos() * 0.5 + 0.5 for shift in (0.0, 1 / 3, 2 / 3)]
    return rgb(*(value * (1 - saturation + saturation * wave) for wave in waves))


def grain(top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Independent normal noise ``[N, h, w]``, read from a fixed tile that repeats.

    Args:
        top: ``[N, 1, 1]`` int64, where to begin in the tile.
        left: ``[N, 1, 1]`` int64.
        size: Height and width.
    """
    tile = torch.randn(_TILE, _TILE, generator=torch.Generator().manual_seed(0)).to(top.device)
    rows = (top + torch.arange(size[0], device=top.device)[:, None]) % _TILE
    columns = (left + torch.arange(size[1], device=top.device)) % _TILE
    return tile[rows, columns]
