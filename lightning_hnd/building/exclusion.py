"""The pictures and people of a training set, who must not be in a dictionary that its models are measured with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from lightning_hnd.building.faces import Face
from lightning_hnd.building.pictures import pictures_in
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.sources.celeba import read_identities
from lightning_hnd.building.sources.options import SourceOptions
from lightning_hnd.building.tables import read_table

_TRAINING = frozenset(("0", "train", "training"))


def names_of(training_set: Path, findings: Findings) -> frozenset[str]:
    """The pictures of a training set: names as a list has them, or whole paths of a folder.

    Args:
        training_set: A folder of pictures, a list of names, or a table of names and parts in which 0 or ``train`` says
            training, as CelebA's ``list_eval_partition.txt``.
        findings: Gets rows that cannot be used.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If there is no name in it.
    """
    if training_set.is_dir():
        names = frozenset(map(str, pictures_in(training_set.resolve())))
    elif training_set.is_file():
        table = read_table(training_set, findings)
        parted = any(row and row[0].lower() in _TRAINING for row in table.rows.values())
        names = frozenset(name for name, row in table.rows.items() if not parted or row[0].lower() in _TRAINING)
    else:
        raise FileNotFoundError(f"there is no training set {training_set} to leave out")
    if not names:
        raise ValueError(f"the training set {training_set} has no picture")
    return names


def identities(sources: Iterable[SourceOptions]) -> dict[str, str]:
    """Who is in each picture of CelebA, as far as the folders of the sources tell."""
    celeba = [source for source in sources if source.kind in ("celeba", "celebamask_hq")]
    return {name: person for source in celeba for name, person in read_identities(source, Findings()).items()}


def leave_out(
    faces: Sequence[Face], names: frozenset[str], sources: Iterable[SourceOptions], findings: Findings
) -> list[Face]:
    """The faces of whose person no picture is in a training set.

    A name with a folder that a picture of a source has means that picture there (FairFace has ``train/1.jpg`` and
    ``val/1.jpg``); in all other sources every picture of the name is left out, wherever it lies.

    Args:
        faces: All.
        names: Of the training set, with or without their folders.
        sources: Where identities can be looked up of pictures that are not among the faces.
        findings: Gets what was left out.
    """
    who = identities(sources)

    basenames = {PurePath(name).name for name in names}
    seen = {face for own in _by_source(faces) for face in _seen(own, names)}
    people = {who[name] for name in basenames & set(who)} | {face.identity for face in seen}
    people.discard(None)
    kept = [face for face in faces if face not in seen and face.identity not in people]
    findings.add(f"the training set has {len(names)} names: {len(seen)} pictures and {len(people)} people left out")
    unknown = sorted({face.source for face in kept if face.identity is None})
    if unknown:
        findings.add(f"identities are unknown in {', '.join(unknown)}: people of the training set may be among them")
    return kept


def _by_source(faces: Iterable[Face]) -> Iterable[list[Face]]:
    sources: dict[str, list[Face]] = {}
    for face in faces:
        sources.setdefault(face.source, []).append(face)
    return sources.values()


def _seen(faces: Sequence[Face], names: frozenset[str]) -> list[Face]:
    """The faces of one source that a training set names: by their whole paths, or all that have the file's name."""
    root = faces[0].root.resolve()
    paths = {face: str(root / face.picture.relative_to(face.root)) for face in faces}
    places = {name: os.path.normpath(root / name) for name in names}
    there = set(paths.values())
    exact = {place for place in places.values() if place in there}
    loose = {PurePath(name).name for name, place in places.items() if place not in there}
    return [face for face in faces if paths[face] in exact or {face.picture.name, face.original} & loose]
