"""Whether a callable changes colours only: whatever moves an image without its masks makes every IoU wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ROUNDS = 12  # a flip with probability one half goes unnoticed in 12 rounds once in 4,096 times


def require_photometric(transform: Callable[[Tensor], Tensor], shape: tuple[int, int, int]) -> None:
    """Checks by trial that a transform leaves every pixel in its place and always does the same.

    A small square of a test image is changed, and the centre of what then differs in the output must be
    the centre of the square, for squares in several places that no flip, shift, crop or rotation all keeps.

    Args:
        transform: From ``[channels, H, W]`` in 0..1 to the same shape.
        shape: ``(channels, H, W)``.

    Raises:
        ValueError: If the transform fails, changes the shape, moves the image or is random.
    """
    name = getattr(transform, "__name__", None) or repr(transform)
    channels, height, width = shape
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, channels, 6, 6, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0] * 0.6 + 0.2
    image[:, 0, 0], image[:, -1, -1] = 0.0, 1.0  # so that a change of contrast finds the same range each time
    with torch.random.fork_rng(devices=[]):
        before = _apply(transform, name, image, shape)
        if not all(torch.equal(_apply(transform, name, image, shape), before) for _ in range(_ROUNDS)):
            raise ValueError(
                f"transform {name} is random: it made different images of one image; a dictionary is a measuring "
                "instrument and must be the same in every epoch"
            )
        for y, x in ((0.12, 0.2), (0.3, 0.82), (0.6, 0.4), (0.85, 0.7)):
            top, left = round(y * height), round(x * width)
            rows, columns = slice(top, top + max(2, height // 16)), slice(left, left + max(2, width // 16))
            changed = image.clone()
            changed[:, rows, columns] = 1 - image[:, rows, columns].mean(0).round()
            expected = _centre((changed - image).abs().sum(0))
            found = _centre((_apply(transform, name, changed, shape) - before).abs().sum(0))
            if found is None or expected is None or (found - expected).abs().max() > 0.5:
                raise ValueError(
                    f"transform {name} moves the image: a change at (row, column) {_show(expected)} came out at "
                    f"{_show(found)}. A transform may change colours only; to show a part of each picture use crop=, "
                    "which moves the masks with it"
                )


def _apply(transform: Callable[[Tensor], Tensor], name: str, image: Tensor, shape: tuple[int, int, int]) -> Tensor:
    try:
        out = transform(image.clone())
    except Exception as error:
        raise ValueError(f"transform {name} failed on an image {list(shape)} in 0..1: {error}") from error
    if not isinstance(out, Tensor) or out.shape != image.shape:
        got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"transform {name} must return an image {list(shape)} like the one it is given, got {got}")
    return out


def _centre(difference: Tensor) -> Tensor | None:
    """Mean place of the pixels that differ clearly (a change of contrast moves all others a little)."""
    clear = difference > difference.max() / 50
    return clear.nonzero().float().mean(0) if bool(clear.any()) else None


def _show(centre: Tensor | None) -> str:
    return "nowhere" if centre is None else f"({centre[0]:.0f}, {centre[1]:.0f})"
