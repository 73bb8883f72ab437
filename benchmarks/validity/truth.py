"""Faces of which everything is known: what is there, labelled or not, and where it is or would be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lightning_hnd.concepts import PAPER
from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.dictionary.masks import PackedMasks
from lightning_hnd.rendering import RenderedFaces
from lightning_hnd.rendering.areas import draw_areas
from lightning_hnd.rendering.labels import GLOBAL

SIZE = 64
"""Pixels of the masks on a side."""

_KIND = torch.tensor(PAPER.concept_kind)
_PART, _ATTRIBUTE, _ACTION = (PAPER.kinds.index(kind) for kind in ("part", "attribute", "action_unit"))


class Pair(NamedTuple):
    """A unit fires on one thing and is accused of another that goes along with it.

    Attributes:
        kind: What sort of confound it is.
        fires: A local concept, or a global one (of which its last group is meant).
        accused: The one that it must not be called a detector of; of a global concept any group.
    """

    kind: str
    fires: str
    accused: str


PAIRS = (
    *(
        Pair("confound, elsewhere", *names.split())
        for names in ("Eyeglasses Smiling", "Double_Chin Bags_Under_Eyes", "AU_4 AU_17", "AU_26 AU_1")
    ),
    *(
        Pair("confound, same place", *names.split())
        for names in ("Mouth_Slightly_Open Big_Lips", "Arched_Eyebrows Bushy_Eyebrows", "AU_25 AU_12", "AU_5 AU_2")
    ),
    *(Pair("confound, unlabelled", *names.split()) for names in ("AU_9 Narrow_Eyes", "AU_15 Pointy_Nose")),
    Pair("group behind concept", "gender", "Wearing_Lipstick"),
    Pair("group behind group", "age", "skin_tone"),
)
"""In rendered faces these correlate as strongly as an exam says. Unlabelled: no image has both labels."""


@dataclass(frozen=True)
class Truth:
    """A dictionary and what it does not say.

    Attributes:
        faces: The dictionary; of its images only labels and masks are looked at.
        present: ``[N, C]`` bool, which face has which concept, labelled or not.
        place: ``[N, C, SIZE, SIZE]`` uint8, 0 to 255: where the concept is, or would be.
        group: ``[N, K]`` int64, the group of each face, labelled or not; -1 where nobody knows.
        pairs: The confounds that these faces have.
    """

    faces: FaceDictionary
    present: Tensor
    place: Tensor
    group: Tensor
    pairs: tuple[Pair, ...]
    _shares: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)

    def place_on(self, cells: tuple[int, int], image: Tensor, concept: int) -> Tensor:
        """Where the concept is in some faces, as maps see it: ``[len(image), h, w]`` float16, at most 1 in each."""
        if cells not in self._shares:
            shares = torch.cat(
                [functional.adaptive_avg_pool2d(some.float(), cells).half() for some in self.place.split(64)]
            )
            self._shares[cells] = shares.div_(shares.flatten(2).amax(2).clamp(min=1)[:, :, None, None])
        return self._shares[cells][image, concept]

    def first(self, local: int) -> Truth:
        """The same with so many local images, shared out among the sources as before; all others stay."""
        source = self.faces.source
        keep = source < 0
        for kind in source[source >= 0].unique():
            rows = (source == kind).nonzero().flatten()
            keep[rows[: round(len(rows) * local / self.faces.num_local)]] = True
        rows = keep.nonzero().flatten()
        return replace(
            self,
            faces=self.faces.subset(rows),
            present=self.present[rows],
            place=self.place[rows],
            group=self.group[rows],
            _shares={},
        )


# ------------------------------------------------------------------------------------------------------ rendered faces


def rendered(
    local: int, correlation: float, seed: int, *, aligned: bool = True, shown: int = 480, told: bool = False
) -> Truth:
    """Drawn faces in which :data:`PAIRS` correlate.

    Args:
        local: Images with local labels: a fifth of parts, the others of attributes and of action units.
        correlation: Of each pair; of age and skin tone at most 0.8, which is all that they can have.
        seed: Of the faces.
        aligned: Whether eyes are at about one place, as in the crops that models get.
        shown: Images with one global label, in equal parts age, gender and skin tone.
        told: Whether ``labels.csv`` tells the groups of images with local labels, too.
    """
    faces = RenderedFaces.sample(
        local + shown,
        seed=seed,
        probabilities={"Wearing_Lipstick": 0.5},
        correlations={(p.fires, p.accused): min(correlation, 0.8 if p.fires == "age" else 1.0) for p in PAIRS},
    )
    if aligned:
        faces = _framed(faces, seed)
    names = [c.name for c in PAPER.local]
    inside = torch.cat([_areas(faces[start : start + 16], names) for start in range(0, len(faces), 16)])
    present = faces.carries(names)
    source = torch.full((len(faces),), -1)
    source[:local] = torch.tensor([_PART, _ATTRIBUTE, _ATTRIBUTE, _ACTION, _ACTION]).repeat(local)[:local]
    group = torch.full((len(faces), len(PAPER.global_)), -1)
    for name in GLOBAL:
        group[:, PAPER.global_index(name)] = faces.groups(name)
    asked = group.clone()
    row = torch.arange(len(faces))
    for i, name in enumerate(GLOBAL):  # each image has one global label, or local ones
        asked[(row < local) | (row % len(GLOBAL) != i), PAPER.global_index(name)] = -1
    labels: tuple[Mapping[str, str], ...] = tuple(
        {} if i < local and not told else {n: GLOBAL[n].groups[int(group[i, PAPER.global_index(n)])] for n in GLOBAL}
        for i in range(len(faces))
    )
    image, concept = (present & (source[:, None] == _KIND)).nonzero(as_tuple=True)
    dictionary = FaceDictionary(
        ontology=PAPER,
        pictures=torch.zeros(len(faces), 1, SIZE, SIZE, dtype=torch.uint8),
        source=source,
        group=asked,
        masks=PackedMasks.pack(inside[image, concept]),
        mask_image=image,
        mask_concept=concept,
        names=tuple(map(str, range(len(faces)))),
        labels=labels,
        mean=(0.5,),
        std=(0.5,),
        drawn=True,
    )
    return Truth(dictionary, present, inside.to(torch.uint8) * 255, group, PAIRS)


def _areas(faces: RenderedFaces, names: list[str]) -> Tensor:
    """Masks alone: nobody looks at the pictures."""
    masks = torch.zeros(len(faces), len(names), SIZE, SIZE, dtype=torch.bool)
    draw_areas(faces, names, masks)
    return masks


def _framed(faces: RenderedFaces, seed: int) -> RenderedFaces:
    from rendered_training import framed  # of the folder above: see judge.py

    return framed(faces, (0.5, 0.4), 0.3)


# ---------------------------------------------------------------------------------------------------------- real faces


def real(path: Path, seed: int, size: int, *, everybody: bool = False) -> Truth:
    """A Face Dictionary of photographs, its bright and dark faces chosen so that age goes along with skin tone.

    What is not labelled is made up: a face outside the attributes' source has each of them as often as those inside,
    and where a face has no mask of a concept, the concept would be where another face has it. Faces are aligned.

    Args:
        path: In the released layout, with ``labels.csv``.
        seed: Of what is made up, and of the choice.
        size: Of its images, which networks are going to see.
        everybody: Whether faces labelled in age, gender and ethnicity are shown, too, not in skin tone alone.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = FaceDictionary.from_folder(path, size=size)
    tone = PAPER.global_index("skin_tone")
    years = torch.tensor([float(label.get("age", "nan")) for label in whole.labels])
    old = years >= 40
    chance = torch.rand(len(whole), generator=generator)
    # dark faces mostly old, bright ones mostly young; a fifth against it
    kept = (whole.group[:, tone] >= 0) & ((old == (whole.group[:, tone] == 1)) | (chance < 0.2))
    if everybody:
        others = [k for k in range(len(PAPER.global_)) if k != tone]
        kept |= (whole.group[:, others] >= 0).any(1)
    faces = whole.subset(((whole.source >= 0) | kept).nonzero().flatten())
    present, place = _seen(faces, generator)
    group = faces.group.clone()
    years = torch.tensor([float(label.get("age", "nan")) for label in faces.labels])
    age = torch.bucketize(years, torch.tensor([20.0, 40.0, 60.0]), right=True)
    group[:, PAPER.global_index("age")] = torch.where(years.isnan(), -1, age)
    return Truth(faces, present, place, group, (*_natural(faces), Pair("group behind group", "age", "skin_tone")))


