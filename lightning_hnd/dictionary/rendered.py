"""The built-in dictionary: rendered faces, each labelled as a face of the released dictionary would be."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_hnd.concepts import PAPER
from lightning_hnd.dictionary.annotations import UNKNOWN
from lightning_hnd.dictionary.face_dictionary import FaceDictionary
from lightning_hnd.dictionary.masks import PackedMasks
from lightning_hnd.rendering import RenderedFaces
from lightning_hnd.rendering.labels import GLOBAL


def render_dictionary(
    size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...], *, images: int, seed: int
) -> FaceDictionary:
    """Draws the built-in dictionary: see :meth:`FaceDictionary.rendered`.

    Args:
        size: ``(H, W)``.
        mean: One for each channel: three for RGB, one for grey.
        std: Likewise.
        images: How many faces to draw, at least eight.
        seed: Other seeds draw other faces.

    Raises:
        ValueError: If there are fewer than eight images.
    """
    if images < 8:
        raise ValueError(f"images={images} is too few to show every kind of concept; give at least 8")
    faces = RenderedFaces.sample(images, seed=seed)
    source = _deal_kinds(images)
    pictures, masks, mask_image, mask_concept = [], [], [], []
    for kind in source.unique_consecutive().tolist():
        rows = (source == kind).nonzero().flatten()
        concepts = torch.tensor([c for c, k in enumerate(PAPER.concept_kind) if k == kind], dtype=torch.int64)
        names = [PAPER.local[c].name for c in concepts]
        picture, drawn = faces[rows].draw(size, names)
        image, concept = faces[rows].carries(names).nonzero(as_tuple=True)
        pictures.append(picture)
        masks.append(drawn[image, concept])
        mask_image.append(rows[image])
        mask_concept.append(concepts[concept])
    group = torch.full((images, len(PAPER.global_)), UNKNOWN)
    for name in GLOBAL:
        group[:, PAPER.global_index(name)] = torch.where(source == UNKNOWN, faces.groups(name), UNKNOWN)
    return FaceDictionary(
        ontology=PAPER,
        pictures=_to_channels(torch.cat(pictures), len(mean)),
        source=source,
        group=group,
        masks=PackedMasks.pack(torch.cat(masks)),
        mask_image=torch.cat(mask_image),
        mask_concept=torch.cat(mask_concept),
        names=tuple(f"rendered/{seed}/{i}" for i in range(images)),
        labels=({},) * images,
        mean=mean,
        std=std,
        origin=f"{images} rendered faces (seed {seed})",
        drawn=True,
    )


def _deal_kinds(images: int) -> Tensor:
    """Half of the faces to the kinds of local concepts, fewest to parts, which every face has; the rest to groups."""
    shares = {"part": images // 8, "attribute": images // 4, "action_unit": images // 2 - images // 8 - images // 4}
    kinds = [PAPER.kinds.index(kind) for kind, count in shares.items() for _ in range(count)]
    return torch.tensor(kinds + [UNKNOWN] * (images - len(kinds)))


def _to_channels(pictures: Tensor, channels: int) -> Tensor:
    if channels == pictures.shape[1]:
        return pictures
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # ITU-R BT.601, as Pillow's mode "L"
    return (pictures * luma).sum(1, keepdim=True).round().to(torch.uint8)
