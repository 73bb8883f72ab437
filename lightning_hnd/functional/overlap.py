"""How far the area in which a unit fires agrees with a concept's masks: Stage II of the method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hnd.functional.host import count_bits, positions
from lightning_hnd.functional.interpolation import floor_to
from lightning_hnd.functional.masks import CutMasks, cut_masks
from lightning_hnd.functional.threads import side_by_side
from lightning_hnd.functional.tiles import TileGrid, active_blocks, crossings

_CELLS = 2**21  # blocks looked at together,
_BLOCKS = 2**16  # ... and pixels counted in: large enough for the cost of a call, small enough for the caches


class Overlap(NamedTuple):
    """Pixel counts from which either IoU follows. They add up over images and over processes.

    Attributes:
        intersection: ``[U, C]`` int64, pixels that fire inside masks of the concept.
        firing: ``[U, C]`` int64, pixels that fire in images that carry the concept.
        mask: ``[U, C]`` int64, pixels of the concept's masks in all images that carry it (equal for all units).
        mask_firing: ``[U, C]`` int64, pixels of its masks in those of the images in which the unit fires.
    """

    intersection: Tensor
    firing: Tensor
    mask: Tensor
    mask_firing: Tensor

    def iou(self, *, firing_only: bool = False) -> Tensor:
        """Intersection over union, ``[U, C]`` float64, 0 where the union is empty.

        Args:
            firing_only: Count only the images in which the unit fires at all, as the released code does,
                instead of every image that carries the concept.
        """
        mask = self.mask_firing if firing_only else self.mask
        union = self.firing + mask - self.intersection
        return self.intersection.double() / union.clamp(min=1)


def concept_iou(
    activations: Tensor,
    thresholds: Tensor,
    masks: Tensor,
    mask_image: Tensor,
    mask_concept: Tensor,
    num_concepts: int,
    *,
    firing_only: bool = False,
) -> Tensor:
    """IoU of each unit's firing area with each concept, pooled over the images that carry the concept.

    A unit fires in the pixels where its map, upsampled by :func:`upsample`, exceeds its threshold.
    ``IoU[u, c] = sum_i |M_i and L_ic| / sum_i |M_i or L_ic|`` (Network Dissection, Bau et al. 2017, eq. 1).

    Args:
        activations: ``[N, U, h, w]``.
        thresholds: ``[U]``.
        masks: ``[M, H, W]`` bool.
        mask_image: ``[M]`` int64, the image of each mask.
        mask_concept: ``[M]`` int64, the concept of each mask.
        num_concepts: ``C``.
        firing_only: See :meth:`Overlap.iou`.

    Returns:
        ``[U, C]`` float64; 0 for concepts without masks.

    Raises:
        ValueError: If shapes disagree or an index is out of range.

    Example:
        >>> import torch
        >>> from lightning_hnd.functional import concept_iou
        >>> activations = torch.zeros(1, 1, 2, 2)
        >>> activations[0, 0, 0] = 1.0                      # fires in the upper half
        >>> masks = torch.zeros(1, 4, 4, dtype=torch.bool)
        >>> masks[0, :, :2] = True                          # the concept is in the left half
        >>> iou = concept_iou(activations, torch.tensor([0.5]), masks, torch.tensor([0]), torch.tensor([0]), 1)
        >>> iou.item() == 4 / 12
        True
    """
    num_images, num_units = activations.shape[:2]
    if activations.dtype in (torch.float16, torch.bfloat16):
        activations = activations.float()  # exact, while interpolating in half precision is not
    _validate_masks(masks, mask_image, mask_concept, num_images, num_concepts)
    if thresholds.shape != (num_units,):
        raise ValueError(f"thresholds must be [{num_units}], one for each unit, got {tuple(thresholds.shape)}")
    image, unit = torch.ones(num_images, num_units, device=activations.device).nonzero(as_tuple=True)
    grid = TileGrid.of((activations.shape[2], activations.shape[3]), (masks.shape[1], masks.shape[2]))
    cut = cut_masks(masks.cpu(), grid).to(activations.device)
    overlap = count_overlap(
        activations.flatten(0, 1), unit, image, thresholds, cut, mask_image, mask_concept, num_concepts
    )
    return overlap.iou(firing_only=firing_only)


def count_overlap(
    maps: Tensor,
    map_unit: Tensor,
    map_image: Tensor,
    thresholds: Tensor,
    masks: CutMasks,
    mask_image: Tensor,
    mask_concept: Tensor,
    num_concepts: int,
) -> Overlap:
    """Counts the pixels of firing areas and masks, given only the maps that can fire.

    A map whose maximum is at or below its unit's threshold has no pixel on, so it adds nothing to any
    intersection or firing area and need not be given.

    Args:
        maps: ``[R, h, w]``, single activation maps.
        map_unit: ``[R]`` int64, the unit of each map.
        map_image: ``[R]`` int64, the image of each map.
        thresholds: ``[U]``.
        masks: ``M`` masks, cut for maps of this shape.
        mask_image: ``[M]`` int64, the image of each mask, in the numbering of ``map_image``.
        mask_concept: ``[M]`` int64.
        num_concepts: ``C``.

    Returns:
        The counts.
    """
    maps = maps.detach()  # counts have no gradient
    device, num_units = maps.device, thresholds.shape[0]
    level = floor_to(thresholds.double(), maps.dtype)[map_unit]
    grid = TileGrid.of((maps.shape[1], maps.shape[2]), masks.size, device)
    fires = positions(maps.flatten(1).amax(1) > level)
    fires = fires[map_image[fires].argsort(stable=True)]
    pieces = _Pieces.of(masks, mask_image, mask_concept, grid)
    order = mask_image.argsort(stable=True)
    concept, area_of_mask = mask_concept[order], masks.area[order]
    num_images = 1 + int(torch.cat([map_image, mask_image, map_image.new_zeros(1)]).max())
    first_mask = _begins(mask_image, num_images)

    def count(part: Tensor) -> Tensor:
        counts = torch.zeros(3, num_units * num_concepts, dtype=torch.int64, device=device)
        intersection, firing, mask_firing = counts
        area = torch.zeros_like(part)
        row = map_unit[part] * num_concepts
        image = map_image[part]
        for of_map, of_concept, inside in _inside(maps.index_select(0, part), level[part], image, pieces, grid, area):
            intersection.index_add_(0, row.index_select(0, of_map).add_(of_concept), inside)
        i, mask = _expand(first_mask[image], first_mask[image + 1])
        cell = row[i] + concept[mask]
        firing.index_add_(0, cell, area[i])
        mask_firing.index_add_(0, cell, torch.where(area[i] > 0, area_of_mask[mask], 0))
        return counts

    counts = torch.zeros(3, num_units, num_concepts, dtype=torch.int64, device=device)
    for part in side_by_side(count, fires.split(max(1, _CELLS // grid.places)) if len(fires) else (), device):
        counts += part.view_as(counts)
    total = torch.zeros(num_concepts, dtype=torch.int64, device=device).index_add_(0, mask_concept, masks.area)
    intersection, firing, mask_firing = counts
    return Overlap(intersection, firing, total.expand(num_units, -1), mask_firing)


class _Pieces(NamedTuple):
    """What masks have in each block of each image.

    Attributes:
        key: ``[S]`` int64, ``image * places + place``, ascending.
        concept: ``[S]`` int64.
        words: ``[S, K / 4]`` int64.
    """

    key: Tensor
    concept: Tensor
    words: Tensor

    @classmethod
    def of(cls, masks: CutMasks, mask_image: Tensor, mask_concept: Tensor, grid: TileGrid) -> _Pieces:
        """Brings the masks of an image together."""
        mask = masks.mask.long()
        key, order = (mask_image[mask] * grid.places + masks.place).sort(stable=True)
        return cls(key, mask_concept[mask][order], masks.words[order])


def _inside(
    maps: Tensor, level: Tensor, image: Tensor, pieces: _Pieces, grid: TileGrid, area: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Counts what fires: in all into ``area``, and for map, concept and pixels inside the mask it gives lists.

    Args:
        maps: ``[R, h, w]``.
        level: ``[R]``.
        image: ``[R]`` int64, ascending.
        pieces: The masks.
        grid: The grid of the maps.
        area: ``[R]`` int64, to add the firing pixels of each map to.
    """
    padded = torch.nn.functional.pad(maps.unsqueeze(1), (1, 1, 1, 1), mode="replicate").squeeze(1)
    low, high = int(image[0]), int(image[-1]) + 1
    begin, end = torch.searchsorted(pieces.key, image.new_tensor([low, high]) * grid.places).tolist()
    first = begin + _begins(pieces.key[begin:end] - low * grid.places, (high - low) * grid.places)
    blocks = active_blocks(padded, level, grid)
    at = torch.add(blocks.place, (image - low).index_select(0, blocks.map), alpha=grid.places)
    # pixels one by one only where there is a mask, or a row is none
    pixels = ((first[1:] > first[:-1]) | ~grid.full.repeat(high - low)).index_select(0, at)
    for some in blocks.at(positions(~pixels)).split(_BLOCKS):
        area.index_add_(0, some.map, crossings(padded, level, some, grid).area())
    pixels = positions(pixels)
    for some, place in zip(blocks.at(pixels).split(_BLOCKS), at.index_select(0, pixels).split(_BLOCKS), strict=True):
        words = crossings(padded, level, some, grid).words()
        area.index_add_(0, some.map, count_bits(words).sum(-1))
        i, piece = _expand(first.index_select(0, place), first.index_select(0, place + 1))
        inside = words.index_select(0, i).bitwise_and_(pieces.words.index_select(0, piece))
        yield some.map.index_select(0, i), pieces.concept.index_select(0, piece), count_bits(inside).sum(-1)


