"""How a map becomes an area of the image: the definition that every count of pixels rests on."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation to ``size`` with half-pixel centres, clamped to the range of its inputs.

    Rows first, then columns, each step ``a + (b - a) * t`` clamped to ``[min(a, b), max(a, b)]``; cells at
    the border repeat. The geometry of ``F.interpolate(..., align_corners=False)``, whose rounding may
    however put a pixel above the largest of its four corners; this one never does, so that a map at or
    below the threshold has no pixel on.

    Args:
        maps: ``[..., h, w]`` floating point.
        size: ``(H, W)``.

    Returns:
        ``[..., H, W]``.
    """
    gap, t = axis_position(maps.shape[-2], size[0], maps)
    above, below = (gap - 1).clamp(min=0), gap.clamp(max=maps.shape[-2] - 1)
    maps = lerp(maps[..., above, :], maps[..., below, :], t.unsqueeze(-1))
    gap, t = axis_position(maps.shape[-1], size[1], maps)
    left, right = (gap - 1).clamp(min=0), gap.clamp(max=maps.shape[-1] - 1)
    return lerp(maps[..., left], maps[..., right], t)


def firing_area(maps: Tensor, thresholds: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels in which a unit fires: where its upsampled map exceeds its threshold.

    Args:
        maps: ``[R, h, w]``.
        thresholds: ``[R]`` float64, of each map's unit.
        size: ``(H, W)``.

    Returns:
        ``[R, H, W]`` bool.
    """
    return upsample(maps, size) > floor_to(thresholds, maps.dtype)[:, None, None]


def axis_position(cells: int, pixels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel's centre lies among the cells' centres, along one axis.

    Args:
        cells: Number of cells.
        pixels: Number of pixels.
        like: Gives type and device of the result.

    Returns:
        ``gap [pixels]`` int64: the pixel lies between cells ``gap - 1`` and ``gap`` (cells at the border
        repeat); ``t [pixels]``: how far from the first to the second, in [0, 1).
    """
    # in whole numbers (pixel + 1/2) * cells / pixels - 1/2 = numerator / (2 * pixels): the floor is exact, t is
    # rounded once
    numerator = (2 * torch.arange(pixels, device=like.device) + 1) * cells - pixels
    low = numerator.div(2 * pixels, rounding_mode="floor")
    return low + 1, as_fraction((numerator - low * 2 * pixels).to(like.dtype), pixels)


def as_fraction(numerator: Tensor, pixels: int) -> Tensor:
    """Divides by ``2 * pixels``, rounding once on every device."""
    # by a tensor: CUDA multiplies by the reciprocal of a plain number, which rounds twice
    return numerator / torch.full((), 2 * pixels, dtype=numerator.dtype, device=numerator.device)


def axis_pixels(cells: int, pixels: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The pixels of each gap between cells, along one axis, as :func:`axis_position` places them.

    Returns:
        The first pixel of each gap and how many there are, ``[cells + 1]`` int64 each.
    """
    gap, _ = axis_position(cells, pixels, torch.empty(0, device=device))
    count = torch.bincount(gap, minlength=cells + 1)
    return count.cumsum(0) - count, count


def lerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """``a + (b - a) * t``, clamped to the range of ``a`` and ``b``: the step of the interpolation."""
    return (a + (b - a) * t).clamp(torch.minimum(a, b), torch.maximum(a, b))


def floor_to(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds down to ``dtype``, so that a number of ``dtype`` exceeds the result just where it exceeds the original.

    Args:
        values: Any shape, float64.
        dtype: A floating-point type.

    Returns:
        The shape of ``values``, of ``dtype``.
    """
    cast = values.to(dtype)
    return torch.where(cast.double() > values, torch.nextafter(cast, torch.full_like(cast, -math.inf)), cast)
