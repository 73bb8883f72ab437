"""How far the area in which a unit fires agrees with a concept's masks: Stage II of the method."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hnd.functional.interpolation import floor_to
from lightning_hnd.functional.masks import CutMasks, cut_masks
from lightning_hnd.functional.tiles import TileGrid, count_bits, firing_words


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
    image, unit = (activations.flatten(2).amax(-1) > thresholds).nonzero(as_tuple=True)
    grid = TileGrid.of((activations.shape[2], activations.shape[3]), (masks.shape[1], masks.shape[2]), activations)
    cut = cut_masks(masks, grid)
    maps = activations[image, unit]
    overlap = count_overlap(maps, unit, image, thresholds, cut, mask_image, mask_concept, num_concepts)
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
    num_units = thresholds.shape[0]
    level = floor_to(thresholds.double(), maps.dtype)[map_unit]
    grid = TileGrid.of((maps.shape[1], maps.shape[2]), masks.size, maps)
    owner = torch.arange(len(masks.box), device=maps.device).repeat_interleave(masks.begin.diff())
    mask_area = torch.zeros_like(mask_image).index_add_(0, owner, count_bits(masks.words).sum(-1))
    order = mask_image.argsort(stable=True)
    mask_image, mask_concept, mask_area = mask_image[order], mask_concept[order], mask_area[order]
    top, left, rows, blocks = masks.box[order].unbind(1)
    begin = masks.begin[:-1][order]

    counts = torch.zeros(3, num_units * num_concepts, dtype=torch.int64, device=maps.device)
    step = max(1, 2**18 // (len(grid.row_t) * len(grid.block_gap)))  # what the processor's caches hold
    for part in torch.arange(maps.shape[0], device=maps.device).split(step):
        row, tile, block, words, pixels = firing_words(maps[part], level[part], grid)
        area = torch.zeros_like(part).index_add_(0, row, pixels)
        i, mask = _pairs(map_image[part][row], mask_image)
        down, right = tile[i] - top[mask], block[i] - left[mask]
        meets = (down >= 0) & (down < rows[mask]) & (right >= 0) & (right < blocks[mask])
        i, mask, down, right = i[meets], mask[meets], down[meets], right[meets]
        inside = count_bits(words[i] & masks.words[begin[mask] + down * blocks[mask] + right]).sum(-1)
        counts[0].index_add_(0, map_unit[part][row[i]] * num_concepts + mask_concept[mask], inside)
        fired, mask = _pairs(map_image[part], mask_image)
        cell = map_unit[part][fired] * num_concepts + mask_concept[mask]
        counts[1:].index_add_(1, cell, torch.stack([area[fired], mask_area[mask] * (area[fired] > 0)]))

    intersection, firing, mask_firing = counts.view(3, num_units, num_concepts)
    total = torch.zeros(num_concepts, dtype=torch.int64, device=maps.device).index_add_(0, mask_concept, mask_area)
    return Overlap(intersection, firing, total.expand(num_units, -1), mask_firing)


def _pairs(map_image: Tensor, mask_image: Tensor) -> tuple[Tensor, Tensor]:
    """All (map, mask) pairs of one image, as positions in the two lists; ``mask_image`` is sorted."""
    first = torch.searchsorted(mask_image, map_image)
    count = torch.searchsorted(mask_image, map_image, right=True) - first
    row = torch.arange(map_image.shape[0], device=map_image.device).repeat_interleave(count)
    begins = (count.cumsum(0) - count)[row]
    mask = first[row] + torch.arange(row.shape[0], device=row.device) - begins
    return row, mask


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