def _begins(key: Tensor, num_keys: int) -> Tensor:
    """Where the rows of each key begin once they are sorted by it: ``[num_keys + 1]`` int64."""
    return torch.nn.functional.pad(torch.bincount(key, minlength=num_keys).cumsum(0), (1, 0))


def _expand(begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The members of ranges: for each the position of its range, and itself."""
    count = end - begin
    i = torch.arange(len(count), device=count.device).repeat_interleave(count)
    return i, torch.arange(len(i), device=i.device).add_((begin - count.cumsum(0) + count).index_select(0, i))


def _validate_masks(
    masks: Tensor, mask_image: Tensor, mask_concept: Tensor, num_images: int, num_concepts: int
) -> None:
    if masks.ndim != 3 or masks.dtype != torch.bool:
        raise ValueError(f"masks must be [M, H, W] bool, got {tuple(masks.shape)} {masks.dtype}")
    for name, index, limit in (("mask_image", mask_image, num_images), ("mask_concept", mask_concept, num_concepts)):
        if index.shape != masks.shape[:1]:
            raise ValueError(f"{name} must be [{masks.shape[0]}], one for each mask, got {tuple(index.shape)}")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < limit:
            raise ValueError(f"{name} must lie in 0..{limit - 1}, got {int(index.min())}..{int(index.max())}")
