"""Which images of a dictionary to keep where the time for all of them is missing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lightning_hnd.dictionary.face_dictionary import FaceDictionary

FLOOR = 10
"""Images that each concept and group keeps before any gets its share, if it has so many."""

_ONE = 2**20  # fractions are whole numbers of this part
_EXCHANGES = 1000
"""Never reached so far: some tens bring 24,000 images within two of every share."""


@dataclass(frozen=True)
class Strata:
    """What images are labelled with: one column for each local concept, each group and each source.

    Columns overlap, an image carries several concepts; only the sources, the last columns, part the images.

    Attributes:
        carries: ``[N, S]`` bool, which image is labelled with what.
        names: ``[S]``, the columns' names, for people.
        num_sources: How many columns at the end are sources: the kinds, and images without local labels.
    """

    carries: npt.NDArray[np.bool_]
    names: tuple[str, ...]
    num_sources: int

    @classmethod
    def of(cls, dictionary: FaceDictionary) -> Strata:
        """Those of a dictionary."""
        ontology = dictionary.ontology
        local = np.zeros((len(dictionary), len(ontology.local)), np.bool_)
        local[dictionary.mask_image.numpy(), dictionary.mask_concept.numpy()] = True
        group, source = dictionary.group.numpy(), dictionary.source.numpy()
        groups = [group[:, [k]] == np.arange(len(concept.groups)) for k, concept in enumerate(ontology.global_)]
        kinds = source[:, None] == np.arange(-1, len(ontology.kinds))
        names = [
            *(f"concept {concept.name}" for concept in ontology.local),
            *(f"{concept.name} {name}" for concept in ontology.global_ for name in concept.groups),
            "images without local labels",
            *(f"source {kind}" for kind in ontology.kinds),
        ]
        return cls(np.hstack([local, *groups, kinds]), tuple(names), kinds.shape[1])

    @cached_property
    def count(self) -> npt.NDArray[np.int64]:
        """``[S]``, images of each column."""
        count: npt.NDArray[np.int64] = self.carries.sum(0, dtype=np.int64)
        return count

    def shares(self, num_images: int) -> npt.NDArray[np.int64]:
        """``[S]``, how many images of each column belong into ``num_images``; those of the sources add up to it."""
        exact = self.count * num_images
        shares = (2 * exact + len(self.carries)) // (2 * len(self.carries))  # to the nearest
        sources = exact[-self.num_sources :]
        low, rest = np.divmod(sources, len(self.carries))
        low[np.argsort(-rest, kind="stable")[: num_images - low.sum()]] += 1  # largest remainders
        shares[-self.num_sources :] = low
        return shares


def sample(strata: Strata, num_images: int, seed: int) -> npt.NDArray[np.int64]:
    """Chooses images in which every column keeps its share, and no column less than :data:`FLOOR` while there is room.

    First every column gets its floor. Then columns are filled up to their shares, the rarest first, so that a
    common one makes up for what the rare ones brought along (the idea of iterative stratification: Sechidis,
    Tsoumakas, Vlahavas, ECML 2011). Last, images are exchanged while that helps. All of it is integer arithmetic
    on one seeded permutation: the same on every machine, whatever the state of the global generators.

    Args:
        strata: The columns.
        num_images: How many images to choose, fewer than there are.
        seed: Other seeds choose other images.

    Returns:
        ``[num_images]``, positions, ascending.

    Raises:
        ValueError: If they are too few for one image of each column that has any.
    """
    draft = _Draft(strata, num_images, np.random.default_rng(seed).permutation(len(strata.carries)))
    rarest_first = np.argsort(strata.count, kind="stable")
    _reach_floors(draft, rarest_first, num_images)
    kept = draft.chosen.copy()
    _fill_shares(draft, rarest_first)
    _even_out(draft, num_images, kept)
    return np.flatnonzero(draft.chosen)


@dataclass
class _Draft:
    """A choice in the making, ``chosen [N]`` bool: each column has ``have [S]`` and shall have ``goal [S]`` of it."""

    strata: Strata
    num_images: int
    order: npt.NDArray[np.int64]  # in which images are looked at

    def __post_init__(self) -> None:
        self.chosen = np.zeros(len(self.order), np.bool_)
        self.have = np.zeros_like(self.strata.count)
        self.share = self.strata.shares(self.num_images)
        self.goal = np.maximum(np.maximum(self.share, np.minimum(self.strata.count, FLOOR)), 1)

    def put(self, images: npt.NDArray[np.int64], chosen: bool) -> None:
        self.chosen[images] = chosen
        self.have += (1 if chosen else -1) * self.strata.carries[images].sum(0, dtype=np.int64)

    def free(self, column: int) -> npt.NDArray[np.int64]:
        """Images of a column that are not chosen, in the order of the permutation."""
        return self.order[(self.strata.carries[:, column] & ~self.chosen)[self.order]]

    def wanted(self, images: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How far each image's columns are short of their goals, in parts of the goal; negative beyond it."""
        short: npt.NDArray[np.int64] = (self.goal - self.have) * _ONE // self.goal
        return np.asarray(self.strata.carries[images] @ short)

    def misfit(self) -> int:
        """Squared distance from the goals, each in parts of the goal."""
        return int(((self.goal - self.have) ** 2 * _ONE // self.goal).sum())


def _reach_floors(draft: _Draft, columns: npt.NDArray[np.int64], num_images: int) -> None:
    """Gives each column one image, each two, and so on, up to the floor or the last image."""
    need = np.minimum(draft.strata.count, 1)
    for column in columns:  # what this round takes does not depend on num_images, so that the error can name it
        if draft.have[column] < need[column]:
            images = draft.free(column)
            news = draft.strata.carries[images] @ (draft.have < need).astype(np.int64)
            draft.put(images[[np.argmax(news)]], True)
    if (fewest := draft.chosen.sum()) > num_images:
        raise ValueError(
            f"max_images={num_images} is too few to keep an image of each of the {int(need.sum())} concepts, groups "
            f"and sources of this dictionary; it takes {fewest}. Give more, or a dictionary of fewer concepts"
        )
    for floor in range(2, FLOOR + 1):
        for column in columns:
            if draft.chosen.sum() == num_images:
                return
            if draft.have[column] < min(floor, draft.strata.count[column]):
                images = draft.free(column)
                draft.put(images[[np.argmax(draft.wanted(images))]], True)


def _fill_shares(draft: _Draft, columns: npt.NDArray[np.int64]) -> None:
    """Fills each column up to its share, the sources last, with images of no rarer column as far as there are."""
    settled = np.zeros(len(draft.order), np.bool_)
    sources = np.arange(len(columns) - draft.strata.num_sources, len(columns))
    for column in [*columns[~np.isin(columns, sources)], *sources]:
        missing = draft.share[column] - draft.have[column]
        if missing > 0:
            images = draft.free(column)
            draft.put(images[np.argsort(settled[images], kind="stable")[:missing]], True)
        settled |= draft.strata.carries[:, column]


def _even_out(draft: _Draft, num_images: int, kept: npt.NDArray[np.bool_]) -> None:
    """Brings the number down to ``num_images``, then exchanges images while columns come nearer to their goals."""

    def drop() -> npt.NDArray[np.int64]:
        images = draft.order[(draft.chosen & ~kept)[draft.order]]
        least = images[np.argsort(draft.wanted(images), kind="stable")[:1]]
        draft.put(least, False)
        return least

    for _ in range(int(draft.chosen.sum()) - num_images):
        drop()
    for _ in range(_EXCHANGES if kept.sum() < num_images else 0):
        before = draft.misfit()
        gone = drop()
        images = draft.order[~draft.chosen[draft.order]]
        come = images[[np.argmax(draft.wanted(images))]]
        draft.put(come, True)
        if draft.misfit() >= before:
            draft.put(come, False)
            draft.put(gone, True)
            return
