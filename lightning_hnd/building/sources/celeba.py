"""CelebA, aligned: 40 attributes; landmarks from a file of 68, or the set's own five."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_hnd.building.faces import Face
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.sources.attributes import read_attributes
from lightning_hnd.building.sources.landmark_files import read_landmarks
from lightning_hnd.building.sources.options import SourceOptions, existing
from lightning_hnd.building.tables import read_table
from lightning_hnd.concepts import PAPER

PARTS = frozenset(concept.name for concept in PAPER.local if concept.kind == "part")

_PLACES = ("", "Anno/", "anno/")


def named(*names: str) -> list[str]:
    """File names, in the folder and where the archive keeps its annotations, as text and as CSV."""
    return [f"{place}{name}{end}" for name in names for place in _PLACES for end in (".txt", ".csv")]


def read_celeba(options: SourceOptions, findings: Findings) -> list[Face]:
    """Reads ``img_align_celeba/``, ``list_attr_celeba`` and ``landmarks_68`` or ``list_landmarks_align_celeba``.

    ``identity_CelebA`` tells who is who, if it is there. Male gives the apparent gender.

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
    attributes = options.file(options.labels, *named("list_attr_celeba"), what="table of attributes")
    places = named("landmarks_68", "list_landmarks_align_celeba")
    landmarks = options.file(options.landmarks, *places, what="file of landmarks")
    assert attributes is not None
    assert landmarks is not None
    labelled = read_attributes(attributes, findings, options.at_least)
    points, coarse = read_landmarks(landmarks, findings)
    who = read_identities(options, findings)
    if coarse:
        findings.add("masks are coarse: CelebA's five points give the place of parts, not their shape")
    faces = []
    for picture, name, row in existing(labelled, folder, findings):
        if name not in points:
            findings.add(f"picture left out: {landmarks.name} has no landmarks of it", name)
            continue
        faces.append(
            Face(
                source=options.name,
                root=folder,
                picture=picture,
                kinds={**row.kinds, "part": PARTS},
                unknown=row.unknown,
                groups=row.groups,
                labels=row.labels,
                landmarks=points[name],
                coarse=coarse,
                identity=who.get(name),
                original=name,
            )
        )
    return faces


def read_identities(options: SourceOptions, findings: Findings) -> Mapping[str, str]:
    """The identity of each picture of CelebA; empty without its file of identities."""
    file = options.file(None, *named("identity_CelebA"))
    if file is None:
        return {}
    return {name: row[0] for name, row in read_table(file, findings).rows.items()}
