"""Faces into a dictionary folder: their pictures, the masks of their concepts, and their rows of ``labels.csv``."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from lightning_hnd.building.choosing import Role
from lightning_hnd.building.drawing import Mask
from lightning_hnd.building.faces import Face
from lightning_hnd.building.geometry import Areas, areas, areas_of_faces
from lightning_hnd.building.landmarks import Points
from lightning_hnd.building.parts import Regions, true_areas
from lightning_hnd.building.pictures import Opened, open_picture, read_file
from lightning_hnd.building.skin import cheek_boxes, skin_tone, some_of, typology_angle
from lightning_hnd.dictionary.layout import FOLDER_OF_KIND, GLOBAL_FOLDER
from lightning_hnd.dictionary.similar import thumbnail

_Result = TypeVar("_Result")

_FOLDER_OF_CONCEPT = {"age": "Age", "gender": "Gender", "ethnicity": "Ethnicity"}
CHEEKS = frozenset(("left_cheek", "right_cheek"))
"""Where skin is measured."""

_QUALITY = 95  # of JPEG, for pictures that cannot be copied as they are
_ASPECT = 0.02


@dataclass(frozen=True)
class Written:
    """What was written of a face.

    Attributes:
        image: The picture's path in the dictionary.
        masks: The paths of its masks.
        labels: Its row of ``labels.csv``, but for ``image``.
        digest: Of the source's file.
        thumbnail: See :func:`~lightning_hnd.dictionary.similar.thumbnail`.
    """

    image: str
    masks: tuple[str, ...]
    labels: Mapping[str, str]
    digest: str
    thumbnail: npt.NDArray[np.uint8]


def write_faces(root: Path, faces: Sequence[tuple[Face, Role]], largest_side: int) -> list[Written | str]:
    """Writes faces as what they are in the dictionary for; the masks of all of them are drawn in one pass.

    A picture that any reader can read as it is, and that is no larger than wanted, is copied byte for byte; any other
    one is turned upright, brought to RGB and size, and written as a JPEG of quality 95. Local images are named
    ``original.png`` whatever they hold, as in the release.

    Args:
        root: The folder of the dictionary.
        faces: What each is for; some at a time, as all are held in memory.
        largest_side: Pixels that a side may have.

    Returns:
        Of each what was written, or why picture or masks cannot be used; then nothing of it is written.
    """
    pictures = [_said(_Picture.of, face, role, largest_side) for face, role in faces]
    opened = [picture for picture in pictures if not isinstance(picture, str)]
    shown = iter(_areas_in(opened))
    return [picture if isinstance(picture, str) else _said(_write, root, picture, next(shown)) for picture in pictures]


def _said(do: Callable[..., _Result], *args: Any) -> _Result | str:
    """What something returns, or why it cannot be done."""
    try:
        return do(*args)
    except ValueError as error:
        return str(error)


@dataclass(frozen=True)
class _Picture:
    """A face, opened.

    Attributes:
        face: The face.
        role: What it is for.
        contents: Its file.
        image: At the size that is written.
        displayed: ``(H, W)`` of the file's picture.
        copied: Whether the file is taken as it is.
    """

    face: Face
    role: Role
    contents: bytes
    image: Image.Image
    displayed: tuple[int, int]
    copied: bool

    @classmethod
    def of(cls, face: Face, role: Role, largest_side: int) -> _Picture:
        contents = read_file(face.picture)
        opened = open_picture(contents, largest_side)
        image = _fit(opened, largest_side)
        copied = opened.plain and (image.height, image.width) == opened.size
        return cls(face, role, contents, image, opened.size, copied)

    @property
    def size(self) -> tuple[int, int]:
        return self.image.height, self.image.width

    @property
    def names(self) -> frozenset[str]:
        """The concepts of which it gets masks."""
        return self.face.kinds[self.role[1]] if self.role[0] == "kind" else frozenset()

    @property
    def wanted(self) -> frozenset[str]:
        """These, and the cheeks if their colour is to be measured."""
        return self.names | (frozenset() if "ita_degrees" in self.face.labels else CHEEKS)


def _areas_in(pictures: Sequence[_Picture]) -> list[Areas | str]:
    """What each face shows; those that landmarks alone tell are drawn in one pass."""
    landmarks = [
        _scaled_landmarks(picture.face, picture.displayed, picture.size) if picture.face.regions is None else None
        for picture in pictures
    ]
    drawn = iter(
        areas_of_faces(
            [
                (points, p.size, sorted(p.wanted))
                for p, points in zip(pictures, landmarks, strict=True)
                if points is not None
            ]
        )
    )
    return [
        _said(concept_masks, picture.face, picture.displayed, picture.size, picture.wanted)
        if points is None
        else next(drawn)
        for picture, points in zip(pictures, landmarks, strict=True)
    ]


def _write(root: Path, picture: _Picture, found: Areas | str) -> Written:
    face, role, image = picture.face, picture.role, picture.image
    if isinstance(found, str) and role[0] == "kind":
        raise ValueError(found)
    shown, hidden = ({}, {}) if isinstance(found, str) else found
    problem = next((why for name, why in hidden.items() if name in picture.names), None)
    if problem is not None:
        raise ValueError(problem)
    if role[0] == "kind":
        folder = f"{FOLDER_OF_KIND[role[1]]}/{_slug(face)}"
        path = f"{folder}/original.png"
    else:
        folder = f"{GLOBAL_FOLDER}/{_FOLDER_OF_CONCEPT.get(role[0], role[0])}/{role[1]}"
        path = f"{folder}/{_slug(face)}{face.picture.suffix.lower() if picture.copied else '.jpg'}"
    masks = {name: mask for name, mask in shown.items() if name in picture.names}
    labels = _labels(face, None if "ita_degrees" in face.labels else _angle(face, image, shown))
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(picture.contents if picture.copied else _jpeg(image))
    encoded: dict[int, bytes] = {}  # concepts of one area share its mask
    for name, mask in masks.items():
        if id(mask) not in encoded:
            encoded[id(mask)] = _grey_png(mask)
        (place / f"{name}.png").write_bytes(encoded[id(mask)])
    return Written(
        path,
        tuple(f"{folder}/{name}.png" for name in masks),
        labels,
        hashlib.blake2b(picture.contents, digest_size=16).hexdigest(),
        thumbnail(image),
    )


def concept_masks(face: Face, displayed: tuple[int, int], size: tuple[int, int], names: frozenset[str]) -> Areas:
    """The masks of concepts in a face.

    Args:
        face: With landmarks, or true masks of parts.
        displayed: ``(H, W)`` of its picture, to which its landmarks refer.
        size: ``(H, W)`` of the masks.
        names: Concepts.

    Returns:
        As :func:`~lightning_hnd.building.geometry.areas`.

    Raises:
        ValueError: If its landmarks or true masks cannot be used.
    """
    landmarks = _scaled_landmarks(face, displayed, size)
    if face.regions is not None:
        return true_areas(_scaled(face.regions(), size), landmarks, names)
    if landmarks is not None:
        return areas(landmarks, size, sorted(names))
    return {}, dict.fromkeys(sorted(names), "it has neither landmarks nor masks of its parts")


def _scaled_landmarks(face: Face, displayed: tuple[int, int], size: tuple[int, int]) -> Points | None:
    if face.landmarks is None:
        return None
    return face.landmarks.astype(np.float64) * (size[1] / displayed[1], size[0] / displayed[0])


def measured_angle(face: Face, image: Image.Image, displayed: tuple[int, int]) -> float | None:
    """The individual typology angle of a face's cheeks: by landmarks, or where there are none by their usual place."""
    try:
        shown, _ = concept_masks(face, displayed, (image.height, image.width), CHEEKS)
    except ValueError:
        return None
    return _angle(face, image, shown)


