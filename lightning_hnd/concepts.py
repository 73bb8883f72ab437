"""What a unit can be paired with: local concepts, regions of the face, groups of global concepts.

An ontology is data. :data:`PAPER` is the one of Hierarchical Network Dissection (Teotia, Lapedriza,
Ostadabbas, IJCV 2022); another one is another :class:`Ontology`, no code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_hnd.instead import instead

MARGIN_OF_TWO, MARGIN = 1.1, 1.2
"""Times chance that a group's probability must exceed, of two groups and of any other number (Stage I.4)."""


@dataclass(frozen=True)
class Concept:
    """A local concept: something that has a place in the face and so a mask in each image that carries it.

    Args:
        name: Its name, which is also the stem of its mask files.
        kind: What sort of concept it is. Concepts of one kind are labelled together: an image of that
            kind's source without the concept is a face that lacks it.
        region: The facial region it belongs to.
    """

    name: str
    kind: str
    region: str


@dataclass(frozen=True)
class GlobalConcept:
    """A concept of the whole face: no mask, each labelled image belongs to one of its groups.

    Groups are *apparent*: labels that annotators gave to pictures, not facts about people.

    Args:
        name: Its name.
        groups: The names of its groups, at least two.
        margin: A unit is paired with a group whose probability exceeds ``margin`` times chance
            (``1 / number of groups``). By default 1.1 for two groups (0.55) and 1.2 for any other
            number (0.30 for four), the paper's values.

    Raises:
        ValueError: If there are fewer than two groups, or two of one name.
    """

    name: str
    groups: tuple[str, ...]
    margin: float | None = None

    def __post_init__(self) -> None:
        if len(self.groups) < 2:
            raise ValueError(f"global concept {self.name!r} has groups {self.groups}; it needs at least two")
        _require_unique(self.groups, f"group of global concept {self.name!r}")

    @property
    def times_chance(self) -> float:
        """The margin, or its default."""
        if self.margin is not None:
            return self.margin
        return MARGIN_OF_TWO if len(self.groups) == 2 else MARGIN


