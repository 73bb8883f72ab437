"""Any folder of pictures with a table of labels and landmarks: the way to add DISFA, BP4D, EmotioNet and one's own."""

from __future__ import annotations

from dataclasses import replace

from lightning_hnd.building.faces import Face
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.sources.annotated import annotated_faces
from lightning_hnd.building.sources.options import SourceOptions
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
    faces = []
    for _, face in annotated_faces(options, folder, ["labels.csv"], ["landmarks_68.csv"], findings):
        labels = dict(face.labels)
        person = next((labels[column] for column in labels if column.lower() in _PERSON and labels[column]), None)
        identity = None if person is None else f"{options.name}:{person}"
        groups = {**face.groups, **_groups(labels)}  # which takes them out of the labels
        faces.append(replace(face, groups=groups, labels=labels, identity=identity))
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
