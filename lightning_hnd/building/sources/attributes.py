"""Tables of labels that are present or absent: attributes and action units, each row a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lightning_hnd.building.source_findings import Findings
from lightning_hnd.building.tables import read_table, truth
from lightning_hnd.concepts import PAPER

_ACTION_UNIT = re.compile(r"au[ _-]?0*(\d+)(?:_c|_r)?")
_KIND = {concept.name: concept.kind for concept in PAPER.local if concept.kind != "part"}
_GENDER = {"male": "Male", "female": "Female", "man": "Male", "woman": "Female", "m": "Male", "f": "Female"}


@dataclass(frozen=True)
class Labelled:
    """What a table says of a picture: as in :class:`~lightning_hnd.building.faces.Face`."""

    kinds: Mapping[str, frozenset[str]] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()
    groups: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


def read_attributes(path: Path, findings: Findings, at_least: float = 1.0) -> Mapping[str, Labelled]:
    """Reads labels of pictures.

    Columns that name a concept of the paper say whether it is there: 1 or 0, 1 or -1; of action units also an
    intensity. They may be called ``AU_1``, ``AU1``, ``AU01`` or ``AU 1``; of OpenFace's ``AU01_c`` and ``AU01_r`` the
    first counts. ``Male`` or ``gender`` gives the gender. All other columns are kept as labels.

    Absence is a label; a missing label is not absence: an empty value, or a column that is not there, makes a concept
    unknown.

    Args:
        path: The table.
        findings: Gets what could not be used.
        at_least: Intensity from which an action unit counts as there. Attributes have none: from 1 on they are there.

    Raises:
        ValueError: If no column names a concept.
    """
    table = read_table(path, findings)
    both = {column.lower()[:-2] for column in table.columns if column.lower().endswith("_c")}
    spare = {column for column in table.columns if column.lower().endswith("_r") and column.lower()[:-2] in both}
    names = {
        i: name
        for i, column in enumerate(table.columns)
        if column not in spare and (name := _concept(column)) is not None
    }
    if not names:
        raise ValueError(
            f"{path} has no column of an attribute or action unit of the paper (such as Smiling or AU_12); its columns "
            f"are: {', '.join(table.columns[:12]) or 'without names: it has no header'}"
        )
    if len(set(names.values())) < len(names):
        twice = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise ValueError(f"{path} has two columns that mean {twice}; keep one (presence, or intensity with at_least)")
    kinds = {_KIND[name] for name in names.values()}
    unknown = [name for name, kind in _KIND.items() if kind in kinds and name not in names.values()]
    if unknown:
        findings.add(f"{path.name} says nothing of {', '.join(unknown)}")
    others = {i: column for i, column in enumerate(table.columns) if i not in names}
    result = {}
    for image, row in table.rows.items():
        labelled = _read_row(row, names, others, at_least, f"{path.name}, {image}", findings)
        if labelled is not None:
            result[image] = replace(labelled, unknown=labelled.unknown.union(unknown))
    return result


def _read_row(
    row: Sequence[str],
    names: Mapping[int, str],
    others: Mapping[int, str],
    at_least: float,
    where: str,
    findings: Findings,
) -> Labelled | None:
    carried: dict[str, set[str]] = {}
    unknown, labels = set(), {}
    for i, name in names.items():
        try:
            present = truth(row[i], at_least if _KIND[name] == "action_unit" else 1.0)
        except ValueError:
            findings.add(f"picture left out: {name} is neither present nor absent", f"{where}: {row[i]!r}")
            return None
        labels[name] = "" if present is None else str(int(present))
        if present is None:
            unknown.add(name)
        else:
            carried.setdefault(_KIND[name], set()).update({name} if present else ())
    groups = {}
    for i, column in others.items():
        if column.lower() == "male" and row[i]:
            male = truth(row[i])
            groups.update({} if male is None else {"gender": "Male" if male else "Female"})
        elif column.lower() in ("gender", "sex") and row[i].lower() in _GENDER:
            groups["gender"] = _GENDER[row[i].lower()]
        else:
            labels[column] = {"-1": "0"}.get(row[i], row[i])
    return Labelled({kind: frozenset(found) for kind, found in carried.items()}, frozenset(unknown), groups, labels)


def _concept(column: str) -> str | None:
    if column in _KIND:
        return column
    if found := _ACTION_UNIT.fullmatch(column.lower()):
        name = f"AU_{found[1]}"
        return name if name in _KIND else None
    return {name.lower(): name for name in _KIND}.get(column.lower().replace(" ", "_"))
