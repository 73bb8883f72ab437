"""Any folder of pictures with a table of labels and landmarks: the way to add DISFA, BP4D, EmotioNet and one's own."""

from __future__ import annotations

from lightning_hnd.building.faces import Face
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.sources.attributes import read_attributes
from lightning_hnd.building.sources.celeba import PARTS
from lightning_hnd.building.sources.landmark_files import read_landmarks
from lightning_hnd.building.sources.options import SourceOptions, existing
from lightning_hnd.building.sources.utkface import age_group
from lightning_hnd.concepts import PAPER

_PERSON = ("identity", "subject", "person", "subject_id")


def read_pictures(options: SourceOptions, findings: Findings) -> list[Face]:
    """Reads a folder of pictures, ``labels.csv`` and ``landmarks_68.csv`` (or the files given).

    A column ``identity`` or ``subject`` tells who is who; ``age`` in years, ``gender``, ``ethnicity`` and ``skin_tone``
    give groups.

    Args:
        options: Where it is; intensities of action units from ``at_least`` on count as present.
        findings: Gets what could not be used.

    Returns:
        The faces that have labels and landmarks.

    Raises:
        FileNotFoundError: If labels or landmarks are missing.
        ValueError: If one of the tables cannot be read.
    """
    folder = options.folder()
    table = options.file(options.labels, "labels.csv", what="table of labels")
    landmarks = options.file(options.landmarks, "landmarks_68.csv", what="file of landmarks")
    assert table is not None
    assert landmarks is not None
    labelled = read_attributes(table, findings, options.at_least)
    points, coarse = read_landmarks(landmarks, findings)
    faces = []
    for picture, name, row in existing(labelled, folder, findings):
        if name not in points:
            findings.add(f"picture left out: {landmarks.name} has no landmarks of it", name)
            continue
        labels = dict(row.labels)
        person = next((labels[column] for column in labels if column.lower() in _PERSON and labels[column]), None)
        faces.append(
            Face(
                source=options.name,
                root=folder,
                picture=picture,
                kinds={**row.kinds, "part": PARTS},
                unknown=row.unknown,
                groups={**row.groups, **_groups(labels)},
                labels=labels,
                landmarks=points[name],
                coarse=coarse,
                identity=None if person is None else f"{options.name}:{person}",
            )
        )
    return faces


def _groups(labels: dict[str, str]) -> dict[str, str]:
    """Groups of global concepts that columns give; these are taken out of the labels."""
    groups = {}
    for concept in PAPER.global_:
        value = labels.get(concept.name, "").strip()
        known = {group.lower(): group for group in concept.groups}
        if value.lower() in known:
            groups[concept.name] = known[value.lower()]
            del labels[concept.name]
        elif concept.name == "age" and value.isdecimal():
            groups["age"] = age_group(int(value))
            labels["years"] = labels.pop("age")
    return groups
