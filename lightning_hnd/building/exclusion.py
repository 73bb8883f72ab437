"""The pictures and people of a training set, who must not be in a dictionary that its models are measured with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_hnd.building.faces import Face
from lightning_hnd.building.findings import Findings
from lightning_hnd.building.pictures import pictures_in
from lightning_hnd.building.sources.celeba import read_identities
from lightning_hnd.building.sources.options import SourceOptions
from lightning_hnd.building.tables import read_table

_TRAINING = frozenset(("0", "train", "training"))


def names_of(training_set: Path, findings: Findings) -> frozenset[str]:
    """The file names of a training set.

    Args:
        training_set: A folder of pictures, a list of names, or a table of names and parts in which 0 or ``train`` says
            training, as CelebA's ``list_eval_partition.txt``.
        findings: Gets rows that cannot be used.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If there is no name in it.
    """
    if training_set.is_dir():
        names = frozenset(path.name for path in pictures_in(training_set))
    elif training_set.is_file():
        table = read_table(training_set, findings)
        parted = any(row and row[0].lower() in _TRAINING for row in table.rows.values())
        names = frozenset(name for name, row in table.rows.items() if not parted or row[0].lower() in _TRAINING)
    else:
        raise FileNotFoundError(f"there is no training set {training_set} to leave out")
    if not names:
        raise ValueError(f"the training set {training_set} has no picture")
    return frozenset(Path(name).name for name in names)


def identities(sources: Iterable[SourceOptions]) -> dict[str, str]:
    """Who is in each picture of CelebA, as far as the folders of the sources tell."""
    celeba = [source for source in sources if source.kind in ("celeba", "celebamask_hq")]
    return {name: person for source in celeba for name, person in read_identities(source, Findings()).items()}


def leave_out(
    faces: Sequence[Face], names: frozenset[str], sources: Iterable[SourceOptions], findings: Findings
) -> list[Face]:
    """The faces of whose person no picture is in a training set.

    Args:
        faces: All.
        names: Of the training set.
        sources: Where identities can be looked up of pictures that are not among the faces.
        findings: Gets what was left out.
    """
    who = identities(sources)

    def trained_on(face: Face) -> bool:
        return face.picture.name in names or (face.original is not None and face.original in names)

    people = {who[name] for name in names & set(who)} | {face.identity for face in faces if trained_on(face)}
    people.discard(None)
    kept = [face for face in faces if not trained_on(face) and face.identity not in people]
    pictures = sum(map(trained_on, faces))
    findings.add(f"the training set has {len(names)} names: {pictures} pictures and {len(people)} people left out")
    unknown = sorted({face.source for face in kept if face.identity is None})
    if unknown:
        findings.add(f"identities are unknown in {', '.join(unknown)}: people of the training set may be among them")
    return kept
