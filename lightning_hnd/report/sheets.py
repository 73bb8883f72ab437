"""Contact sheets: what a dictionary shows under each name, to look at before trusting it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_hnd.dictionary import FaceDictionary
from lightning_hnd.report.figures import Picture

_TINT = np.array([255, 64, 64])


def contact_sheet(dictionary: FaceDictionary, name: str, *, columns: int = 8, rows: int = 3) -> Picture:
    """Faces of a concept or a group, side by side.

    Of a local concept faces that carry it, each beside itself with the mask tinted red; of a group, named
    ``concept/group``, faces of it. Where there are more than the sheet holds, they are spread evenly over all.

    Args:
        dictionary: The dictionary.
        name: ``Eyeglasses``, or ``gender/Female``.
        columns: Faces in a row.
        rows: Rows.

    Returns:
        ``[rows * H, columns * W, 3]`` uint8, fewer rows where there are fewer faces.

    Raises:
        KeyError: If the ontology has no such concept or group.
        ValueError: If the dictionary has no image of it.
    """
    concept, _, group = name.partition("/")
    if group:
        k = dictionary.ontology.global_index(concept)
        groups = dictionary.ontology.global_[k].groups
        if group not in groups:
            raise KeyError(f"global concept {concept!r} has no group {group!r}; it has {', '.join(groups)}")
        images = _spread((dictionary.group[:, k] == groups.index(group)).nonzero().flatten(), columns * rows)
        tiles = _faces(dictionary, images)
    else:
        c = dictionary.ontology.concept_index(concept)
        masks = _spread((dictionary.mask_concept == c).nonzero().flatten(), columns // 2 * rows).tolist()
        faces = _faces(dictionary, dictionary.mask_image[masks])
        dense = np.stack([dictionary.masks[m : m + 1].dense()[0].numpy() for m in masks] or [np.zeros((0, 0), bool)])
        tinted = np.where(dense[..., None], (faces + _TINT) // 2, faces) if masks else faces
        tiles = np.stack([faces, tinted], axis=1).reshape(-1, *faces.shape[1:])
    if len(tiles) == 0:
        raise ValueError(f"{dictionary.origin} has no image of {name!r}")
    tiles = np.concatenate([tiles, np.full((-len(tiles) % columns, *tiles.shape[1:]), 255)])
    lines = tiles.reshape(-1, columns, *tiles.shape[1:]).swapaxes(1, 2)
    return lines.reshape(lines.shape[0] * lines.shape[1], -1, 3).astype(np.uint8)


def _spread(places: Tensor, most: int) -> Tensor:
    """At most so many of them, at equal steps."""
    if len(places) <= most:
        return places
    return places[torch.arange(most) * len(places) // most]


def _faces(dictionary: FaceDictionary, images: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    pictures = dictionary.pictures[images].permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    faces: np.ndarray[tuple[int, ...], np.dtype[np.int64]] = pictures.to(torch.int64).numpy()
    return faces
