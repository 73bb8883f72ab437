"""CelebAMask-HQ: true masks of parts, and 40 attributes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lightning_hnd.building.faces import Face
from lightning_hnd.building.parts import PARTS, Regions
from lightning_hnd.building.pictures import inside, read_mask
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.sources.attributes import Labelled, read_attributes
from lightning_hnd.building.sources.celeba import named, read_identities
from lightning_hnd.building.sources.landmark_files import Landmarks, read_landmarks
from lightning_hnd.building.sources.options import SourceOptions
from lightning_hnd.building.tables import read_table

_NAMES = """
background skin nose eye_g l_eye r_eye l_brow r_brow l_ear r_ear mouth u_lip l_lip hair hat ear_r neck_l neck cloth
"""
_IDS = tuple(_NAMES.split())
"""The names of parts in files, at the number that each has in a label map."""

_REGIONS: Mapping[str, tuple[str, ...]] = {
    "nose": ("nose",),
    "eye_1": ("l_eye",),
    "eye_2": ("r_eye",),
    "brow_1": ("l_brow",),
    "brow_2": ("r_brow",),
    "mouth": ("mouth", "u_lip", "l_lip"),
    "glasses": ("eye_g",),
    "skin": ("skin",),
}

_PART_FILE = re.compile(r"(\d+)_(\w+)\.png")


def read_celebamask_hq(options: SourceOptions, findings: Findings) -> list[Face]:
    """Reads ``CelebA-HQ-img/``, ``CelebAMask-HQ-mask-anno/`` and ``CelebAMask-HQ-attribute-anno.txt``.

    A folder of pictures with a label map of each beside it (``0.jpg``, ``0.png``) is read too; it has parts only.
    ``CelebA-HQ-to-CelebA-mapping.txt`` tells which pictures of CelebA these are, if it is there.

    Args:
        options: Where it is. Landmarks are optional: without them cheeks, and what shows beside the parts, are drawn by
            a mean face laid over eyes, nose and mouth.
        findings: Gets what could not be used.

    Returns:
        The faces that have masks.

    Raises:
        FileNotFoundError: If there are no pictures or masks.
        ValueError: If one of the tables cannot be read.
    """
    masks = options.folder() / "CelebAMask-HQ-mask-anno"
    folder = options.picture_folder("CelebA-HQ-img", ".") if masks.is_dir() else options.folder()
    readers = _part_files(masks, findings) if masks.is_dir() else _label_maps(folder)
    if not readers:
        raise FileNotFoundError(f"{options.root} has neither CelebAMask-HQ-mask-anno/ nor pictures with label maps")
    table = options.file(options.labels, "CelebAMask-HQ-attribute-anno.txt", "CelebAMask-HQ-attribute-anno.csv")
    labelled = read_attributes(table, findings, options.at_least) if table is not None else {}
    if table is None:
        findings.add("without CelebAMask-HQ-attribute-anno.txt it gives parts only")
    landmarks = options.file(options.landmarks, *named("landmarks_68"))
    points = read_landmarks(landmarks, findings)[0] if landmarks is not None else {}
    context = _Context(labelled, points, read_identities(options, findings), _originals(options, findings))
    faces = []
    for number, reader in sorted(readers.items()):
        try:
            picture = inside(folder, f"{number}.jpg")
        except (ValueError, OSError) as error:
            findings.add(f"masks left out: {error}", f"{number}.jpg")
            continue
        faces.append(context.face(options.name, folder, picture, reader))
    return faces


@dataclass(frozen=True)
class _Context:
    labelled: Mapping[str, Labelled]
    points: Mapping[str, Landmarks]
    who: Mapping[str, str]
    originals: Mapping[str, str]

    def face(self, source: str, folder: Path, picture: Path, reader: partial[Regions]) -> Face:
        row = self.labelled.get(picture.name, Labelled())
        original = self.originals.get(picture.stem)
        return Face(
            source=source,
            root=folder,
            picture=picture,
            kinds={**row.kinds, "part": PARTS},
            unknown=row.unknown,
            groups=row.groups,
            labels=row.labels,
            landmarks=self.points.get(picture.name),
            regions=reader,
            identity=self.who.get(original) if original else None,
            original=original,
        )


def _originals(options: SourceOptions, findings: Findings) -> Mapping[str, str]:
    """The name in CelebA of each picture, by its number."""
    file = options.file(None, *named("CelebA-HQ-to-CelebA-mapping"))
    if file is None:
        return {}
    table = read_table(file, findings)
    place = table.column("orig_file")
    return {number: row[place] for number, row in table.rows.items()}


def _part_files(folder: Path, findings: Findings) -> dict[int, partial[Regions]]:
    files: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.rglob("*.png")):
        found = _PART_FILE.fullmatch(path.name)
        if found is None or found[2] not in _IDS:
            findings.add("mask left out: its name is not that of a part", path.name)
            continue
        try:
            files.setdefault(int(found[1]), {})[found[2]] = inside(folder, path.relative_to(folder).as_posix())
        except (ValueError, OSError) as error:
            findings.add(f"mask left out: {error}", path.name)
    return {number: partial(_read_parts, parts) for number, parts in files.items()}


def _read_parts(files: Mapping[str, Path]) -> Regions:
    masks = {name: read_mask(path) > 0 for name, path in files.items()}
    sizes = {mask.shape for mask in masks.values()}
    if len(sizes) > 1:
        raise ValueError(f"its masks are of {len(sizes)} sizes")
    nothing = np.zeros(sizes.pop(), np.bool_)
    return {
        name: np.logical_or.reduce([masks.get(part, nothing) for part in parts]) for name, parts in _REGIONS.items()
    }


def _label_maps(folder: Path) -> dict[int, partial[Regions]]:
    return {
        int(path.stem): partial(_read_map, path)
        for path in folder.glob("*.png")
        if path.stem.isdecimal() and path.with_suffix(".jpg").is_file() and not path.is_symlink()
    }


def _read_map(path: Path) -> Regions:
    ids = read_mask(path)
    if ids.max() >= len(_IDS):
        raise ValueError(f"{path.name} is no label map: it has the value {ids.max()}, the last part is {len(_IDS) - 1}")
    return {name: np.isin(ids, [_IDS.index(part) for part in parts]) for name, parts in _REGIONS.items()}
