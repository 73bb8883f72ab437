"""CelebA, aligned: 40 attributes; landmarks from a file of 68, or the set's own five."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lightning_hnd.building.faces import Face
from lightning_hnd.building.landmarks import MOST_APART, apart
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.sources.annotated import annotated_faces
from lightning_hnd.building.sources.landmark_files import read_points
from lightning_hnd.building.sources.options import SourceOptions
from lightning_hnd.building.tables import read_table

_PLACES = ("", "Anno/", "anno/")


def named(*names: str) -> list[str]:
    """File names, in the folder and where the archive keeps its annotations, as text and as CSV."""
    return [f"{place}{name}{end}" for name in names for place in _PLACES for end in (".txt", ".csv")]


def read_celeba(options: SourceOptions, findings: Findings) -> list[Face]:
    """Reads ``img_align_celeba/``, ``list_attr_celeba`` and ``landmarks_68`` or ``list_landmarks_align_celeba``.

    ``identity_CelebA`` tells who is who, if it is there. Male gives the apparent gender. Where the set's own five
    points are there beside 68 landmarks, faces on which both disagree are left out.

    Args:
        options: Where it is.
        findings: Gets what could not be used.

    Returns:
        The faces that have labels and landmarks.

    Raises:
        FileNotFoundError: If pictures, attributes or landmarks are missing.
        ValueError: If one of the tables cannot be read.
    """
    folder = options.picture_folder("img_align_celeba", "Img/img_align_celeba", "img_align_celeba_png")
    who = read_identities(options, findings)
    landmarks = named("landmarks_68", "list_landmarks_align_celeba")
    found = annotated_faces(options, folder, named("list_attr_celeba"), landmarks, findings)
    faces = [replace(face, identity=who.get(name), original=name) for name, face in found]
    return _on_their_faces(faces, options, findings)


def _on_their_faces(faces: list[Face], options: SourceOptions, findings: Findings) -> list[Face]:
    """The faces but those whose 68 landmarks are elsewhere than the five points that CelebA itself has of them.

    Landmarks of another face, or of none, may have the shape of a face: nothing but a second opinion tells.
    """
    file = options.file(None, *named("list_landmarks_align_celeba"))
    if file is None or any(face.coarse for face in faces):
        return faces
    five, _ = read_points(file, findings)
    kept = []
    for face in faces:
        points = five.get(face.picture.name)
        if points is None or face.landmarks is None or not apart(face.landmarks, points) > MOST_APART:
            kept.append(face)
        else:
            what = f"landmarks are more than {MOST_APART:g} eye distances from the five points of {file.name}"
            findings.add(f"picture left out: {what}", face.name)
    return kept


def read_identities(options: SourceOptions, findings: Findings) -> Mapping[str, str]:
    """The identity of each picture of CelebA; empty without its file of identities."""
    file = options.file(None, *named("identity_CelebA"))
    if file is None:
        return {}
    return {name: row[0] for name, row in read_table(file, findings).rows.items()}