def _angle(face: Face, image: Image.Image, shown: Mapping[str, Mask]) -> float | None:
    picture = np.asarray(image)
    if face.landmarks is None and face.regions is None:
        return typology_angle(cheek_boxes(picture))
    if not shown.keys() >= CHEEKS:
        return None
    place = some_of(np.flatnonzero(np.logical_or.reduce([shown[name] for name in CHEEKS])))
    return typology_angle(picture.reshape(-1, 3)[place])


def _labels(face: Face, angle: float | None) -> dict[str, str]:
    """All that is known of a face."""
    known = {
        "source": face.source,
        "file": face.picture.relative_to(face.root).as_posix(),
        "identity": face.identity or "",
        **face.groups,
        **face.labels,
    }
    if face.kinds:
        known["masks"] = "true" if face.regions is not None else "5 landmarks" if face.coarse else "68 landmarks"
    if angle is not None:
        known |= {"ita_degrees": f"{angle:.1f}", "skin_tone": face.groups.get("skin_tone") or skin_tone(angle) or ""}
    return known


def _fit(opened: Opened, largest_side: int) -> Image.Image:
    scale = min(1.0, largest_side / max(opened.size))
    height, width = (max(1, round(side * scale)) for side in opened.size)
    if opened.image.size == (width, height):
        return opened.image
    resized: Image.Image = opened.image.resize((width, height), Image.Resampling.BICUBIC)
    return resized


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()


def _grey_png(mask: Mask) -> bytes:
    """A mask as a PNG of eight bits grey, 255 where it is on: Pillow needs four times as long around the same zlib."""
    height, width = mask.shape
    lines = np.zeros((height, width + 1), np.uint8)  # each begins with the number of its filter: none
    np.negative(mask.view(np.uint8), out=lines[:, 1:])  # 1 becomes 255
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.data, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _scaled(regions: Regions, size: tuple[int, int]) -> Regions:
    """Masks at another size, by the pixel that holds each centre; the shape of the picture must be theirs."""
    height, width = next(iter(regions.values())).shape
    if abs(width / height / (size[1] / size[0]) - 1) > _ASPECT:
        raise ValueError(f"its masks are {width} x {height}, which is not the shape of the picture")
    rows, columns = ((np.arange(n) * 2 + 1) * of // (2 * n) for n, of in zip(size, (height, width), strict=True))
    return {name: mask[rows[:, None], columns] for name, mask in regions.items()}


def _slug(face: Face) -> str:
    """A name for files that any system takes; a digest keeps apart what would become alike."""
    whole = f"{face.source}-{face.name}"
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", whole)[:100]
    return plain if plain == whole else f"{plain}-{hashlib.blake2b(whole.encode(), digest_size=4).hexdigest()}"
