"""Which faces of all sources go into a dictionary, and as what: each of them once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from lightning_hnd.building.drawing import Mask
from lightning_hnd.building.faces import Face
from lightning_hnd.building.matching import Codes, Matched, match_groups
from lightning_hnd.building.source_findings import Findings
from lightning_hnd.concepts import PAPER

Role: TypeAlias = tuple[str, str]
"""What a face is in a dictionary for: ``("kind", "attribute")``, or a global concept and a group."""

_ENOUGH = 0.8
"""Share of the images that a concept could have on its own that it must have beside the others."""


@dataclass(frozen=True)
class Choice:
    """The faces of a dictionary.

    Attributes:
        roles: By the position of the face.
        matched: How the groups of each global concept were matched.
    """

    roles: Mapping[int, Role]
    matched: Mapping[str, Matched]


def is_held_out(face: Face, share: float, seed: int) -> bool:
    """Whether a face is in the held-out share: by its person alone, so that nobody is on both sides."""
    digest = hashlib.blake2b(f"{seed}:{face.person}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def without_unknown(faces: Sequence[Face], findings: Mapping[str, Findings]) -> list[Face]:
    """The faces, each keeping only the kinds for which it is known of every concept that other faces carry.

    Absence is a label: a face of which a concept is unknown would count as one that lacks it.

    Args:
        faces: All.
        findings: By source; get the faces that lose a kind.
    """
    carried: dict[str, set[str]] = {}
    for face in faces:
        for kind, names in face.kinds.items():
            carried.setdefault(kind, set()).update(names)

    def known(face: Face) -> Face:
        kinds = dict(face.kinds)
        for kind in face.kinds:
            if missing := face.unknown & carried[kind]:
                what = f"{min(missing)} is unknown, while others carry it, and absence is a label"
                findings[face.source].add(f"picture not used for kind {kind}: {what}", face.name)
                del kinds[kind]
        return replace(face, kinds=kinds) if len(kinds) < len(face.kinds) else face

    return [known(face) for face in faces]


def choose(faces: Sequence[Face], usable: Codes, *, per_concept: int, per_group: int, seed: int) -> Choice:
    """Chooses faces for every kind of local concepts and every group.

    Args:
        faces: All, in an order that does not depend on the machine.
        usable: Positions of those that may be chosen.
        per_concept: Images that carry each local concept, and images of its kind that do not: so many as there are, up
            to this number. Common concepts get more.
        per_group: Images of each group at most.
        seed: Other seeds choose other faces.

    Returns:
        The choice.
    """
    order = np.random.default_rng(seed).permutation(len(faces))
    free = np.zeros(len(faces), np.bool_)
    free[usable] = True
    roles: dict[int, Role] = {}
    for kind in ("action_unit", "part", "attribute"):
        for i in _of_kind(faces, order[free[order]], kind, per_concept).tolist():
            roles[i] = ("kind", kind)
            free[i] = False
    matched = _match_all(faces, free, order, per_group)
    for name, choice in matched.items():
        groups = PAPER.global_[PAPER.global_index(name)].groups
        roles |= {i: (name, groups[g]) for i, g in zip(choice.index.tolist(), choice.group.tolist(), strict=True)}
    return Choice(dict(sorted(roles.items())), matched)


def _of_kind(faces: Sequence[Face], order: Codes, kind: str, count: int) -> Codes:
    """Faces in which every concept of a kind is there ``count`` times and lacks as often, if there are so many."""
    order = np.array([i for i in order.tolist() if kind in faces[i].kinds], np.int64)
    if kind == "part":
        return _parts(faces, order, count)
    names = [concept.name for concept in PAPER.local if concept.kind == kind]
    carries = np.array([[name in faces[i].kinds[kind] for name in names] for i in order.tolist()], np.bool_)
    columns = np.hstack([carries.reshape(len(order), len(names)), ~carries.reshape(len(order), len(names))])
    chosen = np.zeros(len(order), np.bool_)
    for column in np.argsort(columns.sum(0), kind="stable"):  # the rarest first: they bring common ones along
        missing = count - int((columns[:, column] & chosen).sum())
        chosen[np.flatnonzero(columns[:, column] & ~chosen)[: max(missing, 0)]] = True
    return order[chosen]


def _parts(faces: Sequence[Face], order: Codes, count: int) -> Codes:
    """Faces with parts: first those that serve for nothing else, then true masks, then a quarter of the others."""
    true = np.array([faces[i].regions is not None for i in order.tolist()], np.bool_)
    other = np.array([len(faces[i].kinds) > 1 for i in order.tolist()], np.bool_)
    shared = np.flatnonzero(other)
    ranked = np.concatenate(
        [np.flatnonzero(~other), shared[np.argsort(~true[shared], kind="stable")][: -(-len(shared) // 4)]]
    )
    return order[ranked[:count].astype(np.int64)]


def _match_all(faces: Sequence[Face], free: Mask, order: Codes, per_group: int) -> dict[str, Matched]:
    """The groups of all global concepts, scarcest first; if faces do not suffice for all, the plentiful get fewer."""
    labels = _labels(faces)
    names = [concept.name for concept in PAPER.global_]
    eligible = {name: _eligible(faces, free, labels[name]) for name in names}

    def match(name: str, available: Mask, per_group: int, always: Sequence[str] = ("source",)) -> Matched:
        group = np.where(available & eligible[name], labels[name], -1)
        others = {other: codes for other, codes in labels.items() if other != name}
        return match_groups(group, others, per_group=per_group, order=order, always=always)

    def supply(name: str) -> float:
        """Images of each group, matched on everything, if it had all faces to itself and no limit."""
        matched = match(name, free, len(faces), tuple(labels))
        return len(matched.index) / max(1, len(np.unique(matched.group)))

    scarcest_first = sorted(names, key=supply)

    def match_each(most: int) -> tuple[dict[str, Matched], bool]:
        alone = {name: match(name, free, most) for name in names}
        available, result, suffices = free.copy(), {}, True
        for name in scarcest_first:
            result[name] = match(name, available, most)
            available[result[name].index] = False
            suffices &= len(result[name].index) >= _ENOUGH * len(alone[name].index)
        return {name: result[name] for name in names if len(result[name].index)}, suffices

    low, high = 1, per_group
    while low < high:
        most = (low + high + 1) // 2
        low, high = (most, high) if match_each(most)[1] else (low, most - 1)
    return match_each(low)[0]


def _eligible(faces: Sequence[Face], free: Mask, group: Codes) -> Mask:
    """Faces that may stand for a group: those of sources without local concepts, if they have such groups at all."""
    only = np.array([not face.kinds for face in faces], np.bool_)
    known = free & (group >= 0)
    return known & only if (known & only).any() else known


def _labels(faces: Sequence[Face]) -> dict[str, Codes]:
    """Codes of the labels to match on: groups of all global concepts, the source, and CelebA's Young."""
    columns = {concept.name: [face.groups.get(concept.name, "") for face in faces] for concept in PAPER.global_}
    orders = {concept.name: list(concept.groups) for concept in PAPER.global_}
    columns |= {"source": [face.source for face in faces], "Young": [face.labels.get("Young", "") for face in faces]}
    codes = {}
    for name, values in columns.items():
        known = orders.get(name) or sorted(set(values) - {""})
        place = {value: i for i, value in enumerate(known)}
        codes[name] = np.array([place.get(value, -1) for value in values], np.int64)
    return codes
