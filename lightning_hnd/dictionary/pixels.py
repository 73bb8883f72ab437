"""Pictures and masks from files: decoded, upright, at eight bits; what cannot be taken as it is meant is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from lightning_hnd.dictionary.flaws import Finding, Flaw, Report
from lightning_hnd.dictionary.layout import Entry

MAX_PIXELS = 50_000_000
"""A larger picture is refused before it is decoded: a small file can hold one that fills the memory."""

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""No other one is decoded, whatever a file is called: Pillow hands some to other programs (EPS to Ghostscript)."""

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_NUMBERS = ("1", "L", "I", "F", *_SIXTEEN_BITS)


@dataclass(frozen=True)
class Face:
    """An image of the dictionary as its files have it.

    Attributes:
        picture: RGB or grey, upright.
        masks: By concept, ``[height, width]`` of the picture's size; above 0 is on.
    """

    picture: Image.Image
    masks: Mapping[int, npt.NDArray[Any]]


def open_face(root: Path, entry: Entry, channels: int, report: Report) -> Face | None:
    """Decodes a picture and its masks.

    A picture with an EXIF orientation is turned upright, as viewers and OpenCV show it; so is a mask with one. A
    mask must then have the size of its picture.

    Args:
        root: The folder of the dictionary.
        entry: Which image.
        channels: 3 for RGB, 1 for grey.
        report: Takes what is wrong; where it does not raise, a mask that cannot be used is left out.

    Returns:
        None if the picture cannot be used.
    """
    opened = _open(root, entry.name, report)
    if opened is None:
        return None
    picture = _eight_bits(root, entry.name, opened, report)
    if picture is None:
        return None
    masks = {}
    for concept, name in entry.masks.items():
        mask = _open(root, name, report)
        if mask is None:
            continue
        if mask.size != picture.size:
            what = (
                f"{root / name} is {mask.size[0]} x {mask.size[1]} pixels, but its image {root / entry.name} is "
                f"{picture.size[0]} x {picture.size[1]}; a mask must have the size of its image"
            )
            if _is_turned(opened):
                what += ", here after its EXIF orientation is applied"
            report(Finding(Flaw.SIZE_MISMATCH, name, what))
            continue
        if _has_holes(mask):
            what = f"{root / name} is transparent in places, so that nobody can say where it is on; save it without"
            report(Finding(Flaw.UNREADABLE, name, what))
            continue
        values = np.asarray(mask if mask.mode in _NUMBERS else mask.convert("RGB"))
        masks[concept] = values if values.ndim == 2 else values.max(-1)
    return Face(picture.convert("RGB" if channels == 3 else "L"), masks)


class NoPictureError(ValueError):
    """Why a file cannot be taken for one picture; the message goes on after the file's name."""


def decode(file: Path | IO[bytes], largest_side: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Decodes a picture as it is stored.

    Args:
        file: The file.
        largest_side: JPEGs may be decoded smaller, but not below this.

    Returns:
        The picture, and the width and height that its file has.

    Raises:
        NoPictureError: If it is damaged, of a kind that is not decoded, too large, or several pictures.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise NoPictureError(
                    f"has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} million; make it smaller"
                )
            if getattr(image, "is_animated", False) and image.format != "MPO":  # an MPO shows one thing, twice
                raise NoPictureError("holds several pictures; save the one that is meant")
            if largest_side is not None:
                image.draft("RGB", (largest_side, largest_side))
            image.load()
            return image, (width, height)
    except NoPictureError:
        raise
    except Image.DecompressionBombError as error:
        raise NoPictureError(f"has too many pixels: {error}") from error
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise NoPictureError(f"cannot be read as a picture: {error}") from error


def has_sixteen_bits(image: Image.Image) -> bool:
    """Whether it is a grey picture of 16 bits."""
    return image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format == "PNG")  # "I" in Pillow < 11


def high_byte(image: Image.Image) -> Image.Image:
    """A picture of 16 bits with the eight highest."""
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _open(root: Path, name: str, report: Report) -> Image.Image | None:
    try:
        image, _ = decode(root / name)
    except NoPictureError as error:
        report(Finding(Flaw.UNREADABLE, name, f"{root / name} {error}"))
        return None
    return _upright(name, image, report)


def _upright(name: str, image: Image.Image, report: Report) -> Image.Image:
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation not in range(2, 9):
        return image
    report(Finding(Flaw.TURNED, name, f"{name} has EXIF orientation {orientation}; it is turned upright"))
    turned = ImageOps.exif_transpose(image)
    turned.info["turned"] = True
    return turned


def _is_turned(image: Image.Image) -> bool:
    return "turned" in image.info


def _eight_bits(root: Path, name: str, image: Image.Image, report: Report) -> Image.Image | None:
    """A picture of a mode that converts to RGB and grey without loss of sense."""
    if has_sixteen_bits(image):
        report(Finding(Flaw.COLOURS, name, f"{name} has 16 bits a pixel, of which the eight highest are taken"))
        return high_byte(image)
    if image.mode in ("I", "F"):
        what = f"{root / name} holds numbers of 32 bits, whose range is not known; save it with eight bits a channel"
        report(Finding(Flaw.UNREADABLE, name, what))
        return None
    if image.mode in ("CMYK", "LAB"):
        report(Finding(Flaw.COLOURS, name, f"{name} is {image.mode}, converted to RGB without a colour profile"))
    if _has_holes(image):
        report(Finding(Flaw.COLOURS, name, f"{name} is transparent in places, and shown as if it were not"))
    return image


def _has_holes(image: Image.Image) -> bool:
    if image.mode not in ("LA", "PA", "RGBA", "La", "RGBa") and "transparency" not in image.info:
        return False
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return float(lowest) < 255  # type: ignore[arg-type]
