"""FaceSynthetics: rendered faces with a label map and landmarks of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from lightning_hnd.building.faces import Face
from lightning_hnd.building.landmarks import COUNT
from lightning_hnd.building.parts import PARTS, Regions
from lightning_hnd.building.pictures import inside, read_mask
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.sources.landmark_files import Landmarks
from lightning_hnd.building.sources.options import SourceOptions

_REGIONS: Mapping[str, tuple[int, ...]] = {
    "skin": (1,),
    "nose": (2,),
    "eye_1": (3,),
    "eye_2": (4,),
    "brow_1": (5,),
    "brow_2": (6,),
    "mouth": (9, 10, 11),
    "glasses": (16,),
}
_LAST, _IGNORE = 18, 255
_PICTURE = re.compile(r"\d+\.png")


def read_facesynthetics(options: SourceOptions, findings: Findings) -> list[Face]:
    """Reads ``000000.png``, ``000000_seg.png`` and ``000000_ldmks.txt``, and so on.

    It has no attributes, and so gives parts only.

    Args:
        options: Where it is.
        findings: Gets what could not be used.

    Returns:
        The faces that have a label map and landmarks.

    Raises:
        FileNotFoundError: If there is none.
    """
    folder = options.folder()
    faces = []
    for path in sorted(path for path in folder.rglob("*.png") if _PICTURE.fullmatch(path.name)):
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            picture, labels, points = (inside(folder, name + end) for end in (".png", "_seg.png", "_ldmks.txt"))
            landmarks = _landmarks(points)
        except (ValueError, OSError) as error:
            findings.add(f"picture left out: it, its label map or its landmarks: {error}", name)
            continue
        faces.append(
            Face(
                source=options.name,
                root=folder,
                picture=picture,
                kinds={"part": PARTS},
                landmarks=landmarks,
                regions=partial(_read_map, labels),
            )
        )
    if not faces and not list(findings):
        raise FileNotFoundError(f"{folder} has no picture of FaceSynthetics (000000.png, 000000_seg.png, ...)")
    return faces


def _landmarks(path: Path) -> Landmarks:
    values = np.array(path.read_text(encoding="utf-8-sig").split(), np.float32)
    if len(values) not in (2 * COUNT, 2 * (COUNT + 2)):  # with or without the pupils
        raise ValueError(f"{len(values)} numbers are not 68 or 70 landmarks")
    return values.reshape(-1, 2)[:COUNT]


def _read_map(path: Path) -> Regions:
    ids = read_mask(path)
    if ((ids > _LAST) & (ids != _IGNORE)).any():
        raise ValueError(f"{path.name} is no label map: it has values beyond {_LAST}")
    return {name: np.isin(ids, numbers) for name, numbers in _REGIONS.items()}