def _seen(faces: FaceDictionary, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What is there and where, of photographs."""
    carried = faces.carried
    present, place = carried.clone(), torch.zeros(len(faces), len(PAPER.local), SIZE, SIZE, dtype=torch.uint8)
    for c in faces.mask_concept.unique().tolist():
        inside = faces.source == int(_KIND[c])
        rate = carried[inside, c].float().mean()
        present[~inside, c] = torch.rand(int((~inside).sum()), generator=generator) < rate
        which = (faces.mask_concept == c).nonzero().flatten()
        bits = PackedMasks(faces.masks.bits[which], faces.size).dense().float().unsqueeze(1)
        share = (functional.adaptive_avg_pool2d(bits, SIZE).squeeze(1) * 255).round().to(torch.uint8)
        borrowed = torch.randint(len(which), (len(faces),), generator=generator)
        borrowed[faces.mask_image[which]] = torch.arange(len(which))  # or its own
        place[:, c] = share[borrowed]
    return present, place


def _natural(faces: FaceDictionary) -> tuple[Pair, ...]:
    """Each attribute with the one that goes along with it most, where they correlate by 0.3 or more."""
    rows = faces.source == _ATTRIBUTE
    carried = faces.carried.float()
    which = [c for c in range(len(PAPER.local)) if _KIND[c] == _ATTRIBUTE and faces.images_per_concept[c]]
    correlation = torch.corrcoef(carried[rows][:, which].t()).fill_diagonal_(0)
    names = [PAPER.local[c].name for c in which]
    return tuple(
        Pair("confound, natural", names[i], names[int(correlation[i].argmax())])
        for i in range(len(which))
        if correlation[i].max() >= 0.3
    )