@dataclass(frozen=True)
class Ontology:
    """The local and global concepts that a dictionary shows and a dissection reports.

    Args:
        local: The local concepts, in the order of every ``[C]`` axis.
        global_: The global concepts, in the order of every ``[K]`` axis; their groups in this order,
            one concept after the other, make every ``[G]`` axis.

    Raises:
        ValueError: If two concepts share a name, whether local or global.

    Example:
        >>> from lightning_hnd.concepts import Concept, GlobalConcept, Ontology
        >>> ears = Ontology(
        ...     local=(Concept("left_ear", "part", "Ear"), Concept("earring", "attribute", "Ear")),
        ...     global_=(GlobalConcept("age", ("young", "old")),),
        ... )
        >>> ears.regions
        ('Ear',)
        >>> ears.concept_index("earring")
        1
    """

    local: tuple[Concept, ...]
    global_: tuple[GlobalConcept, ...] = ()

    def __post_init__(self) -> None:
        _require_unique([c.name for c in self.local] + [c.name for c in self.global_], "concept")

    @cached_property
    def regions(self) -> tuple[str, ...]:
        """The regions, in order of first appearance."""
        return tuple(dict.fromkeys(c.region for c in self.local))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of local concepts, in order of first appearance."""
        return tuple(dict.fromkeys(c.kind for c in self.local))

    @cached_property
    def concept_region(self) -> tuple[int, ...]:
        """Index of each local concept's region: the ``concept_region [C]`` of the functional layer."""
        return tuple(self.regions.index(c.region) for c in self.local)

    @cached_property
    def concept_kind(self) -> tuple[int, ...]:
        """Index of each local concept's kind."""
        return tuple(self.kinds.index(c.kind) for c in self.local)

    @cached_property
    def group_offsets(self) -> tuple[int, ...]:
        """Where each global concept's groups begin on the ``[G]`` axis, and at the end its length."""
        offsets = [0]
        for concept in self.global_:
            offsets.append(offsets[-1] + len(concept.groups))
        return tuple(offsets)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The local concepts, then the groups: ``Eyeglasses``, ..., ``gender/Male``, ..."""
        groups = (f"{concept.name}/{group}" for concept in self.global_ for group in concept.groups)
        return (*(concept.name for concept in self.local), *groups)

    def labels_of(self, name: str) -> list[int]:
        """The positions among the labels that a name stands for: its own, or those of a global concept's groups.

        Raises:
            ValueError: If there is no such concept or group, with the nearest names.
        """
        found = [i for i, label in enumerate(self.labels) if label == name or label.startswith(f"{name}/")]
        if not found:
            known = [*(concept.name for concept in self.global_), *self.labels]
            raise ValueError(f"there is no concept or group {name!r}; {instead(name, known)}")
        return found

    def concept_index(self, name: str) -> int:
        """Index of the local concept ``name``.

        Raises:
            KeyError: If there is none, with the nearest names.
        """
        return self._index(name, [c.name for c in self.local], "local concept")

    def global_index(self, name: str) -> int:
        """Index of the global concept ``name``.

        Raises:
            KeyError: If there is none, with the nearest names.
        """
        return self._index(name, [c.name for c in self.global_], "global concept")

    @staticmethod
    def _index(name: str, names: list[str], what: str) -> int:
        if name in names:
            return names.index(name)
        raise KeyError(f"the ontology has no {what} {name!r}; {instead(name, names)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data: lists, dicts, strings and numbers."""
        return {
            "local": [[c.name, c.kind, c.region] for c in self.local],
            "global": [[c.name, list(c.groups), c.margin] for c in self.global_],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Ontology:
        """The ontology that :meth:`to_dict` described."""
        return cls(
            local=tuple(Concept(*entry) for entry in data["local"]),
            global_=tuple(GlobalConcept(name, tuple(groups), margin) for name, groups, margin in data["global"]),
        )

    @classmethod
    def from_file(cls, path: Path) -> Ontology:
        """The ontology in a JSON file, of the form of :meth:`to_dict`.

        Raises:
            ValueError: If the file holds no ontology.
        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{path} describes no ontology ({error}); write it as {{"local": [[name, kind, region], ...], '
                '"global": [[name, [group, ...], margin or null], ...]}, as Ontology.to_dict does'
            ) from error


def _require_unique(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} is listed twice")
        seen.add(name)


_KIND_OF = {
    "action_unit": "AU_1 AU_2 AU_4 AU_5 AU_6 AU_9 AU_12 AU_15 AU_17 AU_20 AU_25 AU_26",
    "part": "nose left_brow right_brow left_eye right_eye mouth left_cheek right_cheek",
    "attribute": (
        "5_o_Clock_Shadow Arched_Eyebrows Bushy_Eyebrows No_Beard Bags_Under_Eyes Big_Lips Big_Nose Double_Chin "
        "Eyeglasses Goatee High_Cheekbones Rosy_Cheeks Mouth_Slightly_Open Mustache Narrow_Eyes Pointy_Nose "
        "Smiling Wearing_Lipstick"
    ),
}
_REGION_OF = {
    "Eye": (
        "AU_1 AU_2 AU_4 AU_5 left_brow right_brow left_eye right_eye Arched_Eyebrows Bushy_Eyebrows Eyeglasses "
        "Narrow_Eyes"
    ),
    "Cheek": "AU_6 left_cheek right_cheek Bags_Under_Eyes High_Cheekbones Rosy_Cheeks No_Beard 5_o_Clock_Shadow",
    "Nose": "AU_9 nose Big_Nose Pointy_Nose",
    "Mouth": "AU_12 AU_15 AU_20 AU_25 mouth Big_Lips Mouth_Slightly_Open Mustache Smiling Wearing_Lipstick",
    "Chin": "AU_17 AU_26 Double_Chin Goatee",
}
_region = {name: region for region, names in _REGION_OF.items() for name in names.split()}

PAPER = Ontology(
    local=tuple(Concept(name, kind, _region[name]) for kind, names in _KIND_OF.items() for name in names.split()),
    global_=(
        GlobalConcept("age", ("zero_to_twenty", "twenty_to_forty", "forty_to_sixty", "sixty_plus")),
        GlobalConcept("gender", ("Male", "Female")),
        GlobalConcept("ethnicity", ("white", "black", "asian", "indian")),
        GlobalConcept("skin_tone", ("bright", "dark")),
    ),
)
"""The paper's ontology: 38 local concepts in five regions, four global concepts with twelve groups."""
