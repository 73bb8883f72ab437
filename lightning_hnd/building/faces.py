"""Face: one picture of a source with all that its source says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_hnd.building.parts import Regions

RegionReader: TypeAlias = Callable[[], Regions]
"""Reads the true masks of a face's parts, when they are wanted."""


@dataclass(frozen=True, eq=False)
class Face:
    """One picture of a source.

    Attributes:
        source: The name of the source.
        root: The folder of the source.
        picture: The picture's path in it.
        kinds: For each kind of local concepts in which the face is labelled, those that it carries.
        unknown: Concepts of these kinds of which nothing is known.
        groups: Its group of global concepts.
        labels: All else that is known, by the name of a column.
        landmarks: ``[68, 2]``, in pixels of the picture as it is displayed.
        coarse: Whether they are a mean face laid over five points.
        regions: True masks of its parts.
        identity: Who it is, under any name that only this person has in the source.
        original: The name of the same picture in CelebA.
    """

    source: str
    root: Path
    picture: Path
    kinds: Mapping[str, frozenset[str]] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()
    groups: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    landmarks: npt.NDArray[np.float32] | None = None
    coarse: bool = False
    regions: RegionReader | None = None
    identity: str | None = None
    original: str | None = None

    @cached_property
    def name(self) -> str:
        """Its path in the source, without ending."""
        return self.picture.relative_to(self.root).with_suffix("").as_posix()

    @property
    def person(self) -> str:
        """What keeps pictures of one person together: the identity, or where it is unknown the picture itself."""
        return self.identity if self.identity is not None else f"{self.source}/{self.name}"
