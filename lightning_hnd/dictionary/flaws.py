"""What can be wrong with a Face Dictionary, and what it means for a dissection: findings as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias


class Level(Enum):
    """How bad a flaw is, worst first."""

    REFUSED = "refused"
    """The dictionary is not read until this is mended."""
    WRONG = "wrong"
    """It is read, and numbers come out wrong."""
    DOUBTFUL = "doubtful"
    """Numbers are right, but what they seem to say may not be."""


class Flaw(Enum):
    """Every flaw that is looked for, with its level and what it means."""

    MISSING = (Level.REFUSED, "a file that a table names is not there, so that its image or concept cannot be shown")
    OUTSIDE = (Level.REFUSED, "what lies outside the folder is never read: another machine has something else there")
    BAD_TABLE = (Level.REFUSED, "the table cannot be read as it is meant, so that images and labels would be lost")
    UNKNOWN_LABEL = (Level.REFUSED, "no unit can be paired with a label that the ontology lacks")
    LISTED_TWICE = (Level.REFUSED, "an image that counts twice weighs twice in thresholds, IoU and affinities")
    UNREADABLE = (Level.REFUSED, "it cannot be shown to a model, or it is not known where the mask is on")
    SIZE_MISMATCH = (Level.REFUSED, "a mask of another geometry than its picture covers the wrong pixels")
    BAD_DATACARD = (Level.REFUSED, "where the dictionary comes from cannot be told in its dissections")
    NOTHING = (Level.REFUSED, "a dissection needs faces to show to the model")

    BLANK = (Level.WRONG, "a picture of one colour shows no face, but its labels count")
    EMPTY_MASK = (Level.WRONG, "a concept without area: whatever fires on this image lowers its IoU")
    FULL_MASK = (Level.WRONG, "whatever fires on this image counts as a hit; an inverted mask would look like this")
    OFF_FACE = (Level.WRONG, "units that fire on the concept miss this mask: its IoU comes out too low")
    SIDES_SWAPPED = (Level.WRONG, "left is the left of the image, here; units of one side are paired with the other")
    SHARED_MASK = (Level.WRONG, "one mask serves several images, and fits one of them at most")
    COPY = (Level.WRONG, "one picture counts several times, in thresholds, IoU and affinities")
    CONTRADICTION = (Level.WRONG, "one picture is in several groups that exclude each other; it draws them together")
    EMPTY_GROUP = (Level.WRONG, "probabilities are shared out among fewer groups than the bar is made for")

    NEAR_COPY = (Level.DOUBTFUL, "nearly the same picture counts several times: fewer faces than it seems")
    FEW_IMAGES = (Level.DOUBTFUL, "a mean over few faces says more of those faces than of the concept")
    ABSENT_CONCEPT = (Level.DOUBTFUL, "no unit can be paired with it; in a region, the others share what it would have")
    IMBALANCE = (Level.DOUBTFUL, "ranks are taken over all groups together, and the largest one decides them")
    CONFOUND = (Level.DOUBTFUL, "a unit of one label cannot be told from a unit of the other")
    UNTOLD_GROUP = (Level.DOUBTFUL, "units of a group can pass for detectors of what it has more often")
    SOFT_MASK = (Level.DOUBTFUL, "every pixel above 0 is on; a lossy or smoothed mask is larger than it looks")
    UNLISTED = (Level.DOUBTFUL, "what no table lists is not read: an unlisted mask counts as absence")
    TURNED = (Level.DOUBTFUL, "it is shown upright, as viewers show it; masks must be drawn on the upright picture")
    COLOURS = (Level.DOUBTFUL, "the colours that the model gets may not be those that people see")

    @property
    def level(self) -> Level:
        """How bad it is."""
        return self.value[0]

    @property
    def meaning(self) -> str:
        """What it means for a dissection."""
        return self.value[1]


@dataclass(frozen=True)
class Finding:
    """One flaw in one place.

    Attributes:
        flaw: Which.
        where: The file or folder, relative to the dictionary, or the concept that has it.
        what: A sentence with the thing, the value and the remedy.
        doubtful: The concepts, kinds and groups (``gender/Female``) whose readings it makes doubtful; none: all.
    """

    flaw: Flaw
    where: str
    what: str
    doubtful: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "level": self.flaw.level.value,
            "flaw": self.flaw.name.lower(),
            "where": self.where,
            "what": self.what,
            "meaning": self.flaw.meaning,
            "doubtful": list(self.doubtful),
        }


Report: TypeAlias = Callable[[Finding], None]
"""Takes findings: :func:`refuse`, to stop at the first serious one, or ``list.append``, to see them all."""


def refuse(finding: Finding) -> None:
    """Raises what makes a dictionary unusable, and lets the rest pass.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If anything else cannot be used.
    """
    if finding.flaw.level is Level.REFUSED:
        raise FileNotFoundError(finding.what) if finding.flaw is Flaw.MISSING else ValueError(finding.what)
