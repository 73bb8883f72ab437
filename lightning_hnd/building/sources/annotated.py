"""Pictures with a table of labels and a file of landmarks: what CelebA and anybody's own folder have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_hnd.building.faces import Face
from lightning_hnd.building.parts import PARTS
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.sources.attributes import read_attributes
from lightning_hnd.building.sources.landmark_files import read_landmarks
from lightning_hnd.building.sources.options import SourceOptions, existing


def annotated_faces(
    options: SourceOptions, folder: Path, labels: list[str], landmarks: list[str], findings: Findings
) -> Iterator[tuple[str, Face]]:
    """The pictures of a folder that have labels and landmarks, as faces.

    Args:
        options: Of the source; files that the user gave come before the usual ones.
        folder: Where the pictures are.
        labels: Usual places of the table of labels.
        landmarks: Usual places of the landmarks.
        findings: Gets what could not be used.

    Yields:
        The name that the tables have for a picture, and the face.

    Raises:
        FileNotFoundError: If labels or landmarks are missing.
        ValueError: If one of the files cannot be read.
    """
    table = options.file(options.labels, *labels, what="table of labels")
    file = options.file(options.landmarks, *landmarks, what="file of landmarks")
    assert table is not None
    assert file is not None
    labelled = read_attributes(table, findings, options.at_least)
    points, coarse = read_landmarks(file, findings)
    if coarse:
        findings.add("masks are coarse: five points give the place of parts, not their shape")
    for picture, name, row in existing(labelled, folder, findings):
        if name not in points:
            findings.add(f"picture left out: {file.name} has no landmarks of it", name)
            continue
        yield (
            name,
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
            ),
        )
