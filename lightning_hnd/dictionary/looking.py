"""One image of a Face Dictionary looked at closely, on its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from lightning_hnd.dictionary.flaws import Finding, Flaw, Report
from lightning_hnd.dictionary.layout import Entry
from lightning_hnd.dictionary.pixels import Face, open_face
from lightning_hnd.dictionary.similar import thumbnail

FULL = 0.5
"""Share of a picture from which a mask is too large for any part of a face."""

SOFT = 0.05
"""Share of a mask's pixels that may be darker than half of its brightest one."""


@dataclass(frozen=True)
class Look:
    """What is kept of an image that can be used: no pixel but its thumbnail.

    Attributes:
        entry: Which it is.
        digest: Equal for pictures that are equal in every pixel.
        thumbnail: See :func:`~lightning_hnd.dictionary.similar.thumbnail`.
        centres: Of each concept's mask, ``(x, y)`` of the middle of its box in shares of width and height. Empty masks
            and full ones are left out.
    """

    entry: Entry
    digest: bytes
    thumbnail: npt.NDArray[np.uint8]
    centres: Mapping[int, tuple[float, float]]


def look(root: Path, entry: Entry, report: Report) -> Look | None:
    """Looks at an image and its masks.

    Args:
        root: The folder of the dictionary.
        entry: Which image.
        report: Takes what is wrong.

    Returns:
        None if the picture cannot be used.
    """
    face = open_face(root, entry, 3, report)
    if face is None:
        return None
    pixels = np.asarray(face.picture)
    if int(pixels.min()) == int(pixels.max()):
        report(Finding(Flaw.BLANK, entry.name, f"{entry.name} is of one colour all over"))
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
    return Look(entry, digest, thumbnail(face.picture), dict(_centres(entry, face, report)))


def _centres(entry: Entry, face: Face, report: Report) -> Iterator[tuple[int, tuple[float, float]]]:
    for concept, mask in face.masks.items():
        name = entry.masks[concept]
        doubtful = (PurePosixPath(name).stem,)
        on = np.asarray(mask > 0)
        area = float(on.mean())
        if area == 0:
            report(Finding(Flaw.EMPTY_MASK, name, f"{name} is off everywhere", doubtful))
            continue
        dark = float((mask[on] <= mask.max() / 2).mean())
        if dark > SOFT:
            what = f"{name}: {dark:.0%} of the pixels that are on are not even half as bright as the brightest"
            report(Finding(Flaw.SOFT_MASK, name, what, doubtful))
        if area > FULL:
            what = f"{name} is on in {area:.0%} of the picture; is it inverted?"
            report(Finding(Flaw.FULL_MASK, name, what, doubtful))
            continue
        rows, columns = np.flatnonzero(on.any(1)), np.flatnonzero(on.any(0))
        x, y = (columns[0] + columns[-1] + 1) / 2 / on.shape[1], (rows[0] + rows[-1] + 1) / 2 / on.shape[0]
        yield concept, (float(x), float(y))
