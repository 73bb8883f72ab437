"""UTKFace: age, gender and race in the names of files."""

from __future__ import annotations

import re
from pathlib import Path

from lightning_hnd.building.faces import Face
from lightning_hnd.building.pictures import inside, pictures_in
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.sources.landmark_files import read_landmarks
from lightning_hnd.building.sources.options import SourceOptions

_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_(\d+)(?:\..*)?")
_GENDER = ("Male", "Female")
_RACE = ("White", "Black", "Asian", "Indian", "Others")


def age_group(years: int) -> str:
    """The paper's group of an age in years; 20, 40 and 60 belong to the younger group."""
    if years <= 20:
        return "zero_to_twenty"
    if years <= 40:
        return "twenty_to_forty"
    return "forty_to_sixty" if years <= 60 else "sixty_plus"


def read_utkface(options: SourceOptions, findings: Findings) -> list[Face]:
    """Reads pictures named ``[age]_[gender]_[race]_[date].jpg``, in the folder or below it.

    Race 4, Others, is in no group of the paper; these faces serve for age and gender.

    Args:
        options: Where it is; landmarks are optional, they show where the skin is.
        findings: Gets names that cannot be read; the real set has three.

    Returns:
        The labelled faces.

    Raises:
        FileNotFoundError: If there is no picture.
    """
    folder = options.folder()
    file = options.file(options.landmarks)
    landmarks = read_landmarks(file, findings)[0] if file is not None else {}
    faces = []
    seen: dict[str, Path] = {}
    for path in pictures_in(folder):
        found = _NAME.fullmatch(path.name)
        if found is None or int(found[1]) > 116:
            findings.add("picture left out: its name is not [age]_[gender]_[race]_[date]", path.name)
            continue
        if path.name in seen:
            findings.add("picture left out: another folder has one of the same name", path.name)
            continue
        try:
            picture = seen[path.name] = inside(folder, path.relative_to(folder).as_posix())
        except (ValueError, OSError) as error:
            findings.add(f"picture left out: {error}", path.name)
            continue
        race = _RACE[int(found[3])]
        groups = {"age": age_group(int(found[1])), "gender": _GENDER[int(found[2])]}
        if race != "Others":
            groups["ethnicity"] = race.lower()
        labels = {"years": str(int(found[1])), "race": race}
        faces.append(
            Face(options.name, folder, picture, groups=groups, labels=labels, landmarks=landmarks.get(path.name))
        )
    if not seen and not list(findings):
        raise FileNotFoundError(f"{folder} has no pictures")
    return faces
