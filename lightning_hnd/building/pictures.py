"""Pictures of any kind that data sets hold, opened as they are displayed; and files that must not lead elsewhere."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from lightning_hnd.dictionary.layout import PICTURE_SUFFIXES
from lightning_hnd.dictionary.pixels import NoPictureError, decode, has_sixteen_bits, high_byte

MOST_BYTES = 2**28
"""A larger file is not read."""


@dataclass(frozen=True)
class Opened:
    """A decoded picture.

    Attributes:
        image: RGB, as it is displayed; smaller than the file's where that was allowed.
        size: ``(H, W)`` of the file's, as it is displayed.
        plain: Whether a reader that knows nothing of EXIF, CMYK, palettes and 16 bits sees the same in the file.
    """

    image: Image.Image
    size: tuple[int, int]
    plain: bool


def inside(root: Path, name: str) -> Path:
    """The file of a name that a table gives, which must not lead out of its folder.

    Args:
        root: The folder.
        name: A relative path.

    Raises:
        ValueError: If it is absolute, goes up with ``..``, or is a link to somewhere else. Nothing outside is touched.
        FileNotFoundError: If there is no such file.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or PureWindowsPath(name).drive or ".." in parts.parts or "\0" in name:
        raise ValueError("its path leads out of the folder")
    path = root / parts
    if len(parts.parts) == 1 and _is_plain_file(path):  # the usual case, and tables are long
        return path
    real_root = os.path.realpath(root)
    if os.path.commonpath([os.path.realpath(path), real_root]) != real_root:
        raise ValueError("it is a link that leads out of the folder")
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    return path


def _is_plain_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder and its subfolders, hidden ones aside, in the order of their names."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def read_file(path: Path) -> bytes:
    """The contents of a picture's file.

    Raises:
        ValueError: If it is gone, or far too large for a picture.
    """
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ValueError(f"the file has {size / 2**20:.0f} MiB, more than {MOST_BYTES // 2**20}")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from error


def open_picture(contents: bytes, largest_side: int | None = None) -> Opened:
    """Decodes a picture as it is displayed: turned as its EXIF data say, eight bits a channel.

    Args:
        contents: The file.
        largest_side: Pictures may be decoded smaller, but not below this.

    Raises:
        ValueError: If it is damaged, empty, no picture, or has too many pixels.
    """
    if not contents:
        raise ValueError("the file is empty")
    try:
        image, (width, height) = decode(io.BytesIO(contents), largest_side)
    except NoPictureError as error:
        raise ValueError(f"it {error}") from error
    plain = image.mode in ("RGB", "L") and image.format in ("JPEG", "PNG")
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    size = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
    upright = ImageOps.exif_transpose(image)
    if has_sixteen_bits(image):
        upright = high_byte(upright)
    elif image.mode in ("I", "F"):
        raise ValueError("it holds numbers of 32 bits, whose range is not known; save it with eight a channel")
    return Opened(upright.convert("RGB"), size, plain and orientation == 1)


def read_mask(path: Path) -> npt.NDArray[np.uint8]:
    """The values of a mask or label map: of a palette their numbers, of several channels the largest: ``[H, W]``.

    Args:
        path: The file.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        values = np.asarray(decode(path)[0])
    except NoPictureError as error:
        raise ValueError(f"mask {path.name} {error}") from error
    flat = values if values.ndim == 2 else values[..., :3].max(-1)
    return flat.astype(np.uint8) if flat.dtype == np.bool_ else np.minimum(flat, 255).astype(np.uint8)
